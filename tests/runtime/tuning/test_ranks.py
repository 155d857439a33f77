"""Several ranks: one tunes, all take the same, and none waits for what another does not do.

A dead-lock ends a launch by its time.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pdssm_compiler.runtime.tuning.log import read_log
from tests.runtime.tuning.launch import launch, seen

Seen = tuple[dict[str, Any], dict[str, Any]]
ACTS = ("orders", "apart", "warm_and_cold", "by_hand", "budget")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks have played all acts."""
    made = tmp_path_factory.mktemp("ranks")
    status, said = launch(",".join(ACTS), made)
    assert status == 0, said
    return made


def both(folder: Path, act: str) -> Seen:
    return seen(folder, act, 0), seen(folder, act, 1)


def lengths(rank: dict[str, Any]) -> set[int]:
    return {length for length, *_ in rank["measured"]}


def test_whatever_the_order_each_bucket_is_tuned_by_one_and_taken_by_both(folder: Path) -> None:
    first, second = both(folder, "orders")
    assert first["took"] == second["took"]
    assert sorted(first["took"]) == ["100", "1000", "200", "300"]
    for length, took in first["took"].items():
        assert took["reason"] == f"tuned on this machine, for 6 rows of {length} tokens"
    assert lengths(first) | lengths(second) == {100, 200, 300, 1000}
    assert not lengths(first) & lengths(second)
    # Three candidates, and at the end again the best and the heuristic; the third takes too long.
    assert len(first["measured"]) + len(second["measured"]) == 4 * (3 + 2)


def test_with_a_folder_each_both_tune_but_never_at_once(folder: Path) -> None:
    first, second = both(folder, "apart")
    for rank in (first, second):
        assert lengths(rank) == {100, 1000}
    # Each has found its favourite.
    assert "'max_heads': 1," in first["took"]["100"]["config"]
    assert "'max_heads': 2," in second["took"]["100"]["config"]
    times = sorted((start, end) for rank in (first, second) for *_, start, end in rank["measured"])
    for (_, end), (start, _) in pairwise(times):
        assert end <= start


def test_a_warm_rank_does_not_wait_for_a_cold_one(folder: Path) -> None:
    warm, cold = both(folder, "warm_and_cold")
    assert (lengths(warm), lengths(cold)) == (set(), {100, 1000})
    assert warm["took"] == seen(folder, "apart", 0)["took"]


def test_tune_on_all_ranks_measures_once_and_gives_all_the_same_rows(folder: Path) -> None:
    first, second = both(folder, "by_hand")
    for one, other in zip(first["results"], second["results"], strict=True):
        assert one["rows"] == other["rows"]
        assert len(one["rows"]) == 3
        assert (one["complete"], other["complete"]) == (True, True)
        assert sorted((one["measured"], other["measured"])) == [0, 3]
    assert first["took"] == second["took"]
    assert first["took"]["100"]["reason"].startswith("tuned on this machine")


def test_what_a_budget_has_left_is_taken_as_it_is(folder: Path) -> None:
    (one,), (other,) = (rank["results"] for rank in both(folder, "budget"))
    assert one["rows"] == other["rows"]
    assert 0 < len(one["rows"]) < 3
    assert (one["complete"], other["complete"]) == (False, False)
    assert sorted((one["measured"], other["measured"])) == [0, len(one["rows"])]


def test_a_rank_that_is_killed_while_it_tunes_lets_the_other_go_on(tmp_path: Path) -> None:
    status, said = launch("killed", tmp_path)
    assert status != 0
    assert "SIGKILL" in said
    left = seen(tmp_path, "killed", 1)
    assert left["took"]["100"]["reason"].startswith("tuned on this machine")
    (log,) = tmp_path.rglob("*.jsonl")
    rows, wrong = read_log(log)
    assert wrong == []
    # One candidate was there; the others, and at the end the best and the heuristic again, are of
    # the rank that lives.
    assert len(rows) == 1 + len(left["measured"])
    assert len(left["measured"]) == 2 + 2
    (turn,) = log.parent.glob("*.turn")
    assert turn.read_text() == ""
