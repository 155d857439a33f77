"""What work costs on a GPU: the law of the cost model, and the constants in it.

A launch is bound by one of five things, each of which takes its own time; where two are near,
both are felt (a p-norm of the five):

- *traffic*: bytes over the memory's bandwidth;
- *copies under way*: bytes over what all blocks that run at once have on their way, a latency
  each time (Little's law);
- *the chain*: what a block does in series, for each wave of blocks: its tokens, what collecting
  sources and passing elements on adds to them, the tiles that it begins, and each wait for memory;
- *instructions*: all that is to be issued, over the processors;
- *carries* that go from block to block in series.

Beside them each launch takes a fixed time. Seconds a count are :class:`Costs`; the runtime fits
them to rows of logs. What tells one GPU from another is its :class:`Target` alone. Its clock is
not in it, so of a GPU that is clocked otherwise than those fitted to, all but the traffic is
expected wrongly by as much.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.work import Work

Array = np.ndarray

# How sharply the largest of the five wins over the others.
_SHARPNESS = 4.0

# What is fitted for all templates together, with what is assumed where nothing was measured, about
# an H100's: seconds, but for traffic, and the last three, which are parts of a step.
SHARED = {
    # Of the bandwidth that is described, time over what it promises.
    "traffic": 1.12,
    "latency": 1.0e-6,
    "launch": 2.5e-6,
    "issue": 1.5e-9,
    "collect": 0.3,
    "exchange": 0.5,
    "tile": 1.0,
}
# What each template has of its own: a step, and a carry on its way.
OWN = {"step": 6.0e-8, "pass": 1.5e-7}


@dataclass(frozen=True)
class Counts:
    """The work of many configs as columns, each on a target of its own.

    Attributes:
        templates: the template of each.
        work: of each.
        targets: where each runs; the bandwidth is known.
    """

    templates: Sequence[str]
    work: Sequence[Work]
    targets: Sequence[Target]

    def __len__(self) -> int:
        return len(self.work)

    @cached_property
    def columns(self) -> dict[str, Array]:
        """Each count of :class:`Work` by its name, and what the target makes of it."""
        found = {
            field.name: np.array([getattr(each, field.name) for each in self.work], float)
            for field in fields(Work)
        }
        pairs = list(zip(self.work, self.targets, strict=True))
        found["waves"] = np.array([work.waves(target) for work, target in pairs], float)
        # Blocks that run side by side, as far as there are some.
        side = [min(work.blocks, work.at_once(target)) for work, target in pairs]
        found["side"] = np.array(side, float)
        found["busy"] = np.array([min(w.blocks, t.processors) for w, t in pairs], float)
        found["bandwidth"] = np.array([target.bandwidth for target in self.targets], float)
        return found


@dataclass(frozen=True)
class Costs:
    """The constants of the law.

    Attributes:
        shared: by the names of :data:`SHARED`.
        own: by template, each by the names of :data:`OWN`.
    """

    shared: dict[str, float]
    own: dict[str, dict[str, float]]

    @classmethod
    def prior(cls, templates: Sequence[str]) -> "Costs":
        """What is assumed where nothing was measured."""
        return cls(dict(SHARED), {name: dict(OWN) for name in templates})

    def parts(self, counts: Counts) -> dict[str, Array]:
        """Seconds of each of the five, and of the launches."""
        c, cost = counts.columns, self.shared
        own = {
            name: np.array([self.own[template][name] for template in counts.templates])
            for name in OWN
        }
        steps = (
            c["steps"]
            + cost["collect"] * c["collecting"]
            + cost["exchange"] * c["exchanges"]
            + cost["tile"] * c["tiles"]
        )
        flying = c["side"] * np.where(c["ahead"] > 0, c["ahead"], np.inf)
        return {
            "traffic": cost["traffic"] * c["moved"] / c["bandwidth"],
            "copies": cost["latency"] * c["moved"] / flying,
            "chain": c["waves"] * (own["step"] * steps + cost["latency"] * c["waits"]),
            "instructions": cost["issue"] * c["issued"] / c["busy"],
            "carries": own["pass"] * c["passes"],
            "launches": cost["launch"] * c["launches"],
        }

    def seconds(self, counts: Counts) -> Array:
        """What each is expected to take."""
        parts = self.parts(counts)
        launches = parts.pop("launches")
        powers = sum(part**_SHARPNESS for part in parts.values())
        return launches + powers ** (1 / _SHARPNESS)
