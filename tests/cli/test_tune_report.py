"""What the tuner shows: the bar as it goes on, the table and the plot at the end."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from rich.console import Console

from pdssm_compiler.cli.consoles import messages, results
from pdssm_compiler.cli.tune_report import plot_results, show
from pdssm_compiler.cli.tuning_bar import times_of, tuning_bar
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.compile_service import choose
from pdssm_compiler.runtime.tuning import resolve
from pdssm_compiler.runtime.tuning.log import append_rows
from pdssm_compiler.runtime.tuning.problem import TuningProblem
from pdssm_compiler.runtime.tuning.provenance import kernel_versions
from pdssm_compiler.runtime.tuning.race import Progress, Result
from pdssm_compiler.runtime.tuning.tuner import log_of
from pdssm_compiler.schedules.templates.cpu_rows import CpuRowsConfig
from pdssm_compiler.schedules.templates.torch_tokens import TorchTokensConfig
from tests.runtime.tuning.made_rows import PROGRAM, row

PROBLEM = TuningProblem(pd_scan(PdScan(6, 3)).text, "mine", "forward", Sizes(4, 100, 2))
RIGHT = (
    row(CpuRowsConfig(1), ms=3.0, again_ms=3.03, heuristic=True, changes=0, floor_ms=1.0),
    row(CpuRowsConfig(2), ms=2.0, floor_ms=1.0),
    row(TorchTokensConfig(), "torch-tokens", ms=50.0, floor_ms=1.0),
)
BAD = (row(CpuRowsConfig(4), status="hang", ms=None, error="no answer"),)


def test_the_bar_has_the_best_so_far_and_the_heuristics_time() -> None:
    progress = Progress(PROBLEM, 7, 32, 2.0, 3.0, "cpu-rows max_heads=2")
    assert times_of(progress) == "best 2 ms, heuristic 3 ms, cpu-rows max_heads=2"
    assert times_of(Progress(PROBLEM, 0, 32, None, None, "compiling 8")) == "compiling 8"
    with open("/dev/null", "w") as nowhere:
        terminal = Console(force_terminal=True, width=120, record=True, file=nowhere)
        with tuning_bar(terminal) as told:
            told(Progress(PROBLEM, 0, 32, None, None, "compiling 8"))
            told(progress)
        shown = terminal.export_text()
    for piece in ("mine forward", "7/32", "best 2 ms, heuristic 3 ms"):
        assert piece in shown


def test_where_nobody_watches_a_line_says_what_is_tuned_and_who_is_waited_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    second, third = (replace(PROBLEM, label=label) for label in ("yours", "theirs"))
    with tuning_bar(messages()) as told:
        told(Progress(PROBLEM, 0, 0, None, None, "waiting for process 7 on here"))
        told(Progress(PROBLEM, 0, 32, None, None, "compiling 8"))
        told(Progress(PROBLEM, 1, 32, 2.0, 2.0, "cpu-rows max_heads=2"))
        told(Progress(second, 0, 32, None, None, "compiling 8"))
        told(Progress(third, 0, 32, None, None, "compiling 8"))
        told(Progress(third, 2, 32, None, None, "compiling 8"))
    assert capsys.readouterr().err.splitlines() == [
        "tuning mine forward",
        "waiting for process 7 on here",
        "candidates measured of mine forward: 1, best 2 ms, heuristic 2 ms",
        "tuning yours forward",
        "nothing measured of yours forward",
        "tuning theirs forward",
        "candidates measured of theirs forward: 2, none of them right",
    ]


def test_the_table_says_what_became_of_every_candidate(capsys: pytest.CaptureFixture[str]) -> None:
    show([Result(PROBLEM, [*RIGHT, *BAD], True, 4)], "cpu", results())  # type: ignore[arg-type]
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if line.startswith("│ mine forward"))
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells == ["mine forward", "3 ok, 1 hang", "3", "2", "50.0%", "1.0%", "50%"]
    assert "calls of mine forward take cpu-rows" in out


def test_where_nothing_is_right_it_is_said_why(capsys: pytest.CaptureFixture[str]) -> None:
    off = row(CpuRowsConfig(1), status="wrong", ms=None, heuristic=True, error="states[0]\n is 2")
    show([Result(PROBLEM, [off, *BAD], True, 2)], "cpu", results())  # type: ignore[arg-type]
    told = "nothing is right of mine forward: cpu-rows is wrong: states[0] is 2"
    assert told in capsys.readouterr().out.splitlines()


@pytest.mark.filterwarnings("ignore::pdssm_compiler.runtime.errors.TuningWarning")
def test_what_calls_take_where_the_only_kernel_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(settings.CACHE_DIR, str(tmp_path))
    resolve.forget()
    said = choose(PROBLEM.program, PROBLEM.target, None, PROBLEM.bucket).config
    off = row(said, status="wrong", ms=None, error="off", versions=kernel_versions())
    append_rows(log_of(PROBLEM), [off])
    resolve.forget()
    show([Result(PROBLEM, [off], True, 1)], "cpu", results())  # type: ignore[arg-type]
    told = f"calls of mine forward fail: no template can run a state size of 6 on {PROBLEM.target}"
    assert told in capsys.readouterr().out
    resolve.forget()


@contextmanager
def saved(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """The figures that are written."""
    found: list[Figure] = []
    write = Figure.savefig

    def savefig(figure: Figure, *arguments: Any, **options: Any) -> None:
        found.append(figure)
        write(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    yield found
    pyplot.close("all")


def test_the_plot_has_every_candidate_the_winner_the_heuristic_and_the_roof(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert PROBLEM.program.fingerprint == PROGRAM.fingerprint
    with saved(monkeypatch) as figures:
        plot_results([Result(PROBLEM, [*RIGHT, *BAD], True, 4)], "cpu", tmp_path / "p.png")
    (axes,) = figures[0].axes
    shown = {line.get_label(): [float(ms) for ms in line.get_ydata()] for line in axes.lines}
    assert shown == {
        "cpu-rows": [2.0, 3.0],
        "torch-tokens": [50.0],
        "winner": [2.0],
        "heuristic": [3.0, 3.0],
        "roof: a copy of the same bytes": [1.0, 1.0],
    }
    assert {text.get_text() for text in axes.get_legend().get_texts()} == set(shown)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
