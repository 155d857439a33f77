"""``pdssm-compiler tune``: the fastest schedule of each program, found by measuring."""

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from pdssm_compiler.cli import options as o
from pdssm_compiler.cli.consoles import messages, results
from pdssm_compiler.cli.interruption import Interruption
from pdssm_compiler.ir.errors import PdssmError
from pdssm_compiler.spec import ScanSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from pdssm_compiler.runtime.tuning.problem import TuningProblem
    from pdssm_compiler.runtime.tuning.race import Progress, Result
    from pdssm_compiler.workloads import AnyWorkload, Workload

# Options of one specification's calls.
_OF_A_SPEC = (
    "batch", "length", "heads", "initial_state", "final_state", "reverse", "packed", "noise",
)  # fmt: skip


class Direction(StrEnum):
    """Which programs."""

    forward = "forward"
    backward = "backward"
    active = "active"
    dense = "dense"
    step = "step"
    mixture = "mixture"
    mixture_gradient = "mixture_gradient"
    all = "all"


class EffortLevel(StrEnum):
    """How hard to try."""

    none = "none"
    quick = "quick"
    full = "full"


class OutputError(PdssmError, OSError):
    """The plot or a log could not be written."""


@o.takes_spec
def tune(
    context: typer.Context,
    spec: ScanSpec | None = None,
    spec_file: Annotated[
        list[Path] | None,
        typer.Option(
            help="Workloads: TOML, a [[workload]] each, or a JSON object a line; may be repeated."
        ),
    ] = None,
    suite: Annotated[
        bool, typer.Option("--suite", help="The shapes of the benchmarks' suite.")
    ] = False,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch", "-B", min=1, help="B, sequences.", show_default="8, packed sequences 1"
        ),
    ] = None,
    length: o.Length = 4096,
    heads: o.Heads = 32,
    initial_state: o.InitialState = False,
    final_state: o.FinalState = False,
    reverse: o.Reverse = False,
    packed: o.Packed = False,
    noise: Annotated[
        bool, typer.Option("--noise", help="Mixtures with noise, of mixture_pd_scan.")
    ] = False,
    direction: Annotated[
        list[Direction] | None,
        typer.Option(
            help="Which programs; may be given several times. active, dense: the backward of "
            "flash_pd_scan by that surrogate. mixture, mixture_gradient: the choice of "
            "mixture_pd_scan's maps (--map-source token and -K), and its gradient; dense is then "
            "its scan's backward. all: those there are. Without it, forward and backward."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1.")] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="A GPU that is not here, by its name (sm_90, h200, …) or a file that describes "
            "it: nothing is measured, a cost model fitted to the logs of other GPUs chooses."
        ),
    ] = None,
    effort: Annotated[
        EffortLevel | None,
        typer.Option(
            help="none says what calls take, and measures nothing.", show_default="quick"
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds, starting and compiling included; what the heuristic says is measured "
            "in any case.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that compile; as many as processors.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Threads of a CPU's kernels; torch's own number. Calls with as many follow.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Where the plot goes.", show_default="pdssm-tune.png")
    ] = None,
    ship: Annotated[
        Path | None,
        typer.Option(help="A folder of logs, such as autotune_logs, to put the best rows into."),
    ] = None,
    commit: Annotated[
        str | None, typer.Option(help="Where the checkout has no history to ask.")
    ] = None,
) -> None:
    """Measure candidates of all backends for a specification (--state-size), a file of them
    (--spec-file) or the suite (--suite); calls of these sizes take the winners from then on. Every
    outcome is kept as soon as it is known: after an interruption the same command goes on. With
    --target, choose for a GPU that is not here by a cost model, without measuring.
    """
    from pdssm_compiler.cli.device import device_of
    from pdssm_compiler.cli.tune_report import check_plot, plot_results, show
    from pdssm_compiler.cli.tuning_bar import tuning_bar
    from pdssm_compiler.runtime.tuning.tuner import effort_of, log_of
    from pdssm_compiler.tuning import tune as tune_workloads
    from pdssm_compiler.workloads import Workload

    if spec is None:
        _refuse_options(context)
    one = None
    asked = _directions(direction)
    if spec is not None:
        batch = batch or (1 if packed else 8)
        one = Workload(
            spec, batch, length, heads, "", initial_state, final_state, asked, reverse, packed,
            noise,
        )  # fmt: skip
    if target is not None:
        _refuse(
            device=device, effort=effort, budget=budget, workers=workers, threads=threads,
            plot=plot, ship=ship,
        )  # fmt: skip
        gpu = torch.device("cuda")
        _predict(_workloads(one, spec_file, suite, gpu, asked), target, commit)
        return
    where = device_of(device)
    if threads is not None:
        _use_threads(threads)
    plot = plot or Path("pdssm-tune.png")
    check_plot(plot)
    if ship is not None:
        _check_ship(ship)
    workloads = _workloads(one, spec_file, suite, where, asked)
    level = (effort or EffortLevel.quick).value
    console = results()
    begun: dict[TuningProblem, Progress] = {}
    interruption = Interruption()
    try:
        with interruption, tuning_bar(messages()) as bar:

            def told(progress: "Progress") -> None:
                interruption.check()
                begun[progress.problem] = progress
                bar(progress)

            found = tune_workloads(
                workloads,
                device=where,
                effort=level,
                budget=budget,
                workers=workers,
                commit=commit,
                told=told,
            )
    except KeyboardInterrupt:
        messages().print(
            "interrupted; what was measured is in the log: run the same command again to go on",
            soft_wrap=True,
        )
        problems = [problem for each in workloads for problem in each.problems(where)]
        measured = [each for each in problems if each in begun and begun[each].done]
        messages().print(f"something was measured of {len(measured)} of {len(problems)} programs")
        _tell_unmeasured([each for each in problems if each not in measured], messages())
        raise typer.Exit(interruption.status) from None
    show(found, where, console)
    if any(not result.complete for result in found):
        limit = effort_of(level).limit
        what = "the budget" if budget is not None else f"{level}, {limit:g} s a program,"
        console.print(
            f"{what} ended the search: run the same command again to go on", soft_wrap=True
        )
    untried = [result.problem for result in found if result.untried]
    if untried and budget is not None:
        console.print(
            f"of {len(untried)} of {len(found)} programs nothing was measured, for the budget of "
            f"{budget:g} s, a few of which each needs to compile, was over: give more",
            soft_wrap=True,
        )
        _tell_unmeasured(untried, console)
    for path in dict.fromkeys(log_of(result.problem) for result in found):
        if path.exists():
            console.print(f"log: {path}", markup=False, soft_wrap=True)
    if any(result.winner for result in found):
        plot_results(found, str(where), plot)
        console.print(f"plot: {plot}", markup=False, soft_wrap=True)
    if ship is not None:
        _ship(found, ship)


