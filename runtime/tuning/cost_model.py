"""What candidates will cost, learned from those that were measured: a Gaussian process.

It is of the logarithm of a candidate's time over the heuristic's (Rasmussen and Williams,
*Gaussian Processes for Machine Learning*, chapter 2). Candidates of a template deviate together,
and the more so the fewer and the less their fields differ; what one template takes says nothing of
another. So a measured candidate says most of its neighbours, and where none was measured, little
is known. What to measure next is what is expected to improve on the best the most (Mockus 1978;
Jones, Schonlau and Welch 1998): where it is expected to be fast, or where little is known.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# Variances of the logarithm: of what all candidates of a problem have in common, of what those of
# a template have, of a config's own, and of two timings of the same.
_COMMON, _OF_TEMPLATE, _OF_CONFIG, _NOISE = 1.0, 0.25, 0.16, 4e-4
# What a failure counts as, and how little that says of the like: a limit is passed or it is not.
_FAILED, _OF_FAILURE = math.log(3.0), 0.25
# How many doublings of a number make another candidate of it.
_LENGTH = 1.5


@dataclass(frozen=True)
class Expected:
    """What candidates are expected to take.

    Attributes:
        mean: of each, the logarithm of its time over the heuristic's.
        covariance: how far that may be off, and how far together.
    """

    mean: Array
    covariance: Array

    def most_promising(self, number: int, best: float) -> list[int]:
        """Those to measure together, by their places: one after the other the one whose expected
        improvement is the largest, when those before it are as expected.

        Args:
            number: how many.
            best: the logarithm of the fastest so far.
        """
        covariance, found = self.covariance, list[int]()
        while len(found) < min(number, len(self.mean)):
            deviation = np.sqrt(np.maximum(np.diag(covariance), 1e-12))
            gain = _improvement(best - self.mean, deviation)
            gain[found] = -1.0
            place = int(np.argmax(gain))
            found.append(place)
            # Measured as expected, it changes no mean, and what is not known of its like.
            column = covariance[:, place]
            known = np.outer(column, column) / (column[place] + _NOISE)
            covariance = covariance - known
        return found


class CostModel:
    """The model of some candidates.

    Args:
        candidates: of each, its template's name and the fields of its config.
    """

    def __init__(self, candidates: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        told = [features(fields) for _, fields in candidates]
        names = sorted({name for each in told for name in each})
        points = np.array([[each.get(name, 0.0) for name in names] for each in told])
        points = points.reshape(len(told), len(names)) / _LENGTH
        squares = (points**2).sum(1)
        apart = np.maximum(squares[:, None] + squares[None] - 2 * points @ points.T, 0.0)
        templates = np.array([template for template, _ in candidates])
        alike = templates[:, None] == templates[None]
        self._prior = _COMMON + alike * (_OF_TEMPLATE + _OF_CONFIG * np.exp(-apart / 2))

    def expected(self, measured: Mapping[int, float | None], wanted: Sequence[int]) -> Expected:
        """What some candidates are expected to take.

        Args:
            measured: logarithms of measured times over the heuristic's, by the candidates' places;
                None where one failed.
            wanted: the places of those to expect the times of.
        """
        known, asked = list(measured), list(wanted)
        noise = [_OF_FAILURE if measured[place] is None else _NOISE for place in known]
        times = [_FAILED if time is None else time for time in measured.values()]
        among = self._prior[np.ix_(known, known)] + np.diag(noise)
        between = self._prior[np.ix_(asked, known)]
        shares = np.linalg.solve(among, between.T).T
        mean = shares @ np.array(times)
        return Expected(mean, self._prior[np.ix_(asked, asked)] - shares @ between.T)


def features(fields: Mapping[str, Any]) -> dict[str, float]:
    """A config as numbers, of which a step of one is a doubling."""
    found = {}
    for name, value in fields.items():
        if value is None:
            found[f"{name} none"] = 1.0
        else:
            found[name] = float(value) if isinstance(value, bool) else math.log2(1 + abs(value))
    return found


def _improvement(gain: Array, deviation: Array) -> Array:
    """The expected value of what is above 0 of normal numbers."""
    ratio = gain / deviation
    above = 0.5 * (1 + np.array([math.erf(each) for each in ratio / math.sqrt(2)]))
    density = np.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi)
    found: Array = gain * above + deviation * density
    return found
