"""Tests that need a GPU, or two, or a tool for one. Without it they are deselected, and the
summary line says so.
"""

from collections.abc import Iterator

import pytest
import torch

from tests.gpu.sanitizer import find_sanitizer


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is in this folder; leave out what needs what is not here: a GPU that torch sees,
    two of one kind, compute-sanitizer.
    """
    here = [item for item in items if "gpu" in item.path.parent.parts[-1:]]
    for item in here:
        item.add_marker(pytest.mark.gpu)
    if torch.cuda.is_available():
        lacking = set()
        if find_sanitizer() is None:
            lacking.add("test_sanitizer")
        if not _two_alike():
            lacking |= {"test_ranks", "test_distributed"}
        here = [item for item in here if item.path.stem in lacking]
    if here:
        config.hook.pytest_deselected(items=here)
        items[:] = [item for item in items if item not in here]


def _two_alike() -> bool:
    names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return len(names) > 1 and names[0] == names[1]


@pytest.fixture
def device() -> torch.device:
    """The GPU."""
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="module")
def poisoned_memory() -> Iterator[None]:
    """Every tensor that is made empty is full of NaN, so that what a kernel leaves is seen.

    Torch's other operators may be what they are, the plain loop's among them.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _nothing_left_to_report():
    """A test starts and ends with no failed check on record."""
    from pdssm_compiler import check

    check()
    yield
    check()
