"""How hard the tuner tries."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """One level.

    Attributes:
        candidates: how many are measured of one problem, at most.
        runs: how often each is timed.
        seconds: how long the timed runs of one may take, about.
        hopeless: a template whose heuristic's config is so many times slower than the best is
            not looked into.
        patience: batches without a faster candidate, after which the search ends.
        limit: seconds that a race may take, as by a budget of its own.
    """

    candidates: int
    runs: int
    seconds: float
    hopeless: float
    patience: int
    limit: float = math.inf


EFFORTS = {
    # Says what calls take, and measures nothing.
    "none": Effort(0, 0, 0.0, 1.0, 1),
    "quick": Effort(48, 10, 0.3, 2.0, 3, limit=60.0),
    "full": Effort(320, 30, 1.0, 8.0, 10),
}
