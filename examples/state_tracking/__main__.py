"""``python -m examples.state_tracking``: a table, or one run."""

import math
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from typer.core import TyperGroup

from examples.state_tracking import plots
from examples.state_tracking.lengths import LENGTHS, over_lengths
from examples.state_tracking.measured import Measured
from examples.state_tracking.models import BLOCKS
from examples.state_tracking.presets import PRESETS, TABLE2, TABLE3, settings_of
from examples.state_tracking.report import HEAD, gather, markdown, rows, write
from examples.state_tracking.results import about, store, summary, table
from examples.state_tracking.settings import Settings
from examples.state_tracking.speed import speeds
from examples.state_tracking.training import Run, train

# What torch says on a CPU, where it has no error of its own for it.
_NO_MEMORY = ("allocate memory", "Storage size calculation overflowed")


class _Commands(TyperGroup):
    """Commands that say in a line what no command can do anything about."""

    def invoke(self, ctx: typer.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise typer.BadParameter(f"a file cannot be read or written ({error})") from None
        except (MemoryError, RuntimeError) as error:
            known = isinstance(error, MemoryError | torch.OutOfMemoryError)
            if not known and not any(said in str(error) for said in _NO_MEMORY):
                raise
            raise typer.BadParameter(
                f"there is not enough memory ({str(error).partition('. ')[0]}); take fewer runs "
                f"at once, smaller batches or sizes, or shorter sequences"
            ) from None


app = typer.Typer(cls=_Commands, no_args_is_help=True, add_completion=False)
_console = Console()
_RUNS = Path("state_tracking_runs")
_TABLE2_TASKS = ",".join(TABLE2)

Tasks = Annotated[str, typer.Option(help="Tasks, separated by commas.")]
Models = Annotated[str, typer.Option(help=f"Models, separated by commas: {', '.join(BLOCKS)}.")]
Seeds = Annotated[int, typer.Option(min=1, help="Seeds of each, from 0 on.")]
Preset = Annotated[str, typer.Option(help=f"Sizes and steps: {' or '.join(PRESETS)}.")]
Out = Annotated[Path, typer.Option(help="Folder of the runs, which go on where they were left.")]
Device = Annotated[str, typer.Option(help="cuda, or cpu; by default what is there.")]
Together = Annotated[int, typer.Option(min=1, help="Runs that train at once.")]
Steps = Annotated[int, typer.Option(min=0, help="Steps instead of the preset's; 0 for its own.")]
Limit = Annotated[
    float, typer.Option(min=0, help="Seconds after which no step is begun; 0 for none.")
]
Solved = Annotated[bool, typer.Option("--solved", help="Only of runs that are right.")]
Changes = Annotated[
    list[str], typer.Option("--set", help="Another setting, as rate=1e-3 or sizes.layers=1.")
]


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
        limit: Limit = 0.0,
        changes: Changes = [],  # noqa: B006
    ) -> None:
        where = _device(device)
        if steps:
            changes = [f"steps={steps}", *changes]
        planned = _planned(tasks.split(","), models.split(","), seeds, preset, changes)
        _table(title, planned, out, where, together, limit or math.inf)


_table_command(
    "table2",
    "The published tasks, trained on 3 to 40 tokens and tested on 40 to 256.",
    "Accuracy on 40 to 256 tokens, %",
    _TABLE2_TASKS,
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
    folder: Annotated[Path, typer.Argument(help="Of a run, or of several.")] = _RUNS,
    longest: Annotated[int, typer.Option(min=LENGTHS[0], help="Tokens at most.")] = LENGTHS[-1],
    solved: Solved = False,
    device: Device = "",
) -> None:
    """Accuracy of trained runs on sequences of 40 to 100 000 tokens."""
    found, where = [], _device(device)
    for run in _opened_in(folder, where, solved):
        measured = over_lengths(run, [n for n in LENGTHS if n <= longest])
        found.append((run.settings.name, measured))
        shares = ", ".join(f"{n}: {100 * r:.1f} % of {c}" for n, (r, c) in measured.items())
        _console.print(f"{run.settings.name}: {shares}", soft_wrap=True)
        rows = [
            {"run": name, "length": length, "accuracy": right, "sequences": count}
            for name, of_run in found
            for length, (right, count) in of_run.items()
        ]
        store(about(where) | {"lengths": rows}, folder / "lengths.json")
    plots.over_lengths(found, folder / "lengths.png")
    _console.print(f"stored: {folder / 'lengths.json'}, {folder / 'lengths.png'}", soft_wrap=True)


