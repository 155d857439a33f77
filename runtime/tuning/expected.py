"""What candidates are expected to take on a GPU that is not here.

Two things say so. The law (:mod:`pdssm_compiler.schedules.cost`), with constants fitted to what
was measured on other GPUs, says what any candidate takes on any GPU. And where the same program at
the same sizes was measured on another GPU, the law need not be right, but only its ratio from that
GPU to this one: a candidate that was measured there keeps what the law was off by there, and one
like it keeps part of it. How much is a regression on the residuals, in which two configs of a
template are as much alike as few of their fields differ. And a race was run there: what it did not
find faster than its winner is taken to be no faster there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from pdssm_compiler.ir.program import Program
from pdssm_compiler.runtime.tuning.evidence import Evidence, Sample, timed
from pdssm_compiler.runtime.tuning.fitting import Timed, fit
from pdssm_compiler.runtime.tuning.space import Entry
from pdssm_compiler.schedules.cost import Array, Costs, Counts
from pdssm_compiler.schedules.registry import TEMPLATES
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Problem, Template

# A template with fewer rows is not ranked: nothing measured says what its steps take.
LEAST_ROWS = 3
# What the model may be off by between two candidates of a problem, at least where too few problems
# show it; and at least, for a candidate that was measured elsewhere.
_UNKNOWN_ERROR, _LEAST_ERROR = 0.15, 0.01
_FEWEST_SHAPES = 3
# Candidates that take no longer than so many times the best are those among which one is chosen.
_NEAR = 2.0
# Residuals of a problem: what all have in common, what those of a template have, and what those
# of a config have, of which each other field leaves a part; and what is noise.
_COMMON, _OF_TEMPLATE, _OF_CONFIG, _NOISE = 4.0, 1.0, 1.0, 0.05
_ALIKE = 0.5


@dataclass(frozen=True)
class Expected:
    """What candidates are expected to take.

    Attributes:
        seconds: of each.
        error: how far each may be off, of its time, beside the others.
    """

    seconds: Array
    error: Array


@dataclass(frozen=True)
class Model:
    """A cost model, fitted.

    Attributes:
        costs: the law's constants.
        errors: by template, what the law is off by, typically, between candidates of a problem
            whose shape it was not fitted to; "" is for other templates.
        rows: how many rows of each template it was fitted to.
        basis: what it was fitted to, for readers.
        measured: by program and bucket of sizes, what was measured of it, and the logarithm of
            measured over expected.
    """

    costs: Costs
    errors: Mapping[str, float]
    rows: Mapping[str, int]
    basis: str
    measured: Mapping[object, tuple[Sequence[Sample], Array]]

    @classmethod
    def fitted(cls, found: Evidence, errors: Mapping[str, float] | None = None) -> "Model":
        """The model of some evidence; without any, that of what is assumed.

        Args:
            found: what was measured.
            errors: what the law is off by, where that is known; None to find out.
        """
        names = _templates()
        all_timed = timed(found.samples)
        costs = fit(all_timed, names)
        off = _off(costs, all_timed)
        groups: dict[object, list[int]] = {}
        for number, sample in enumerate(found.samples):
            groups.setdefault((sample.row.program, sample.row.bucket), []).append(number)
        measured = {
            key: ([found.samples[i] for i in numbers], off[numbers])
            for key, numbers in groups.items()
        }
        rows = dict.fromkeys(names, 0)
        for sample in found.samples:
            rows[sample.row.template] += 1
        if errors is None:
            errors = errors_of(left_out(found))
        return cls(costs, errors, rows, found.basis, measured)

    def knows(self, template: Template) -> bool:
        """Whether enough rows say what a template takes."""
        return self.rows.get(template.name, 0) >= LEAST_ROWS

    def expected(
        self,
        program: Program,
        target: Target,
        candidates: Sequence[Entry],
        sizes: tuple[int, int, int],
        *,
        beaten: bool = False,
    ) -> Expected:
        """What candidates take on a GPU; they are feasible there, and their templates count work.

        Args:
            program: the specialised program.
            target: the GPU.
            candidates: what to expect the times of.
            sizes: ``B``, ``T``, ``H``.
            beaten: whether what a race did not measure may be faster than its winner.
        """
        seconds = self._by_law(program, target, candidates, sizes)
        batch, length, heads = sizes
        bucket = Problem.bucket(batch * heads, length)
        known = self.measured.get((program.fingerprint, bucket))
        errors = [self.errors.get(e.template.name, self.errors[""]) for e in candidates]
        if known is None:
            return Expected(seconds, np.array(errors))
        samples, off = known
        there = [(sample.row.template, sample.config) for sample in samples]
        here = [(entry.template.name, entry.config) for entry in candidates]
        among = _alike(there, there) + _COMMON + _NOISE * np.eye(len(there))
        between = _alike(here, there) + _COMMON
        shares = np.linalg.solve(among, between.T).T
        # What is left of a candidate's own deviation, once these are known.
        own = _OF_TEMPLATE + _OF_CONFIG
        left = np.clip((own + _COMMON - np.sum(shares * between, 1)) / own, 0.0, 1.0)
        error = np.maximum(np.array(errors) * np.sqrt(left), _LEAST_ERROR)
        moved = shares @ off
        if not beaten:
            moved = np.maximum(moved, self._least(program, candidates, samples))
        return Expected(seconds * np.exp(moved), error)

    def _by_law(
        self,
        program: Program,
        target: Target,
        candidates: Sequence[Entry],
        sizes: tuple[int, int, int],
    ) -> Array:
        """What the law says they take; feasible ones."""
        batch, length, heads = sizes
        work = []
        for entry in candidates:
            counted = entry.template.work(program, target, entry.config, batch * heads, length)
            assert counted is not None
            work.append(counted)
        names = [entry.template.name for entry in candidates]
        return self.costs.seconds(Counts(names, work, [target] * len(work)))

    def _least(
        self, program: Program, candidates: Sequence[Entry], samples: Sequence[Sample]
    ) -> Array:
        """The least that each candidate may be off the law by: where it was not measured, no
        GPU's race is said to have missed it.
        """
        found = np.full(len(candidates), -np.inf)
        races: dict[tuple[Target, tuple[int, int, int]], list[Sample]] = {}
        for sample in samples:
            races.setdefault((sample.target, sample.row.sizes), []).append(sample)
        for (target, sizes), there in races.items():
            measured = {(sample.row.template, sample.config) for sample in there}
            best = min(sample.row.ms or np.inf for sample in there) / 1e3
            missed = [
                place
                for place, entry in enumerate(candidates)
                if (entry.template.name, entry.config) not in measured
                and entry.template.feasible(program, target, entry.config) is None
            ]
            of = [candidates[place] for place in missed]
            if of:
                law = self._by_law(program, target, of, sizes)
                found[missed] = np.maximum(found[missed], np.log(best / law))
        return found


def _templates() -> list[str]:
    """The templates of GPUs that are compiled."""
    return [t.name for t in TEMPLATES.values() if "cuda" in t.kinds and t.backend != "torch"]


def _alike(these: Sequence[tuple[str, Any]], those: Sequence[tuple[str, Any]]) -> Array:
    """How much the residuals of candidates of one problem have in common, beside what all have."""
    found = np.zeros((len(these), len(those)))
    for name in {template for template, _ in these} & {template for template, _ in those}:
        rows, mine = _fields(these, name)
        columns, theirs = _fields(those, name)
        differ = (mine[:, None] != theirs[None]).sum(2)
        found[np.ix_(rows, columns)] = _OF_TEMPLATE + _OF_CONFIG * _ALIKE**differ
    return found


def _fields(candidates: Sequence[tuple[str, Any]], name: str) -> tuple[list[int], Array]:
    """Which candidates are of a template, and a row of its config's fields for each."""
    places = [place for place, (template, _) in enumerate(candidates) if template == name]
    # None is no number that a field has.
    told = [[-1 if v is None else int(v) for v in astuple(candidates[i][1])] for i in places]
    return places, np.array(told)


