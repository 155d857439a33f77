"""How good the cost model's choices are: held to what was measured.

A problem's candidates that were measured are ranked by a model that has not seen them, and what
the model chooses is looked up: its measured time over that of the best. Either the model was
fitted to another GPU, or to all problems of the same GPUs but those of the same shape.

What was not measured cannot be judged. A log that was made to be shipped has only the winner of
each problem and the heuristic's choice; whole logs, such as the user's own, judge more.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import median

import numpy as np

from pdssm_compiler.runtime.tuning.evidence import Evidence, Sample
from pdssm_compiler.runtime.tuning.expected import Model, errors_of, left_out
from pdssm_compiler.runtime.tuning.rows import Row
from pdssm_compiler.runtime.tuning.space import Entry
from pdssm_compiler.runtime.tuning.winners import expected_winner, winner
from pdssm_compiler.schedules.registry import TEMPLATES

# Times that are nearer are not told apart.
_APART = 0.02


@dataclass(frozen=True)
class Verdict:
    """One problem, judged.

    Attributes:
        label: of the problem, with its direction.
        device: on which GPU.
        candidates: how many of its candidates were measured and could be ranked.
        best_ms: the least measured time.
        heuristic: the measured time of the heuristic's choice, over the best.
        chosen: likewise, of the model's choice.
        fastest: likewise, of the one it expects to be fastest, whatever it may be off by.
        nearest: likewise, of the winner on the GPU that the model was fitted to; None if there is
            none, or it was not measured here.
        off: the logarithm of expected over measured time of the heuristic's choice.
        ordered: of the pairs that were measured to differ, the part that the model orders so; None
            if there are none.
    """

    label: str
    device: str
    candidates: int
    best_ms: float
    heuristic: float
    chosen: float
    fastest: float
    nearest: float | None
    off: float
    ordered: float | None


@dataclass(frozen=True)
class Judgement:
    """All problems, judged.

    Attributes:
        basis: what the model was fitted to.
        across: whether it was fitted to other GPUs than those it is held to.
        errors: what it is off by between candidates, typically, by template, as it finds by
            itself; that of "" is for other templates.
        verdicts: one for each problem with a heuristic's row and another one that can be ranked.
        skipped: problems without.
    """

    basis: str
    across: bool
    errors: Mapping[str, float]
    verdicts: tuple[Verdict, ...]
    skipped: int

    def ratios(self, name: str) -> tuple[float, float, int] | None:
        """The median and the worst of a ratio of the verdicts, and of how many; None of none."""
        found = [getattr(verdict, name) for verdict in self.verdicts]
        found = [ratio for ratio in found if ratio is not None]
        return (median(found), max(found), len(found)) if found else None


def judge(fitted: Evidence, judged: Evidence | None = None) -> Judgement:
    """Hold a model to what was measured.

    Args:
        fitted: what the model is fitted to.
        judged: measured on other GPUs; None to judge by the same rows, one shape after the other
            left out of the fit.
    """
    squares = left_out(fitted)
    errors = errors_of(squares)
    found: list[Verdict | None] = []
    if judged is not None:
        model = Model.fitted(fitted, errors)
        found = [_verdict(model, samples) for samples in _problems(judged)]
        return _judgement(fitted, True, errors, found)
    for shape in squares:
        rest = fitted.only(sample for sample in fitted.samples if sample.shape != shape)
        others = errors_of({other: of for other, of in squares.items() if other != shape})
        model = Model.fitted(rest, others)
        mine = fitted.only(sample for sample in fitted.samples if sample.shape == shape)
        found += [_verdict(model, samples) for samples in _problems(mine)]
    return _judgement(fitted, False, errors, found)


def _judgement(
    fitted: Evidence,
    across: bool,
    errors: Mapping[str, float],
    found: Sequence[Verdict | None],
) -> Judgement:
    verdicts = tuple(verdict for verdict in found if verdict is not None)
    return Judgement(fitted.basis, across, errors, verdicts, len(found) - len(verdicts))


def _problems(found: Evidence) -> Iterator[list[Sample]]:
    """The samples of each problem on each GPU."""
    problems: dict[object, list[Sample]] = {}
    for sample in found.samples:
        problems.setdefault((sample.target, sample.problem), []).append(sample)
    yield from problems.values()


def _verdict(model: Model, samples: Sequence[Sample]) -> Verdict | None:
    ranked = [s for s in samples if model.knows(TEMPLATES[s.row.template])]
    base = next((s for s in ranked if s.row.heuristic), None)
    if base is None or len(ranked) < 2:
        return None
    first = ranked[0]
    expected = model.expected(
        first.program, first.target, [_entry(s) for s in ranked], first.row.sizes
    )
    milliseconds = (expected.seconds * 1e3).tolist()
    rows = [
        replace(s.row, status="predicted", ms=None, predicted_ms=ms, spread=error, basis="")
        for s, ms, error in zip(ranked, milliseconds, expected.error.tolist(), strict=True)
    ]
    measured = [s.row.ms or np.inf for s in ranked]
    best = min(s.row.ms or np.inf for s in samples)
    chosen = expected_winner(rows)
    assert chosen is not None
    place = ranked.index(base)
    return Verdict(
        label=f"{first.row.label} {first.row.direction}",
        device=first.row.device,
        candidates=len(ranked),
        best_ms=best,
        heuristic=measured[place] / best,
        chosen=measured[rows.index(chosen)] / best,
        fastest=measured[int(np.argmin(milliseconds))] / best,
        nearest=_nearest(model, samples, best),
        off=float(np.log(milliseconds[place] / measured[place])),
        ordered=_ordered(measured, milliseconds),
    )


def _entry(sample: Sample) -> Entry:
    row = sample.row
    return Entry(TEMPLATES[row.template], sample.config, row.heuristic, row.changes)


def _nearest(model: Model, samples: Sequence[Sample], best: float) -> float | None:
    """What the winner on the GPU that the model was fitted to takes here."""
    first = samples[0].row
    there, _ = model.measured.get((first.program, first.bucket), ((), None))
    won: Row | None = winner([s.row for s in there if s.row.sizes == first.sizes])
    here = {sample.row.candidate: sample.row.ms for sample in samples}
    taken = None if won is None else here.get(won.candidate)
    return None if taken is None else taken / best


def _ordered(measured: Sequence[float], expected: Sequence[float]) -> float | None:
    right = [
        (measured[a] < measured[b]) == (expected[a] < expected[b])
        for a, b in combinations(range(len(measured)), 2)
        if abs(np.log(measured[a] / measured[b])) > _APART
    ]
    return sum(right) / len(right) if right else None
