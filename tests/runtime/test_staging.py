"""Folders in the making: swept when nobody holds them, whatever the clock says."""

import os
import time
from pathlib import Path

import pytest

from pdssm_compiler.runtime.staging import staged, sweep

HOUR = 3600.0


@pytest.mark.parametrize("seconds", [-HOUR, HOUR])
def test_what_is_held_stays_and_what_is_left_goes(tmp_path: Path, seconds: float) -> None:
    then = time.time() + seconds
    with staged(tmp_path, "staged") as folder:
        (folder / "kernel.o").write_bytes(b"half")
        (tmp_path / "staged-left").mkdir()
        (tmp_path / "staged-left" / "kernel.o").write_bytes(b"half")
        (tmp_path / "notes").mkdir()
        for path in tmp_path.iterdir():
            os.utime(path, (then, then))
        sweep(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["notes", folder.name])
        assert (folder / "kernel.o").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_what_is_new_stays(tmp_path: Path) -> None:
    """It may be about to be held."""
    (tmp_path / "staged-new").mkdir()
    sweep(tmp_path)
    assert (tmp_path / "staged-new").exists()
    sweep(tmp_path, 0.0)
    assert not (tmp_path / "staged-new").exists()


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("")
    (tmp_path / "root" / "staged-link").symlink_to(tmp_path / "precious")
    sweep(tmp_path / "root", 0.0)
    assert (tmp_path / "precious" / "file").exists()


def test_a_folder_that_went_elsewhere_is_not_missed(tmp_path: Path) -> None:
    with staged(tmp_path, "staged") as folder:
        folder.rename(tmp_path / "entry")
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with staged(tmp_path / "root", "staged"):
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        fail()
    assert list((tmp_path / "root").iterdir()) == []
