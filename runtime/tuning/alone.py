"""One race at a time: of those for a bucket of sizes in a log, and of those on a device.

The first turn has one process tune what several ask for, and the others see what it has left; the
second keeps times from being disturbed. They are always taken in this order, and one of each at
most, so processes never wait for each other in a circle.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pdssm_compiler.runtime.errors import TuningTimeoutError, TuningWarning
from pdssm_compiler.runtime.tuning.problem import TuningProblem
from pdssm_compiler.runtime.tuning.race import Progress, Told
from pdssm_compiler.runtime.tuning.turns import Turn, Waiting, device_turn, log_turn

# Whether a problem still has to be tuned, once it is its turn.
Wanted = Callable[[TuningProblem], bool]


@dataclass(frozen=True)
class Place:
    """Where a race stands whose turn it is.

    Attributes:
        told: to be called as the race goes on: has those who wait know as well.
        done: whether the same was asked of another process, and done while this one waited.
    """

    told: Told
    done: bool = False


@contextmanager
def alone(
    problem: TuningProblem, log: Path, request: str, wanted: Wanted, told: Told
) -> Iterator[Place | None]:
    """Wait until no other process tunes what a problem is about, and none measures on its device.

    Args:
        problem: what to tune.
        log: its log.
        request: what decides which candidates are measured, as a line.
        wanted: asked when nobody else tunes it.
        told: called as it goes on.

    Yields:
        None where it is not wanted any more.

    Raises:
        TuningTimeoutError: whoever tunes it does not go on.
        OSError: the folder of the log cannot be written.
    """
    told_who = _told_who(problem, told)
    with log_turn(log, problem.bucket, told_who) as mine:
        if mine.passed == request:
            yield Place(told, done=True)
        elif not (mine.unfinished or wanted(problem)):
            yield None
        else:
            with ExitStack() as held, mine.at(request):
                turns = [mine, *_device(held, problem, mine, told_who)]

                def go_on(progress: Progress) -> None:
                    for turn in turns:
                        turn.step()
                    told(progress)

                yield Place(go_on)


def _device(held: ExitStack, problem: TuningProblem, mine: Turn, told_who: Waiting) -> list[Turn]:
    """The turn to measure on a problem's device; none where it cannot be had."""

    def waiting(who: str) -> None:
        # Others wait for this process meanwhile.
        mine.step()
        told_who(who)

    try:
        turn = held.enter_context(device_turn(torch.device(problem.device), waiting))
        held.enter_context(turn.at(str(problem)))
    except (OSError, TuningTimeoutError) as error:
        warnings.warn(
            f"times of {problem} are measured though another process may disturb them: {error}",
            TuningWarning,
            stacklevel=2,
        )
        return []
    return [turn]


def _told_who(problem: TuningProblem, told: Told) -> Waiting:
    """Tells of each process that is waited for once."""
    last = ""

    def waiting(who: str) -> None:
        nonlocal last
        if who != last:
            last = who
            told(Progress(problem, 0, 0, None, None, f"waiting for {who}"))

    return waiting
