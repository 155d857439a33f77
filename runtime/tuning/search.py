"""Which candidates are measured next.

First what each template's heuristic says, and what shipped logs say. Templates that are hopeless
by it, or by what they know of themselves, are left alone. If what remains is few, all of it is
measured; otherwise batches of what the cost model expects to improve on the best the most, which
is near the best or where little is known, until a few batches in a row have found nothing faster.

What comes next follows from what was measured alone, so a search that was interrupted goes on, and
one that has ended stays ended.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

from pdssm_compiler.runtime.tuning.cost_model import CostModel
from pdssm_compiler.runtime.tuning.effort import Effort
from pdssm_compiler.runtime.tuning.space import Entry, Space

# Few compilers make as many at a time, and the model learns from each batch.
BATCH = 8
# Nothing faster than this fraction of the best is news.
_NEWS = 0.99

# The time of each measured candidate, in the order they were measured; None if it failed.
Times = Mapping[Entry, float | None]


class Search:
    """The search of one problem.

    Args:
        space: its candidates.
        effort: how hard to try.
    """

    def __init__(self, space: Space, effort: Effort) -> None:
        self._space = space
        self._effort = effort

    def planned(self, times: Times) -> int:
        """How many candidates will be measured, at most."""
        whole = len([*self._first(times), *self._promising(times)])
        return max(len(times), min(self._effort.candidates, whole))

    def next(self, times: Times) -> list[Entry]:
        """What to measure next; nothing at the end.

        Args:
            times: what has been measured so far.
        """
        room = self._effort.candidates - len(times)
        first = [entry for entry in self._first(times) if entry not in times]
        if first:
            # Whoever knows that it is slow may be hopeless by the times of the others.
            quick = [entry for entry in first if not entry.least_ms or entry.heuristic]
            return (quick or first)[: max(0, room)]
        left = [entry for entry in self._promising(times) if entry not in times]
        if len(left) <= room:
            return left
        if room <= 0 or self._idle(times) >= self._effort.patience:
            return []
        return self._batch(times, left)[:room]

    def _first(self, times: Times) -> list[Entry]:
        """What is measured before all else, but for what is hopeless without being measured."""
        best = _least(times.values())
        limit = self._effort.hopeless * best
        return [e for e in self._space.first if e in times or e.heuristic or e.least_ms <= limit]

    def _promising(self, times: Times) -> list[Entry]:
        """The candidates of templates that are not hopeless. One whose candidates have all failed
        is not: others of its may run.
        """
        least: dict[str, float] = {}
        for entry, ms in times.items():
            if ms is not None:
                name = entry.template.name
                least[name] = min(ms, least.get(name, ms))
        limit = self._effort.hopeless * min(least.values(), default=0.0)
        for entry in self._space.first:
            if entry not in times:
                least.setdefault(entry.template.name, entry.least_ms)
        return [e for e in self._space.others if least.get(e.template.name, 0.0) <= limit]

    def _idle(self, times: Times) -> int:
        """How many batches in a row, the last ones, have found nothing faster."""
        measured = list(times.values())
        first = sum(entry in times for entry in self._space.first)
        best, idle = _least(measured[:first]), 0
        for start in range(first, len(measured), BATCH):
            found = _least(measured[start : start + BATCH])
            # While nothing is right, there is nothing to be content with.
            idle = 0 if found < _NEWS * best or best == math.inf else idle + 1
            best = min(best, found)
        return idle

    def _batch(self, times: Times, left: Sequence[Entry]) -> list[Entry]:
        """Those that are expected to improve on the best the most; where all of the last batch
        have failed, some of everywhere, as no model knows what can run.
        """
        if all(ms is None for ms in list(times.values())[-BATCH:]):
            return list(left[:: -(-len(left) // BATCH)])
        right = [ms for ms in times.values() if ms is not None]
        base = next((ms for e, ms in times.items() if e.heuristic and ms is not None), None)
        base = base or min(right, default=1.0)
        measured = {
            self._places[entry]: None if ms is None else math.log(ms / base)
            for entry, ms in times.items()
        }
        expected = self._model.expected(measured, [self._places[entry] for entry in left])
        best = math.log(min(right, default=base) / base)
        return [left[place] for place in expected.most_promising(BATCH, best)]

    @cached_property
    def _places(self) -> dict[Entry, int]:
        return {entry: n for n, entry in enumerate((*self._space.first, *self._space.others))}

    @cached_property
    def _model(self) -> CostModel:
        return CostModel([(entry.template.name, entry.fields) for entry in self._places])


def _least(times: Iterable[float | None]) -> float:
    return min((ms for ms in times if ms is not None), default=math.inf)