def _off(costs: Costs, measured: Timed) -> Array:
    """Logarithms of measured over expected times."""
    if not len(measured):
        return np.zeros(0)
    return np.log(measured.seconds / costs.seconds(measured.counts))


# For each shape and template: squares of what the law is off by, of logarithms.
Squares = Mapping[object, Mapping[str, Sequence[float]]]


def left_out(found: Evidence) -> Squares:
    """For each shape, what the law is off by between candidates of one problem where it was not
    fitted to any problem of that shape, by template. Candidates that are far from the best are
    not looked at: nobody takes them.
    """
    names, whole = _templates(), timed(found.samples)
    shapes: dict[object, list[int]] = {}
    for number, sample in enumerate(found.samples):
        shapes.setdefault(sample.shape, []).append(number)
    squares: dict[object, dict[str, list[float]]] = {}
    for shape, mine in shapes.items():
        out = set(mine)
        rest = [number for number in range(len(whole)) if number not in out]
        these = whole.only(mine)
        off = _off(fit(whole.only(rest), names), these)
        problems: dict[object, list[int]] = {}
        for place, problem in enumerate(these.problems):
            problems.setdefault(problem, []).append(place)
        by_template: dict[str, list[float]] = {}
        for places in problems.values():
            best = these.seconds[places].min()
            near = [place for place in places if these.seconds[place] <= _NEAR * best]
            for place, square in zip(near, _apart(off[near]), strict=False):
                by_template.setdefault(these.counts.templates[place], []).append(square)
        squares[shape] = by_template
    return squares


def errors_of(squares: Squares) -> dict[str, float]:
    """What the law is typically off by, for each template of which enough shapes say so; that of
    "" is for the others, as much as the most of these.
    """
    names = sorted({name for of in squares.values() for name in of})
    told = {name: [of[name] for of in squares.values() if of.get(name)] for name in names}
    found = {name: _rms(each) for name, each in told.items() if len(each) >= _FEWEST_SHAPES}
    return found | {"": max([_UNKNOWN_ERROR, *found.values()])}


def _rms(squares: Sequence[Sequence[float]]) -> float:
    """As much for a shape of few rows as for one of many."""
    return max(_LEAST_ERROR, float(np.sqrt(np.mean([np.mean(each) for each in squares]))))


def _apart(off: Array) -> list[float]:
    """Squares of what rows of one problem are off by beside one another, without bias."""
    if len(off) < 2:
        return []
    return (((off - off.mean()) ** 2) * len(off) / (len(off) - 1)).tolist()