@app.command()
def automaton(
    folder: Annotated[Path, typer.Argument(help="Of a run, or of several.")] = _RUNS,
    device: Device = "",
    solved: Solved = False,
) -> None:
    """The automaton that runs have learned, beside the true one: read from the maps of a layer of
    PD-SSM, and of other models learned from their answers.
    """
    where = _device(device)
    # It is of the suite's and the examples' dependencies, not of the package's.
    if find_spec("aalpy") is None:
        raise typer.BadParameter("automata take AALpy, which is not installed; pip install aalpy")
    found = []
    for run in _opened_in(folder, where, solved):
        try:
            found.append({"run": run.settings.name} | _automaton_of(run))
        except ValueError as error:
            _console.print(f"{run.settings.name}: {error}", soft_wrap=True)
    store(about(where) | {"automata": found}, folder / "automata.json")
    _console.print(f"stored: {folder / 'automata.json'}", soft_wrap=True)


def _automaton_of(run: Run) -> dict[str, Any]:
    """Find, tell and draw the automaton of a run."""
    # Where AALpy is not installed the other commands work all the same.
    from examples.state_tracking.automaton import has_maps, read_out
    from examples.state_tracking.drawing import draw
    from examples.state_tracking.queries import learn

    facts: dict[str, Any] = {}
    shortest = run.settings.shortest
    read = read_out(run) if has_maps(run) else None
    if read is not None and read.agreement < 1:
        # Magnitudes tell what maps do not, as where a one that is nearly gone is not counted on.
        _console.print(
            f"{run.settings.name}: its maps tell {100 * read.agreement:.1f} % of its answers, so "
            "it is asked for them",
            soft_wrap=True,
        )
        facts["agreement"], read = read.agreement, None
    if read is not None:
        graphs = [("read", read.read), ("as small as can be", read.small), ("true", read.true)]
        difference = read.difference
        proved = f"it is the task's, so right for sequences of any length from {shortest} on"
        # JSON has no number for a one that stays.
        half_life = read.half_life if math.isfinite(read.half_life) else None
        left = "nothing of its state is lost"
        if half_life is not None:
            left = f"half of its state is left after {half_life:.3g} tokens"
        told = f"the model answers as it for all sequences of a sample, and {left}"
        facts = {"agreement": read.agreement, "half_life": half_life}
    else:
        asked = learn(run)
        graphs = [("learned from its answers", asked.learned), ("true", asked.true)]
        difference = asked.difference
        proved = f"it is the task's from {shortest} tokens on"
        told = f"the model answers as it for all of {asked.words} words drawn at random"
        if asked.wrong is not None:
            told = f"after {' '.join(map(str, asked.wrong))} the model answers otherwise"
        facts |= {"words": asked.words, "wrong": asked.wrong}
    sizes = {named: machine.size - 1 for named, machine in graphs}
    verdict = proved
    if difference is not None:
        verdict = f"after {' '.join(map(str, difference))} it answers otherwise"
    counted = ", ".join(f"{size} {named}" for named, size in sizes.items())
    _console.print(f"{run.settings.name}: states: {counted}; {verdict}; {told}", soft_wrap=True)
    draw(graphs, run.folder / "automaton.png")
    _console.print(f"stored: {run.folder / 'automaton.png'}", soft_wrap=True)
    return {"states": sizes, "difference": difference} | facts


def _counts(told: str) -> list[int]:
    """Runs at once, and one of them, in order."""
    parts = told.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise typer.BadParameter(f"{told!r} is no list of numbers from 1 on, such as 1,2,4")
    return sorted({1, *map(int, parts)})


