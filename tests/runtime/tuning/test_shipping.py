"""From a user's log to one that others have."""

from pathlib import Path

import pytest

from pdssm_compiler.runtime.tuning.log import append_rows, read_log
from pdssm_compiler.runtime.tuning.rows import Row
from pdssm_compiler.runtime.tuning.shipping import best_rows, ship
from pdssm_compiler.runtime.tuning.winners import winner
from pdssm_compiler.schedules.templates.cpu_rows import CpuRowsConfig
from tests.runtime.tuning.made_rows import PROGRAM, predicted, row

BASE = row(CpuRowsConfig(16), heuristic=True, changes=0, ms=2.0, again_ms=2.01)
ROWS = [
    BASE,
    row(CpuRowsConfig(1), ms=1.5),
    row(CpuRowsConfig(2), ms=1.0),
    row(CpuRowsConfig(3), ms=None, status="wrong", error="off by one"),
    row(CpuRowsConfig(2), ms=1.1, length=5000),
]


def sizes(rows: list[Row]) -> list[tuple[int, float | None]]:
    return [(r.length, r.ms) for r in rows]


def test_the_winner_and_what_it_was_compared_with() -> None:
    assert best_rows(ROWS) == [BASE, ROWS[2], ROWS[4]]
    assert winner(best_rows(ROWS[:4])) == winner(ROWS[:4])
    assert best_rows(ROWS[3:4]) == []
    assert best_rows([BASE]) == [BASE]


def test_nothing_predicted_is_shipped() -> None:
    assert best_rows([predicted(0.001), *ROWS, predicted(0.001)]) == best_rows(ROWS)
    assert best_rows([predicted(0.001)]) == []


def test_they_take_the_place_of_what_is_there(tmp_path: Path) -> None:
    log, folder = tmp_path / "mine" / "a-gpu" / "n6.jsonl", tmp_path / "autotune_logs"
    append_rows(log, ROWS)
    path = ship(log, PROGRAM, folder)
    assert path == folder / "a-gpu" / "n6.jsonl"
    assert sizes(read_log(path)[0]) == [(100, 2.0), (100, 1.0), (5000, 1.1)]
    assert ship(log, PROGRAM, folder) == path
    assert sizes(read_log(path)[0]) == [(100, 2.0), (100, 1.0), (5000, 1.1)]
    other = tmp_path / "theirs" / "a-gpu" / "n6.jsonl"
    append_rows(other, [row(ms=0.5), row(ms=7.0, length=9)])
    ship(other, PROGRAM, folder)
    assert sizes(read_log(path)[0]) == [(9, 7.0), (100, 0.5), (5000, 1.1)]
    assert sorted(p.name for p in path.parent.iterdir()) == ["n6.jsonl"]
    (text,) = (folder / "programs").iterdir()
    assert text.read_text() == PROGRAM.text


def test_another_number_of_threads_has_a_winner_of_its_own(tmp_path: Path) -> None:
    log, folder = tmp_path / "mine" / "a-cpu" / "n6.jsonl", tmp_path / "autotune_logs"
    few, many = row(ms=3.0, threads=1), row(CpuRowsConfig(4), ms=1.0, threads=8)
    append_rows(log, [few, many])
    assert best_rows([few, many]) == [few, many]
    ship(log, PROGRAM, folder)
    append_rows(log, [row(CpuRowsConfig(5), ms=0.5, threads=8)])
    path = ship(log, PROGRAM, folder)
    assert path is not None
    assert [(r.threads, r.ms) for r in read_log(path)[0]] == [(1, 3.0), (8, 0.5)]


def test_where_nothing_is_right_nothing_is_shipped(tmp_path: Path) -> None:
    log = tmp_path / "a-gpu" / "n6.jsonl"
    append_rows(log, ROWS[3:4])
    assert ship(log, PROGRAM, tmp_path / "out") is None
    assert ship(tmp_path / "gone.jsonl", PROGRAM, tmp_path / "out") is None
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    log = tmp_path / "a-gpu" / "n6.jsonl"
    append_rows(log, ROWS)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        ship(log, PROGRAM, tmp_path / "file")
