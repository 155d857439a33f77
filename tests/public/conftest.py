"""Every output of these tests is allocated full of NaN, so that what a kernel leaves is seen."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def poisoned_memory() -> Iterator[None]:
    """In deterministic mode ``torch.empty`` gives NaN and the largest integers."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
