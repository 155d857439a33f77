"""Processes that are killed at any moment, while others begin in their place."""

import random
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess


def kill_at_random(
    start: Callable[[int], BaseProcess],
    ended: Callable[[BaseProcess], int | None],
    beside: Sequence[BaseProcess],
    *,
    kills: int,
    pause: float,
    chance: random.Random,
) -> None:
    """Run four processes, each replaced when it is killed; in the end none is left.

    Args:
        start: begins one, by its number.
        ended: waits for one, and gives its exit status.
        beside: others, which are ended with them.
        kills: how many.
        pause: seconds between two kills, at most.
        chance: says when, and which.
    """
    running = [start(number) for number in range(4)]
    for number in range(kills):
        time.sleep(chance.uniform(0.0, pause))
        victim = running.pop(chance.randrange(len(running)))
        # One that found something wrong has ended.
        assert victim.exitcode is None
        victim.kill()
        assert ended(victim) == -9
        running.append(start(4 + number))
    assert [process.exitcode for process in running] == [None] * len(running)
    for process in (*beside, *running):
        process.kill()
        ended(process)
