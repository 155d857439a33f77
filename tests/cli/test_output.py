"""What every command prints to: how wide it is, and a reader that goes away."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pdssm_compiler.cli.consoles import new_table, results
from pdssm_compiler.runtime import settings
from tests.cli.conftest import Command


def test_a_pipe_gets_whole_rows(pdssm: Command) -> None:
    done = pdssm("compile", "-N", 4, "-K", 3, "--target", "sm_90")
    heading, forward, backward = (line for line in done.out.splitlines() if line[0] in "┃│")
    assert len(heading) > 100
    assert "shared_bytes" in heading
    for row in (forward, backward):
        assert "tile=16 slots=4 sets=1 team=1" in row
        assert "…" not in row


def test_columns_say_how_wide(pdssm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    done = pdssm("compile", "-N", 4, "-K", 3, "--target", "sm_90")
    assert max(map(len, done.out.splitlines())) <= 60


def test_a_narrow_terminal_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    table = new_table("one", "other")
    table.add_row("x" * 40, "[/mine] :dash: of few words")
    results().print(table)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 30
    columns = zip(*(line[1:-1].split("│") for line in lines[3:-1]), strict=True)
    shown = ["".join(column).replace(" ", "") for column in columns]
    assert shown == ["x" * 40, "[/mine]:dash:offewwords"]


def test_no_column_vanishes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "8")
    table = new_table(*"1234567")
    table.add_row(*"abcdefg")
    results().print(table)
    shown = capsys.readouterr().out
    for letter in "1234567abcdefg":
        assert letter in shown


def test_a_pipe_takes_lines_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    text = "y" * 5000
    table = new_table("one")
    table.add_row(text)
    with io.StringIO() as pipe, contextlib.redirect_stdout(pipe):
        results().print(table)
        assert text in pipe.getvalue()


def test_help_names_every_command(pdssm: Command) -> None:
    done = pdssm("--help")
    assert done.status == 0
    for command in ("doctor", "lower", "compile", "verify", "run", "cache", "log"):
        assert f"  {command} " in done.out


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = "from pdssm_compiler.cli import main; main()"
    command = [sys.executable, "-c", code, "lower", "source", "--map-source", "none"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        complaint = running.stderr.read().decode()
        running.wait(120)
    assert complaint == ""
    assert running.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_an_output_that_cannot_be_written_is_one_line() -> None:
    code = "from pdssm_compiler.cli import main; main()"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, "log", "ls"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.stderr == (
        "pdssm-compiler: the output cannot be written: [Errno 28] No space left on device\n"
    )
    assert done.returncode == 1


def test_letters_that_a_locale_has_not(tmp_path: Path) -> None:
    file = tmp_path / "w.toml"
    file.write_text(
        '[[workload]]\nname = "m\u00efne"\nstate_size = 4\nmap_source = "none"\n'
        "batch = 1\nlength = 8\nheads = 1\n",
        encoding="utf-8",
    )
    code = "from pdssm_compiler.cli import main; main()"
    command = ["tune", "--spec-file", file, "--device", "cpu", "--effort", "none"]
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        env=os.environ | {"PYTHONIOENCODING": "ascii", settings.CACHE_DIR: str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "calls of m\\xefne: N=4 complex64 forward take cpu-rows" in done.stdout


def test_an_output_that_is_closed(monkeypatch: pytest.MonkeyPatch, pdssm: Command) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert pdssm("log", "ls", "--device", "nvidia-h200").status == 0


def test_a_warning_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code = "from pdssm_compiler.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "compile", "-N", "3", "-K", "2", "--target", "cpu"],
        env=os.environ | {settings.CACHE_DIR: str(tmp_path / "file")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("pdssm-compiler: kernels are not cached: [Errno ")