@app.command()
def speed(
    models: Models = "pdssm,flash",
    counts: Annotated[str, typer.Option(help="Runs at once, from 1 on.")] = "1,2,4,8",
    tasks: Tasks = _TABLE2_TASKS,
    preset: Preset = "published",
    steps: Annotated[int, typer.Option(min=1, help="Steps that are timed.")] = 100,
    out: Out = _RUNS,
    device: Device = "",
    changes: Changes = [],  # noqa: B006
) -> None:
    """How long a step takes, of one run and of several at once."""
    where, found, numbers = _device(device), [], _counts(counts)
    names = tasks.split(",")
    for model in models.split(","):
        planned = _planned(names, [model], -(-numbers[-1] // len(names)), preset, changes)
        for line in speeds(planned, numbers, steps, where):
            found.append(line)
            each = 1000 * line.seconds / line.together
            _console.print(
                f"{model}, {line.together} at once: {1000 * line.seconds:.3f} ms a step of all, "
                f"{each:.3f} ms of each, gain {line.gain:.2f}, prepared in {line.prepared:.1f} s; "
                f"100 000 steps of each in {line.seconds * 1e5 / 60:.1f} min",
                soft_wrap=True,
            )
    store(about(where) | {"speed": [line._asdict() for line in found]}, out / "speed.json")
    _console.print(f"stored: {out / 'speed.json'}", soft_wrap=True)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Of tables, lengths and automata.")],
    out: Annotated[Path, typer.Option(help="The file; pictures go beside it.")],
    note: Annotated[str, typer.Option(help="What else is to be known of the runs.")] = "",
) -> None:
    """Folders' results, automata and lengths in one file, as pictures and as a table."""
    try:
        found = gather(folders, note)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    write(found, out)
    for model in dict.fromkeys(run["settings"]["model"] for run in found["runs"]):
        of_model = [run for run in found["runs"] if run["settings"]["model"] == model]
        plots.curves(found | {"runs": of_model}, out.with_name(f"{out.stem}-{model}.png"))
    plots.times(found, out.with_name(f"{out.stem}-times.png"))
    if "lengths" in found:
        measured: dict[str, dict[int, tuple[float, int]]] = {}
        for line in found["lengths"]["lengths"]:
            of_run = measured.setdefault(line["run"], {})
            of_run[line["length"]] = line["accuracy"], line["sequences"]
        plots.over_lengths(list(measured.items()), out.with_name(f"{out.stem}-lengths.png"))
    _console.print(markdown(HEAD, rows(found)), soft_wrap=True, markup=False)


def _opened_in(folder: Path, device: torch.device, solved: bool) -> Iterator[Run]:
    """The runs that have been trained in a folder, or the one that it is of, one by one, or those
    of them that are right; none is an error.
    """
    own = [folder] if (folder / "checkpoint.pt").exists() else []
    places = own or sorted(place.parent for place in folder.glob("*/checkpoint.pt"))
    if not places:
        raise typer.BadParameter(f"there is no checkpoint in {folder}; train a table first")
    passed = 0
    for place in places:
        run = _opened(place, device)
        if solved and not run.is_solved:
            passed += 1
        else:
            yield run
    if passed == len(places):
        raise typer.BadParameter(
            f"no run in {folder} has ended above {100 * run.settings.enough:.6g} %; go on with "
            f"them, or leave --solved out"
        )


def _opened(place: Path, device: torch.device) -> Run:
    """The run in a folder."""
    try:
        settings = Settings.read(place)
        try:
            settings.check()
        except ValueError as error:
            raise ValueError(f"{place / 'settings.json'} is of no run: {error}") from None
        return Run(settings, place, device)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None


def _planned(
    tasks: list[str], models: list[str], seeds: int, preset: str, changes: list[str]
) -> list[Settings]:
    """The runs of a table, checked before any is begun."""
    try:
        planned = [
            settings_of(preset, task, model, seed).changed(changes)
            for seed in range(seeds)
            for model in models
            for task in tasks
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
    title: str,
    planned: list[Settings],
    out: Path,
    where: torch.device,
    together: int,
    seconds: float,
) -> None:
    """Train the runs, and show and store what they gave."""
    together = min(together, len(planned))
    try:
        runs = (Run(s, out / s.name, where) for s in planned)
        done = _train(runs, out, together, seconds)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    except OSError as error:
        raise typer.BadParameter(
            f"{out} cannot have runs ({error}); name another folder by --out"
        ) from None
    except KeyboardInterrupt:
        _console.print(
            "interrupted; the same command goes on from the last measurement of each run",
            soft_wrap=True,
        )
        raise typer.Exit(130) from None
    if not all(run.is_done for run in done) or len(done) < len(planned):
        _console.print(
            "the time is up; the same command goes on from the last measurement of each run",
            soft_wrap=True,
        )
    if not done:
        return
    plots.curves(_stored(done, together, out), out / "curves.png")
    _console.print(table(title, done))
    _console.print(f"stored: {out / 'results.json'}, {out / 'curves.png'}", soft_wrap=True)


def _stored(runs: list[Run], together: int, out: Path) -> dict[str, Any]:
    found = summary(runs, together)
    store(found, out / "results.json")
    return found


def _train(runs: Iterable[Run], out: Path, together: int, seconds: float) -> list[Run]:
    """Train runs, under a progress bar each in a terminal, and store what they give."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=_console) as progress:
        bars: dict[str, TaskID] = {}
        begun: list[Run] = []

        def each() -> Iterator[Run]:
            for run in runs:
                name, steps = run.settings.name, run.settings.steps
                bars[name] = progress.add_task(name, total=steps, completed=run.step)
                begun.append(run)
                yield run

        def told(run: Run, line: Measured) -> None:
            said = f"{run.settings.name}: {100 * line.accuracy:.1f} %, loss {line.loss:.3f}"
            progress.update(bars[run.settings.name], completed=line.step, description=said)
            if not _console.is_terminal:
                _console.print(f"{line.step} {said}, {line.seconds:.1f} s", soft_wrap=True)
            if run.is_done:
                _stored(begun, together, out)

        return train(each(), told, together=together, seconds=seconds)


def _device(name: str) -> torch.device:
    # On a GPU matrix products in TF32; kernels of scans and maps are in float32 all the same.
    torch.set_float32_matmul_precision("high")
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
