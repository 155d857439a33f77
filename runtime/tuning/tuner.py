"""Races of several problems, one after the other, within a budget."""

import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from pdssm_compiler.ir.errors import shown
from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.plan import plans
from pdssm_compiler.runtime.tuning import resolve
from pdssm_compiler.runtime.tuning.alone import Place, Wanted, alone
from pdssm_compiler.runtime.tuning.effort import EFFORTS, Effort
from pdssm_compiler.runtime.tuning.isolated import Isolated
from pdssm_compiler.runtime.tuning.log import (
    file_name,
    folder_name,
    keep_program,
    user_logs,
)
from pdssm_compiler.runtime.tuning.precompile import COMPILE_SECONDS, Compilers, processors
from pdssm_compiler.runtime.tuning.problem import TuningProblem
from pdssm_compiler.runtime.tuning.race import MEASURE_SECONDS, Progress, Race, Result, Told

# A deadline that is over.
_PASSED = -math.inf


@dataclass(frozen=True)
class Limits:
    """When something is taken to hang, in seconds.

    Attributes:
        compile_seconds: a compiler.
        measure_seconds: a candidate that is checked and timed.
    """

    compile_seconds: float = COMPILE_SECONDS
    measure_seconds: float = MEASURE_SECONDS


def tune_problems(
    problems: Sequence[TuningProblem],
    effort: str | Effort = "quick",
    *,
    budget: float | None = None,
    workers: int | None = None,
    limits: Limits | None = None,
    commit: str | None = None,
    told: Told = lambda progress: None,
    wanted: Wanted = lambda problem: True,
    keep_choices: bool = False,
) -> list[Result]:
    """Measure what the logs do not have of some problems; later calls of their sizes take the
    winners. Of several processes one measures at a time, and none what another has.

    Args:
        problems: what to tune.
        effort: ``none``, ``quick``, ``full``, or a level of your own.
        budget: seconds from now, also those that starting processes, waiting for others and
            compiling take; each problem has an equal share of what the ones before it have left.
            What is being compiled or measured at the end is given up, but of a problem that is
            begun, what the heuristic says is measured in any case. None for no end.
        workers: processes that compile; None for as many as there are processors.
        limits: when something is taken to hang.
        commit: of this package, where it has no history to ask.
        told: called as it goes on.
        wanted: asked about each problem when no other process tunes it; one that is not wanted
            any more has no result.
        keep_choices: whether calls of sizes that this process has chosen for go on with that.

    Raises:
        ArgumentError: an unknown effort, or a log that cannot be written.
        NoTemplateError: nothing can run a program there.
        TuningTimeoutError: another process tunes the same, and does not go on.
    """
    level, limits = effort_of(effort), limits or Limits()
    results: list[Result] = []
    roofs: dict[str, float | None] = {}
    end = None if budget is None else time.monotonic() + budget
    if level.candidates:
        _check_writable()
    compilers = Compilers(
        processors() if workers is None else max(1, workers), limits.compile_seconds
    )
    try:
        with compilers, Isolated() as worker:
            for number, problem in enumerate(problems):
                log = log_of(problem)
                request = _request(problem, level, budget)
                turn = alone(problem, log, request, wanted, told)
                with turn if level.candidates else nullcontext(Place(told)) as place:
                    if place is None:
                        continue
                    if level.candidates:
                        keep_program(user_logs(), problem.program)
                    # Nothing is begun of what another process was asked for as well and has done.
                    share = (
                        _PASSED if place.done else _share(end, len(problems) - number, level.limit)
                    )
                    race = Race(
                        problem,
                        level,
                        log,
                        compilers,
                        worker,
                        share,
                        place.told,
                        limits.measure_seconds,
                        commit,
                        roofs,
                    )
                    results.append(race.run())
    except OSError as error:
        raise unwritable(error) from error
    finally:
        if keep_choices:
            for problem in problems:
                resolve.forget(log_of(problem))
        else:
            use_logs()
    return results


def _request(problem: TuningProblem, level: Effort, budget: float | None) -> str:
    """What decides which candidates of a problem are measured."""
    sizes = "B={} T={} H={}".format(*problem.sizes)
    return f"{sizes} on {problem.threads} threads by {level} within {budget} s"


def _check_writable() -> None:
    """Find out before anything is measured."""
    try:
        user_logs().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=user_logs()):
            pass
    except OSError as error:
        raise unwritable(error) from None


def unwritable(error: OSError) -> ArgumentError:
    """The error for logs that cannot be written."""
    return ArgumentError(
        f"the tuning logs below {user_logs()} cannot be written: {error}; set "
        f"{settings.CACHE_DIR} to a folder that can be"
    )


def effort_of(effort: str | Effort) -> Effort:
    """A level by its name.

    Raises:
        ArgumentError: there is none.
    """
    if isinstance(effort, Effort):
        return effort
    if effort not in EFFORTS:
        raise ArgumentError(
            f"effort must be one of {', '.join(map(repr, EFFORTS))}, got {shown(effort)}"
        )
    return EFFORTS[effort]


def log_of(problem: TuningProblem) -> Path:
    """The user's log of a problem's program."""
    name = folder_name(problem.target.name or str(problem.target))
    return user_logs() / name / file_name(problem.program)


def use_logs() -> None:
    """Have the calls that follow take what the logs say by now."""
    resolve.forget()
    for plan in plans():
        plan.kernels.choose_again()


def _share(end: float | None, problems: int, limit: float) -> float | None:
    """When a problem's share of the budget ends, or what its effort allows."""
    start = time.monotonic()
    seconds = min(math.inf if end is None else (end - start) / problems, limit)
    return None if seconds == math.inf else start + seconds


__all__ = ["Limits", "Progress", "effort_of", "log_of", "tune_problems", "unwritable", "use_logs"]