def _tell_unmeasured(problems: "Sequence[TuningProblem]", console: "Console") -> None:
    for problem in problems:
        console.print(f"not measured: {problem}", markup=False, highlight=False, soft_wrap=True)


def _refuse_options(context: typer.Context) -> None:
    """Refuse what tells of one specification where none is told.

    Raises:
        ArgumentError: one is given.
    """
    from pdssm_compiler.runtime.errors import ArgumentError

    told = {name: f"--{name.replace('_', '-')}" for name in (*o.SPEC_OPTIONS, *_OF_A_SPEC)}
    for name, option in told.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise ArgumentError(
                f"{option} tells of one specification: give --state-size as well, or leave it "
                f"out, as --suite and the workloads of --spec-file have their own"
            )


def _refuse(**options: object) -> None:
    """Refuse what only a measurement has.

    Raises:
        ArgumentError: one is given.
    """
    from pdssm_compiler.runtime.errors import ArgumentError

    for name, given in options.items():
        if given is not None:
            raise ArgumentError(
                f"--{name} is for what is measured, and --target measures nothing; leave one out"
            )


def _predict(workloads: "Sequence[AnyWorkload]", target: str, commit: str | None) -> None:
    """Choose for a GPU that is not here, and say what was chosen."""
    from pdssm_compiler.cli.prediction_report import show_predictions
    from pdssm_compiler.runtime.tuning.predict import prediction_file
    from pdssm_compiler.tuning import predict

    found = predict(workloads, target, commit=commit)
    console = results()
    show_predictions(found, console)
    for prediction in found:
        if prediction.rows:
            path = prediction_file(prediction.problem)
            console.print(f"predicted: {path}", markup=False, soft_wrap=True)


def _directions(asked: list[Direction] | None) -> tuple[str, ...]:
    from pdssm_compiler.workloads import DIRECTIONS

    if asked is None:
        return ("forward", "backward")
    if Direction.all in asked:
        return DIRECTIONS
    return tuple(name for name in DIRECTIONS if name in asked)


def _workloads(
    one: "Workload | None",
    spec_files: "Sequence[Path] | None",
    suite: bool,
    where: torch.device,
    directions: tuple[str, ...],
) -> "Sequence[AnyWorkload]":
    """What one of the three ways to say it says.

    Raises:
        ArgumentError: none or several of them.
    """
    from pdssm_compiler import workloads
    from pdssm_compiler.runtime.errors import ArgumentError
    from pdssm_compiler.workload_files import read_workloads

    if sum((one is not None, bool(spec_files), suite)) != 1:
        raise ArgumentError("name one of --state-size, --spec-file and --suite")
    if spec_files:
        return [each for path in spec_files for each in read_workloads(path, directions)]
    if suite:
        return workloads.suite(where, directions)
    assert one is not None
    return [workloads.those_there_are(one) if directions == workloads.DIRECTIONS else one]


def _use_threads(threads: int) -> None:
    """Have kernels run by so many threads.

    Raises:
        ArgumentError: more than there are processors.
    """
    from pdssm_compiler.runtime.errors import ArgumentError

    most = os.cpu_count() or 1
    if threads > most:
        raise ArgumentError(f"--threads is at most {most}, the processors here, not {threads}")
    torch.set_num_threads(threads)


def _check_ship(folder: Path) -> None:
    """Find out before anything is measured.

    Raises:
        OutputError: nothing can be put there.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise OutputError(f"cannot write to {folder}; choose --ship")


def _ship(found: "list[Result]", folder: Path) -> None:
    from pdssm_compiler.runtime.tuning.shipping import ship
    from pdssm_compiler.runtime.tuning.tuner import log_of

    programs = {log_of(result.problem): result.problem.program for result in found}
    for log, program in programs.items():
        try:
            path = ship(log, program, folder)
        except OSError as error:
            raise OutputError(f"cannot write to {folder}: {error}; choose --ship") from None
        told = f"shipped: {path}" if path else f"nothing to ship in {log}"
        results().print(told, markup=False, soft_wrap=True)
