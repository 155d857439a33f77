"""The printed forms in ``tests/golden/ir``: what every pass does, to be read in a diff.

``PDSSM_UPDATE_GOLDEN=1 pytest tests/ir/test_golden.py`` writes them anew.
"""

import difflib
import os
from pathlib import Path

import pytest

from pdssm_compiler.ir import parse_program
from tests.ir.golden_programs import PROGRAMS

FOLDER = Path(__file__).parents[1] / "golden" / "ir"
SWITCH = "PDSSM_UPDATE_GOLDEN"
UPDATE = f"if the change is meant, run: {SWITCH}=1 pytest tests/ir/test_golden.py"


def updating() -> bool:
    return os.environ.get(SWITCH, "0") not in ("", "0")


def assert_golden(path: Path, text: str) -> None:
    """The file holds the text; with the switch on, it does afterwards."""
    if updating():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    kept = path.read_text() if path.exists() else ""
    if kept != text:
        lines = kept.splitlines(), text.splitlines()
        diff = difflib.unified_diff(*lines, f"golden/{path.name}", "printed now", lineterm="")
        pytest.fail("\n".join([*diff, "", UPDATE]), pytrace=False)


@pytest.mark.parametrize("name", PROGRAMS)
def test_printed_form(name: str) -> None:
    assert_golden(FOLDER / f"{name}.txt", PROGRAMS[name]().text)


@pytest.mark.parametrize("name", PROGRAMS)
def test_golden_file_parses_to_the_program(name: str) -> None:
    assert parse_program((FOLDER / f"{name}.txt").read_text()) == PROGRAMS[name]()


def test_no_golden_file_is_left_over() -> None:
    leftover = {path.stem for path in FOLDER.glob("*.txt")} - set(PROGRAMS)
    if updating():
        for name in leftover:
            (FOLDER / f"{name}.txt").unlink()
    else:
        assert not leftover, UPDATE


def test_failure_shows_the_diff_and_how_to_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    path = tmp_path / "x.txt"
    path.write_text("scan N=4 forward\nbody {\n}\n")
    with pytest.raises(pytest.fail.Exception) as caught:
        assert_golden(path, "scan N=5 forward\nbody {\n}\n")
    said = str(caught.value).splitlines()
    assert "-scan N=4 forward" in said
    assert "+scan N=5 forward" in said
    assert said[-1] == UPDATE


def test_update_writes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")
    path = tmp_path / "new" / "x.txt"
    assert_golden(path, "scan N=5 forward\n")
    monkeypatch.delenv(SWITCH)
    assert_golden(path, "scan N=5 forward\n")
