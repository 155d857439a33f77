"""``python -m examples.state_tracking``: a table, or one run."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from examples.state_tracking import plots
from examples.state_tracking.lengths import LENGTHS, over_lengths
from examples.state_tracking.models import BLOCKS
from examples.state_tracking.presets import PRESETS, TABLE2, TABLE3, settings_of
from examples.state_tracking.results import store, summary, table
from examples.state_tracking.settings import Settings
from examples.state_tracking.training import Measured, Run, train

app = typer.Typer(no_args_is_help=True, add_completion=False)
_console = Console()
_RUNS = Path("state_tracking_runs")

Tasks = Annotated[str, typer.Option(help="Tasks, separated by commas.")]
Models = Annotated[str, typer.Option(help=f"Models, separated by commas: {', '.join(BLOCKS)}.")]
Seeds = Annotated[int, typer.Option(min=1, help="Seeds of each, from 0 on.")]
Preset = Annotated[str, typer.Option(help=f"Sizes and steps: {' or '.join(PRESETS)}.")]
Out = Annotated[Path, typer.Option(help="Folder of the runs, which go on where they were left.")]
Device = Annotated[str, typer.Option(help="cuda, or cpu; by default what is there.")]
Together = Annotated[int, typer.Option(min=1, help="Runs that train at once.")]
Steps = Annotated[int, typer.Option(min=0, help="Steps instead of the preset's; 0 for its own.")]


def _table_command(name: str, about: str, title: str, tasks: str, models: str) -> None:
    """A command that trains a table, with what it trains if nothing is told."""

    @app.command(name, help=about)
    def command(
        tasks: Tasks = tasks,
        models: Models = models,
        seeds: Seeds = 1,
        preset: Preset = "published",
        out: Out = _RUNS,
        device: Device = "",
        together: Together = 1,
        steps: Steps = 0,
    ) -> None:
        where = _device(device)
        planned = _planned(tasks.split(","), models.split(","), seeds, preset, steps)
        _table(title, planned, out, where, together)


_table_command(
    "table2",
    "The published tasks, trained on 3 to 40 tokens and tested on 40 to 256.",
    "Accuracy on 40 to 256 tokens, %",
    ",".join(TABLE2),
    "pdssm,flash",
)
_table_command(
    "table3",
    "Word problems of A5 and S5, by one layer with 32 maps.",
    "Word problems, accuracy on 40 to 256 tokens, %",
    ",".join(TABLE3),
    "pdssm",
)


@app.command()
def lengths(
    folder: Annotated[Path, typer.Argument(help="Of the runs.")] = _RUNS,
    longest: Annotated[int, typer.Option(min=1, help="Tokens at most.")] = LENGTHS[-1],
    device: Device = "",
) -> None:
    """Accuracy of trained runs on sequences of 40 to 100 000 tokens."""
    found = []
    for place in sorted(_runs_in(folder)):
        run = _opened(place, _device(device))
        measured = over_lengths(run, [n for n in LENGTHS if n <= longest])
        found.append((run.settings.name, measured))
        shares = ", ".join(f"{n}: {100 * r:.1f} % of {c}" for n, (r, c) in measured.items())
        _console.print(f"{run.settings.name}: {shares}", soft_wrap=True)
    plots.over_lengths(found, folder / "lengths.png")
    _console.print(f"stored: {folder / 'lengths.png'}", soft_wrap=True)


@app.command()
def automaton(
    folder: Annotated[Path, typer.Argument(help="Of a run, or of several.")] = _RUNS,
    device: Device = "",
) -> None:
    """The automaton that runs of one layer have learned, beside the true one."""
    # AALpy is of the tests' and examples' dependencies, not of the package's.
    from examples.state_tracking.automaton import read_out
    from examples.state_tracking.drawing import draw

    places = [folder] if (folder / "checkpoint.pt").exists() else sorted(_runs_in(folder))
    for place in places:
        run = _opened(place, _device(device))
        try:
            found = read_out(run)
        except ValueError as error:
            _console.print(f"{run.settings.name}: {error}", soft_wrap=True)
            continue
        sizes = ", ".join(str(m.size - 1) for m in (found.read, found.small, found.true))
        if found.difference is None:
            verdict = "it is the task's, so right for sequences of any length"
        else:
            verdict = f"after {' '.join(map(str, found.difference))} it answers otherwise"
        _console.print(
            f"{run.settings.name}: states read, at least, of the task: {sizes}; {verdict}; the "
            f"model answers as it for {100 * found.agreement:.1f} % of short sequences, and half "
            f"of its state is left after {found.half_life:.3g} tokens",
            soft_wrap=True,
        )
        graphs = [("read", found.read), ("as small as can be", found.small), ("true", found.true)]
        draw(graphs, place / "automaton.png")
        _console.print(f"stored: {place / 'automaton.png'}", soft_wrap=True)


def _runs_in(folder: Path) -> list[Path]:
    """Folders of runs that have been trained; none is an error."""
    found = [place.parent for place in folder.glob("*/checkpoint.pt")]
    if not found:
        raise typer.BadParameter(f"there is no checkpoint in {folder}; train a table first")
    return found


def _opened(place: Path, device: torch.device) -> Run:
    """The run in a folder."""
    try:
        return Run(Settings.read(place), place, device)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None


def _planned(
    tasks: list[str], models: list[str], seeds: int, preset: str, steps: int
) -> list[Settings]:
    """The runs of a table, checked before any is begun."""
    try:
        planned = [
            settings_of(preset, task, model, seed).for_steps(steps)
            for model in models
            for task in tasks
            for seed in range(seeds)
        ]
        for each in planned:
            each.check()
        names = [each.name for each in planned]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"{', '.join(twice)} more than once; name each task and model a single time"
            )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return planned


def _table(
    title: str, planned: list[Settings], out: Path, where: torch.device, together: int
) -> None:
    """Train the runs, and show and store what they gave."""
    done: list[Run] = []
    for first in range(0, len(planned), together):
        try:
            runs = [Run(s, out / s.name, where) for s in planned[first : first + together]]
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        except OSError as error:
            raise typer.BadParameter(
                f"{out} cannot have runs ({error}); name another folder by --out"
            ) from None
        try:
            _train(runs)
        except KeyboardInterrupt:
            _console.print(
                "interrupted; the same command goes on from the last measurement of each run",
                soft_wrap=True,
            )
            raise typer.Exit(130) from None
        done += runs
        found = summary(done, together)
        store(found, out / "results.json")
        plots.curves(found, out / "curves.png")
    _console.print(table(title, done))
    _console.print(f"stored: {out / 'results.json'}, {out / 'curves.png'}", soft_wrap=True)


def _train(runs: list[Run]) -> None:
    """Train runs under a progress bar each."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=_console) as progress:
        bars = {
            run.settings.name: progress.add_task(
                run.settings.name, total=run.settings.steps, completed=run.step
            )
            for run in runs
        }

        def told(run: Run, line: Measured) -> None:
            said = f"{run.settings.name}: {100 * line.accuracy:.1f} %, loss {line.loss:.3f}"
            progress.update(bars[run.settings.name], completed=line.step, description=said)

        train(runs, told)


def _device(name: str) -> torch.device:
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found: torch.device | None = torch.empty((), device=name).device
    # A torch without CUDA asserts that there is some.
    except (RuntimeError, AssertionError):
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise typer.BadParameter(
            f"there is no device {name!r} here; name cpu, or cuda where there is a GPU, or leave "
            f"--device out"
        )
    return found


if __name__ == "__main__":
    app()
