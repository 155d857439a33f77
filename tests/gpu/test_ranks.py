"""Two ranks on two GPUs of one kind, with NCCL: one tunes, on its own GPU, and both take the same.

A dead-lock ends the launch by its time.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.runtime.tuning.launch import launch, seen

# A few kernels of each of four lengths and two programs are compiled.
SECONDS = 500.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks have tuned, each in an order of its own, then by hand."""
    made = tmp_path_factory.mktemp("ranks")
    status, said = launch("orders,by_hand", made, "cuda", SECONDS)
    assert status == 0, said
    return made


def both(folder: Path, act: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return seen(folder, act, 0), seen(folder, act, 1)


@pytest.mark.timeout(SECONDS + 30)
def test_calls_of_both_take_the_same_and_compute_the_same_bits(folder: Path) -> None:
    first, second = both(folder, "orders")
    assert first["took"] == second["took"]
    for length, took in first["took"].items():
        assert took["reason"] == f"tuned on this machine, for 6 rows of {length} tokens"
    tuned = [{length for length, *_ in rank["measured"]} for rank in (first, second)]
    assert tuned[0] | tuned[1] == {100, 200, 300, 1000}
    assert not tuned[0] & tuned[1]
    assert len(list((folder / "orders").rglob("*.jsonl"))) == 1


@pytest.mark.timeout(SECONDS + 30)
def test_each_measures_on_its_own_gpu(folder: Path) -> None:
    for act in ("orders", "by_hand"):
        for rank, found in enumerate(both(folder, act)):
            assert {device for _, device, *_ in found["measured"]} <= {f"cuda:{rank}"}


@pytest.mark.timeout(SECONDS + 30)
def test_tune_on_both_measures_once_and_gives_both_the_same_rows(folder: Path) -> None:
    first, second = both(folder, "by_hand")
    for one, other in zip(first["results"], second["results"], strict=True):
        assert one["rows"] == other["rows"]
        assert (one["complete"], other["complete"]) == (True, True)
        assert [one["measured"], other["measured"]].count(0) == 1
    assert first["took"] == second["took"]
    assert first["took"]["100"]["reason"].startswith("tuned on this machine")
