"""What the tuner found: a table and a plot."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pdssm_compiler.cli.consoles import new_table
from pdssm_compiler.cli.run import PlotError
from pdssm_compiler.runtime.compile_service import choose
from pdssm_compiler.runtime.errors import NoTemplateError
from pdssm_compiler.runtime.tuning.problem import TuningProblem
from pdssm_compiler.runtime.tuning.race import Result
from pdssm_compiler.runtime.tuning.rows import Row
from pdssm_compiler.runtime.tuning.winners import noise

# As many panels stand side by side.
_COLUMNS = 3


def show(found: Sequence[Result], where: torch.device, console: Console) -> None:
    """Print a row for each program, and what calls of each take: a line, for it is too long for a
    terminal's column.
    """
    title = "nothing tuned"
    if found:
        told = "tuned on" if any(result.rows for result in found) else "nothing measured yet on"
        title = f"{told} {found[0].problem.target.name or where}"
    table = new_table(
        "program",
        "candidates",
        "heuristic\nms",
        "winner\nms",
        "faster",
        "noise",
        "of\nroof",
        title=title,
    )
    for result in found:
        table.add_row(str(result.problem), _outcomes(result), *_times(result))
    console.print(table)
    for result in found:
        if result.rows and result.winner is None and not result.untried:
            console.print(_failed(result), markup=False, highlight=False, soft_wrap=True)
    show_taken([result.problem for result in found], console)


def _outcomes(result: Result) -> str:
    """How many candidates are right, and what became of the others."""
    counts = Counter(row.status for row in result.rows)
    right = counts.pop("ok", 0)
    others = [f"{number} {status}" for status, number in counts.most_common()]
    return ", ".join([f"{right} ok", *others])


def _failed(result: Result) -> str:
    """Why there is no winner, as the heuristic's row says, or the last one."""
    row = result.heuristic or result.rows[-1]
    why = " ".join((row.error or "").split())
    return f"nothing is right of {result.problem}: {row.template} is {row.status}: {why}"


def _times(result: Result) -> tuple[str, ...]:
    best, base = result.winner, result.heuristic
    if best is None or best.ms is None:
        return ("", "", "", "", "")
    roof = f"{best.floor_ms / best.ms:.0%}" if best.floor_ms is not None else ""
    apart = f"{noise(result.rows):.1%}"
    if base is None or base.ms is None:
        return ("", f"{best.ms:.4g}", "", apart, roof)
    return (f"{base.ms:.4g}", f"{best.ms:.4g}", f"{base.ms / best.ms - 1:.1%}", apart, roof)


def show_taken(problems: Sequence[TuningProblem], console: Console) -> None:
    """Say what calls of each program take from now on, and why."""
    for problem in problems:
        try:
            schedule = choose(problem.program, problem.target, None, problem.bucket)
        except NoTemplateError as error:
            line = f"calls of {problem} fail: {error}"
        else:
            taken = f"{schedule.template.name} {told(vars(schedule.config))}, {schedule.reason}"
            line = f"calls of {problem} take {taken}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def told(config: dict[str, Any]) -> str:
    """A config on one line."""
    return " ".join(f"{name}={value}" for name, value in config.items())


def check_plot(path: Path) -> None:
    """Refuse a place where no plot can be, before anything is measured.

    Raises:
        PlotError: no picture's name, or no folder that can be written to.
    """
    if path.is_dir() or path.suffix not in (".png", ".pdf", ".svg"):
        raise PlotError(f"--plot names a .png, .pdf or .svg file, not {path}")
    if not path.absolute().parent.is_dir():
        raise PlotError(f"there is no folder {path.parent} to write the plot to; choose --plot")
    try:
        with tempfile.TemporaryFile(dir=path.absolute().parent):
            pass
    except OSError as error:
        raise PlotError(f"cannot write to {path.parent}: {error}; choose --plot") from None


def plot_results(found: Sequence[Result], device: str, path: Path) -> None:
    """Draw the time of every candidate of each program, the winner, the heuristic and the roof.

    Raises:
        PlotError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = [result for result in found if result.winner is not None]
    columns = min(_COLUMNS, len(drawn))
    lines = -(-len(drawn) // columns)
    figure, panels = pyplot.subplots(
        lines, columns, figsize=(5 * columns, 3.6 * lines), squeeze=False
    )
    for axes in panels.flat[len(drawn) :]:
        axes.axis("off")
    templates = sorted({row.template for result in drawn for row in result.rows})
    colours = {name: f"C{number % 10}" for number, name in enumerate(templates)}
    for axes, result in zip(panels.flat, drawn, strict=False):
        _draw(axes, result, colours)
    figure.suptitle(f"every candidate on {drawn[0].problem.target.name or device}", fontsize=10)
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise PlotError(f"cannot write the plot to {path}: {error}; choose --plot") from None
    finally:
        pyplot.close(figure)


def _draw(axes: Any, result: Result, colours: dict[str, str]) -> None:
    right: list[Row] = sorted(
        (row for row in result.rows if row.ms is not None), key=lambda row: row.ms or 0.0
    )
    for name, colour in colours.items():
        mine = [(place, row.ms) for place, row in enumerate(right) if row.template == name]
        if mine:
            axes.plot(*zip(*mine, strict=True), ".", color=colour, label=name)
    best, base = result.winner, result.heuristic
    assert best is not None
    axes.plot(right.index(best), best.ms, "*", color="black", markersize=11, label="winner")
    if base is not None and base.ms is not None:
        axes.axhline(base.ms, color="grey", linestyle="--", label="heuristic")
    if best.floor_ms is not None:
        axes.axhline(best.floor_ms, color="black", label="roof: a copy of the same bytes")
    axes.set_yscale("log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(str(result.problem), fontsize=8)
    axes.set_xlabel("candidates, the fastest first")
    axes.set_ylabel("ms")
    axes.legend(fontsize=6)
