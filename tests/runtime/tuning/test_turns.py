"""Turns: one process at a time, and what the others learn of it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pdssm_compiler.runtime.errors import TuningTimeoutError, TuningWarning
from pdssm_compiler.runtime.tuning import turns
from pdssm_compiler.runtime.tuning.turns import Turn, device_turn, log_turn, turn
from pdssm_compiler.schedules.templates.base import Problem


def nobody(who: str) -> None:
    pytest.fail(f"waits for {who}")


@contextmanager
def held(path: Path, what: str, seconds: float, steps: bool = False) -> Iterator[None]:
    """Another one holds a turn; a file opened twice is locked as if by two processes."""
    begun = threading.Event()

    def hold() -> None:
        with turn(path, nobody) as its, its.at(what):
            begun.set()
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                time.sleep(0.02)
                if steps:
                    its.step()

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait()
    yield
    thread.join()


def test_who_comes_first_is_waited_for_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    path, waited_for = tmp_path / "new" / "it.turn", set()
    with held(path, "this", 0.3), turn(path, waited_for.add) as mine:
        assert (mine.passed, mine.unfinished) == ("this", False)
    (who,) = waited_for
    assert who.startswith("process ")
    assert who.endswith("(rank 3)")
    with turn(path, nobody) as mine:
        assert (mine.passed, mine.unfinished) == ("", False)


def test_what_was_not_finished_is_told_until_it_is(tmp_path: Path) -> None:
    path = tmp_path / "it.turn"

    def fails() -> None:
        with turn(path, nobody) as mine, mine.at("this"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    for _ in range(2):
        with turn(path, nobody) as mine:
            assert mine.unfinished
    with turn(path, nobody) as mine, mine.at("this"):
        pass
    with turn(path, nobody) as mine:
        assert not mine.unfinished


def test_who_is_silent_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SILENT_SECONDS", 0.3)
    path = tmp_path / "it.turn"
    told = rf"process \d+ on .* holds {path}, for this, and has not gone on for 0 s; end it if"
    with (
        held(path, "this", 2.0),
        pytest.raises(TuningTimeoutError, match=told),
        turn(path, lambda who: None),
    ):
        pass
    with held(path, "this", 1.0, steps=True), turn(path, lambda who: None) as mine:
        assert mine.passed == "this"


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "take", lambda descriptor: None)
    with (
        pytest.warns(TuningWarning, match=r"it\.turn cannot be locked, .* has no locks"),
        turn(tmp_path / "it.turn", nobody),
    ):
        pass


def test_each_bucket_and_each_device_has_a_turn(tmp_path: Path, machine: Path) -> None:
    log = tmp_path / "cpu" / "program.jsonl"

    def of(rows: int, length: int) -> Path:
        with log_turn(log, Problem.bucket(rows, length), nobody) as mine:
            return path_of(mine)

    assert of(6, 100) == of(8, 64) == log.parent / "program-r8-t127.turn"
    assert len({of(6, 100), of(9, 100), of(6, 128)}) == 3
    with device_turn(torch.device("cpu"), nobody) as mine:
        assert path_of(mine) == machine / "cpu.turn"


def path_of(mine: Turn) -> Path:
    assert mine.path.exists()
    return mine.path


def test_a_folder_that_others_can_write_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(turns.tempfile, "gettempdir", lambda: str(tmp_path))
    with device_turn(torch.device("cpu"), nobody) as mine:
        folder = mine.path.parent
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    with (
        pytest.raises(PermissionError, match="can be written by others"),
        device_turn(torch.device("cpu"), nobody),
    ):
        pass
