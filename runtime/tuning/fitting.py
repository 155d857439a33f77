"""Fitting the cost model's constants to measured rows.

The constants of :class:`Costs` are found by least squares of the logarithm of measured over
expected times. Each is drawn to the value it has where nothing is known, as strongly as one row
that is off by so much; so few rows move few constants, and a template without rows keeps what is
assumed of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pdssm_compiler.schedules.cost import Array, Costs, Counts

# How far the constants may be from what is assumed of them, and times from the law: the spread of
# their logarithms.
_OF_CONSTANTS, _OF_TIMES = 0.7, 0.15
_STEPS = 30
_NUDGE = 1e-4


@dataclass(frozen=True)
class Timed:
    """Measured candidates.

    Attributes:
        counts: their work, on the GPUs they were measured on.
        seconds: what they took.
        problems: of which problem each is; any value that tells one from another.
    """

    counts: Counts
    seconds: Array
    problems: Sequence[object]

    def __len__(self) -> int:
        return len(self.counts)

    def only(self, kept: Sequence[int]) -> "Timed":
        """Some of them, by number."""
        counts = self.counts
        some = Counts(
            [counts.templates[i] for i in kept],
            [counts.work[i] for i in kept],
            [counts.targets[i] for i in kept],
        )
        return Timed(some, self.seconds[list(kept)], [self.problems[i] for i in kept])


def fit(timed: Timed, templates: Sequence[str]) -> Costs:
    """The constants that explain measured times best.

    Args:
        timed: what was measured; nothing leaves what is assumed.
        templates: those the model has constants for.
    """
    prior = Costs.prior(templates)
    if not len(timed):
        return prior
    start = _logs(prior)
    measured, weight = np.log(timed.seconds), _weights(timed)

    def residuals(at: Array) -> Array:
        off = np.log(_costs(at, prior).seconds(timed.counts)) - measured
        return np.concatenate([weight * off / _OF_TIMES, (at - start) / _OF_CONSTANTS])

    at, damping = start, 1e-2
    now = residuals(at)
    for _ in range(_STEPS):
        slopes = [(residuals(at + _NUDGE * axis) - now) / _NUDGE for axis in np.eye(len(at))]
        matrix = np.stack(slopes, 1)
        normal = matrix.T @ matrix
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -matrix.T @ now)
        after = residuals(at + step)
        if after @ after < now @ now:
            small = now @ now - after @ after < 1e-6 * (now @ now)
            at, now, damping = at + step, after, damping / 3
            if small:
                break
        else:
            damping *= 5
    return _costs(at, prior)


def _weights(timed: Timed) -> Array:
    """How much each row counts: the slower it is than the best of its problem, the less it matters
    how slow; and a problem of many rows counts more than one of few, but not as often.
    """
    best: dict[object, float] = {}
    number: dict[object, int] = {}
    for problem, seconds in zip(timed.problems, timed.seconds.tolist(), strict=True):
        best[problem] = min(seconds, best.get(problem, seconds))
        number[problem] = number.get(problem, 0) + 1
    pairs = zip(timed.problems, timed.seconds.tolist(), strict=True)
    return np.array([best[p] / s / number[p] ** 0.25 for p, s in pairs])


def _logs(costs: Costs) -> Array:
    values = [*costs.shared.values(), *(v for own in costs.own.values() for v in own.values())]
    return np.log(values)


def _costs(at: Array, like: Costs) -> Costs:
    values = iter(np.exp(at).tolist())
    shared = {name: next(values) for name in like.shared}
    own = {name: {part: next(values) for part in of} for name, of in like.own.items()}
    return Costs(shared, own)
