"""What follows from a step's number, and from what was measured before: learning rate, lengths,
temperature, and the seeds of what is drawn.
"""

import math
from collections.abc import Sequence

from examples.state_tracking.measured import Measured
from examples.state_tracking.settings import Settings

# Streams of random numbers that have nothing to do with one another.
TRAINING, TESTING = 1, 2
_MODULUS = 2**61 - 1
# Tokens of the narrowest batches.
_NARROWEST = 10


def rate(settings: Settings, step: int) -> float:
    """The learning rate of a step: a linear rise, then a cosine."""
    rising = max(1, round(settings.warm_up * settings.steps))
    if step < rising:
        return settings.rate * (step + 1) / rising
    done = (step - rising) / max(1, settings.steps - rising)
    fallen = (1 + math.cos(math.pi * min(1.0, done))) / 2
    return settings.last_rate + (settings.rate - settings.last_rate) * fallen


def longest(settings: Settings, step: int, log: Sequence[Measured] = ()) -> int:
    """The longest training sequence of a step, after what has been measured."""
    first = min(2 * settings.shortest, settings.longest)
    if settings.grow_below > 0:
        grown, since = first, 0
        for line in log:
            since += 1
            if line.loss < settings.grow_below or since >= settings.grow_after:
                # Bounded here: over a long log the factors alone would be more than a float holds.
                more = min(max(grown + 1, grown * settings.grow_by), settings.longest)
                grown, since = int(more), 0
        return grown
    growing = settings.growing * settings.steps
    if step >= growing:
        return settings.longest
    return first + int((settings.longest - first) * step / growing)


def temperature(settings: Settings, step: int) -> float:
    """That of the maps' softmax at a step: from the first to the last by equal factors."""
    done = step / max(1, settings.steps - 1)
    first: float = settings.temperature
    return first * (settings.last_temperature / first) ** done


def batch_width(most: int, needed: int) -> int:
    """Tokens of a batch: as many as there can be, halved while the sequences fit, and while it is
    worth another graph.
    """
    while most % 2 == 0 and most // 2 >= max(needed, _NARROWEST):
        most //= 2
    return most


def seed_of(seed: int, stream: int, step: int) -> int:
    """Of a stream's step; seeds of runs and steps beside one another have no more in common."""
    mixed = (seed * 1_000_003 + stream) * 1_000_000_007 + step
    return mixed * 0x9E3779B97F4A7C15 % _MODULUS
