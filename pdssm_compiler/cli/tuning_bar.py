"""How far the tuner is: a bar with the best time so far and the heuristic's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pdssm_compiler.runtime.tuning import race
from pdssm_compiler.runtime.tuning.problem import TuningProblem


@contextmanager
def tuning_bar(console: Console) -> Iterator[Callable[[race.Progress], None]]:
    """Gives the function to call as the tuner goes on. Where nobody watches, a line when a program
    is begun, and one with what was found when the next is, or at the end, however it comes.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[times]}", markup=False),
    )
    quiet = not console.is_terminal
    with Progress(*columns, console=console, disable=quiet) as bars:
        tasks: dict[TuningProblem, race.Progress] = {}
        numbers = {}

        def told(progress: race.Progress) -> None:
            problem = progress.problem
            if problem not in tasks:
                if quiet and tasks:
                    console.print(found(tasks), markup=False, highlight=False, soft_wrap=True)
                numbers[problem] = bars.add_task(str(problem), total=1, times="")
                if quiet:
                    console.print(f"tuning {problem}", markup=False, highlight=False)
            if quiet and progress.what.startswith("waiting"):
                # It is told once of each process, and may take as long as the other takes.
                console.print(progress.what, markup=False, highlight=False)
            tasks[problem] = progress
            bars.update(
                numbers[problem],
                completed=progress.done,
                total=max(1, progress.planned),
                times=times_of(progress),
            )

        try:
            yield told
        finally:
            if quiet and tasks:
                console.print(found(tasks), markup=False, highlight=False, soft_wrap=True)


def found(tasks: dict[TuningProblem, race.Progress]) -> str:
    """What was measured of the last program."""
    *_, last = tasks.values()
    if not last.done:
        return f"nothing measured of {last.problem}"
    times = ", ".join(_times(last)) or "none of them right"
    return f"candidates measured of {last.problem}: {last.done}, {times}"


def times_of(progress: race.Progress) -> str:
    """The best time so far, the heuristic's, and what is being done."""
    return ", ".join([*_times(progress), progress.what])


def _times(progress: race.Progress) -> list[str]:
    return [
        f"{name} {ms:.4g} ms"
        for name, ms in (("best", progress.best_ms), ("heuristic", progress.heuristic_ms))
        if ms is not None
    ]
