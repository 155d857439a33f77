"""Which candidate wins: the fastest that is right, or a simpler one within the noise."""

from hypothesis import given
from hypothesis import strategies as st

from pdssm_compiler.runtime.tuning.rows import Row
from pdssm_compiler.runtime.tuning.winners import noise, winner
from pdssm_compiler.schedules.templates.cpu_rows import CpuRowsConfig
from tests.runtime.tuning.made_rows import row


def made(heads: int, ms: float, **more: object) -> Row:
    return row(CpuRowsConfig(heads), ms=ms, **more)


def test_the_fastest_wins() -> None:
    rows = [made(1, 3.0, heuristic=True, changes=0), made(2, 2.0), made(4, 2.5)]
    assert winner(rows) == rows[1]
    assert winner([]) is None


def test_what_is_not_right_cannot_win() -> None:
    wrong = [made(n, None, status=s, error="no") for n, s in enumerate(("wrong", "crash", "hang"))]  # type: ignore[arg-type]
    assert winner(wrong) is None
    assert winner([*wrong, made(9, 5.0)]) == made(9, 5.0)
    # Its earlier time does not count: the last row of a candidate is what it is.
    failed = row(CpuRowsConfig(2), ms=None, status="wrong")
    assert winner([made(2, 1.0), made(9, 5.0), failed]) == made(9, 5.0)


def test_a_tie_goes_to_the_simpler() -> None:
    heuristic = made(16, 1.05, heuristic=True, changes=0, again_ms=1.0)
    assert noise([heuristic]) > 0.049
    fast, few = made(2, 1.0, changes=3), made(4, 1.02, changes=1)
    assert winner([heuristic, fast, few]) == heuristic
    slow = made(16, 1.20, heuristic=True, changes=0, again_ms=1.15)
    assert winner([slow, fast, few]) == few
    assert winner([slow, fast, made(4, 1.3, changes=1)]) == fast


@given(st.permutations(range(6)), st.floats(0, 0.2))
def test_the_order_of_other_candidates_changes_nothing(order: list[int], apart: float) -> None:
    rows = [made(n + 1, 1.0 + 0.013 * n, changes=6 - n) for n in range(6)]
    rows[3] = made(4, 1.04, heuristic=True, changes=0, again_ms=1.04 * (1 + apart))
    assert winner([rows[n] for n in order]) == winner(rows)
