"""CPU kernels run on as many threads as ``torch.set_num_threads`` says, and no more than help."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pdssm_compiler import pd_scan
from pdssm_compiler.runtime.plan import plans


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    """Entry and tasks of each launch of the diagonal scan of 19 states."""
    tensor = torch.zeros(1, 1, 1, 19, dtype=torch.complex64)
    pd_scan(tensor, tensor)
    kernel = plans()[-1].kernels.built[-1].kernel
    found: list[tuple[str, int]] = []
    for entry in ("_serial", "_parallel"):
        real = getattr(kernel, entry)

        def noted(*arguments: Any, _real: Any = real, _entry: str = entry) -> None:
            found.append((_entry.removeprefix("_"), arguments[-3]))
            _real(*arguments)

        monkeypatch.setattr(kernel, entry, noted)
    before = torch.get_num_threads()
    yield found
    torch.set_num_threads(before)


def test_threads_follow_torch(launches: list[tuple[str, int]]) -> None:
    tensor = torch.randn(4, 300, 3, 19, dtype=torch.complex64)
    found = []
    for threads in (1, 2, 3, 1):
        torch.set_num_threads(threads)
        found.append(pd_scan(tensor * 0.5, tensor)[0])
    assert launches == [("serial", 1), ("parallel", 2), ("parallel", 3), ("serial", 1)]
    assert all(torch.equal(found[0], other) for other in found)


def test_a_short_scan_wakes_no_thread(launches: list[tuple[str, int]]) -> None:
    torch.set_num_threads(2)
    tensor = torch.randn(2, 3, 3, 19, dtype=torch.complex64)
    pd_scan(tensor, tensor)
    assert launches == [("serial", 1)]
