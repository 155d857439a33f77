"""Which candidates are measured next.

First what each template's heuristic says, and what shipped logs say. Templates that are hopeless
by it are left alone. If what remains is few, all of it is measured; otherwise batches, half of
them neighbours of the best (one field apart), half of them what the cost model expects to be
fastest, until a few batches in a row have found nothing faster.

What comes next follows from what was measured alone, so a search that was interrupted goes on, and
one that has ended stays ended.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from pdssm_compiler.runtime.tuning.cost_model import CostModel, Sample
from pdssm_compiler.runtime.tuning.effort import Effort
from pdssm_compiler.runtime.tuning.space import Entry, Space, changes

# As many as a few compilers make at a time.
BATCH = 12
# Nothing faster than this fraction of the best is news.
_NEWS = 0.99
# What a candidate that failed counts as, over the heuristic: its like is tried last.
_FAILED = 10.0
# How much the rows of other problems count.
_OTHERS = 0.2

# The time of each measured candidate, in the order they were measured; None if it failed.
Times = Mapping[Entry, float | None]


class Search:
    """The search of one problem.

    Args:
        space: its candidates.
        effort: how hard to try.
        earlier: rows of other problems on this device.
    """

    def __init__(self, space: Space, effort: Effort, earlier: Sequence[Sample] = ()) -> None:
        self._space = space
        self._effort = effort
        self._earlier = [sample._replace(weight=_OTHERS) for sample in earlier]

    def planned(self, times: Times) -> int:
        """How many candidates will be measured, at most."""
        whole = len(self._space.first) + len(self._promising(times))
        return max(len(times), min(self._effort.candidates, whole))

    def next(self, times: Times) -> list[Entry]:
        """What to measure next; nothing at the end.

        Args:
            times: what has been measured so far.
        """
        room = self._effort.candidates - len(times)
        first = [entry for entry in self._space.first if entry not in times]
        if first:
            return first[: max(0, room)]
        left = [entry for entry in self._promising(times) if entry not in times]
        if len(left) <= room:
            return left
        if room <= 0 or self._idle(times) > self._effort.patience:
            return []
        return self._batch(times, left)[:room]

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
        return [e for e in self._space.others if least.get(e.template.name, 0.0) <= limit]

    def _idle(self, times: Times) -> int:
        """How many batches in a row, the last ones, have found nothing faster."""
        measured, first = list(times.values()), len(self._space.first)
        best, idle = _least(measured[:first]), 0
        for start in range(first, len(measured), BATCH):
            found = _least(measured[start : start + BATCH])
            # While nothing is right, there is nothing to be content with.
            idle = 0 if found < _NEWS * best or best == math.inf else idle + 1
            best = min(best, found)
        return idle

    def _batch(self, times: Times, left: Sequence[Entry]) -> list[Entry]:
        expected = self._expected(times)
        by_cost = sorted(left, key=lambda entry: expected[entry])
        found: list[Entry] = []
        right = {entry: ms for entry, ms in times.items() if ms is not None}
        if right:
            best = min(right, key=lambda entry: right[entry])
            near = [e for e in by_cost if e.template is best.template]
            near = [e for e in near if changes(e.config, best.config) == 1]
            # Until a field has been tried, a model has nothing to say of it.
            known = sum(entry.template is best.template for entry in right)
            found = near[: BATCH if known < BATCH else BATCH // 2]
        return found + [e for e in by_cost if e not in found][: BATCH - len(found)]

    def _expected(self, times: Times) -> dict[Entry, float]:
        """What every candidate is expected to take, over what plain calls do."""
        known = {e: ms for e, ms in times.items() if ms is not None}
        chosen = next((ms for e, ms in known.items() if e.heuristic), None)
        base = chosen or min(known.values(), default=1.0)
        samples = [
            Sample(e.template.name, e.fields, _FAILED if ms is None else ms / base)
            for e, ms in times.items()
        ]
        model = CostModel.fit([*samples, *self._earlier])
        return {e: model.ratio(e.template.name, e.fields) for e in self._space.others}


def _least(times: Iterable[float | None]) -> float:
    return min((ms for ms in times if ms is not None), default=math.inf)
