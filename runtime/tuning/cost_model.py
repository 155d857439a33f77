"""What a config will cost, learned from the log.

A least-squares fit, one for each template, of the logarithm of a candidate's time over its
heuristic's, to each field's own curve: a number's logarithm and its square, a truth value, a None.
Fields act one by one, so what a fit says can be read off it: :attr:`CostModel.weights`. Unknown
fields stay at no effect (the fit is drawn to zero), and a template without rows costs what its
heuristic does.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

# How strongly weights are drawn to zero: as much as one or two rows draw them elsewhere.
_RIDGE = 0.3


class Sample(NamedTuple):
    """One measured candidate.

    Attributes:
        template: its name.
        fields: its config.
        ratio: its time over that of the problem's heuristic.
        weight: how much it counts; 1 for the problem at hand.
    """

    template: str
    fields: Mapping[str, Any]
    ratio: float
    weight: float = 1.0


@dataclass(frozen=True)
class CostModel:
    """A fit.

    Attributes:
        weights: for each template and each of its features, its effect on the logarithm.
        means: for each template, what is taken off each feature before.
    """

    weights: dict[str, dict[str, float]]
    means: dict[str, dict[str, float]]

    @classmethod
    def fit(cls, samples: Sequence[Sample]) -> "CostModel":
        """The model of some rows."""
        weights, means = {}, {}
        for template in dict.fromkeys(sample.template for sample in samples):
            mine = [sample for sample in samples if sample.template == template]
            weights[template], means[template] = _fit(mine)
        return cls(weights, means)

    def ratio(self, template: str, fields: Mapping[str, Any]) -> float:
        """The time that a candidate is expected to take, over its heuristic's."""
        weights = self.weights.get(template)
        if weights is None:
            return 1.0
        told = features(fields)
        means = self.means[template]
        return math.exp(sum(w * (told.get(n, 0.0) - means[n]) for n, w in weights.items()))


def features(fields: Mapping[str, Any]) -> dict[str, float]:
    """A config as numbers."""
    found = {"constant": 1.0}
    for name, value in fields.items():
        if value is None:
            found[f"{name} none"] = 1.0
        elif isinstance(value, bool):
            found[name] = float(value)
        else:
            size = math.log2(1 + abs(value))
            found[name], found[f"{name}²"] = size, size * size
    return found


def _fit(samples: Sequence[Sample]) -> tuple[dict[str, float], dict[str, float]]:
    told = [features(sample.fields) for sample in samples]
    names = list(dict.fromkeys(name for each in told for name in each))
    matrix = np.array([[each.get(name, 0.0) for name in names] for each in told])
    weight = np.array([sample.weight for sample in samples])
    mean = weight @ matrix / weight.sum()
    # The constant is what the others leave.
    mean[names.index("constant")] = 0.0
    matrix = matrix - mean
    cost = np.log([sample.ratio for sample in samples])
    ridge = _RIDGE * np.eye(len(names))
    ridge[names.index("constant")] *= 1e-3
    normal = matrix.T * weight @ matrix + ridge
    found = np.linalg.solve(normal, matrix.T * weight @ cost)
    return dict(zip(names, found.tolist(), strict=True)), dict(
        zip(names, mean.tolist(), strict=True)
    )
