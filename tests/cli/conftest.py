"""The command line, called in this process as a shell would call it."""

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from pdssm_compiler.cli import main


class Done(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def pdssm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``pdssm("lower", "ir")`` is ``pdssm-compiler lower ir``, its output piped."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["pdssm-compiler", *map(str, arguments)])
        capsys.readouterr()
        status = 0
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
        return Done(status, *capsys.readouterr())

    return run


def error_line(done: Done) -> str:
    """The one line of a command that failed as it should."""
    assert done.status == 1
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("pdssm-compiler: ")
    return line.removeprefix("pdssm-compiler: ")
