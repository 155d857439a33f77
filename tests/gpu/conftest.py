"""Tests that need a GPU, or a tool for one. Without it they are deselected, and the summary line
says so.
"""

from collections.abc import Iterator

import pytest
import torch

from tests.gpu.sanitizer import find_sanitizer


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is in this folder; leave it out where torch sees no GPU, and what runs
    compute-sanitizer where that is not installed.
    """
    here = [item for item in items if "gpu" in item.path.parent.parts[-1:]]
    for item in here:
        item.add_marker(pytest.mark.gpu)
    if torch.cuda.is_available():
        sanitized = find_sanitizer() is not None
        here = [i for i in here if i.path.stem == "test_sanitizer" and not sanitized]
    if here:
        config.hook.pytest_deselected(items=here)
        items[:] = [item for item in items if item not in here]


@pytest.fixture
def device() -> torch.device:
    """The GPU."""
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="module")
def poisoned_memory() -> Iterator[None]:
    """Every tensor that is made empty is full of NaN, so that what a kernel leaves is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _nothing_left_to_report():
    """A test starts and ends with no failed check on record."""
    from pdssm_compiler import check

    check()
    yield
    check()
