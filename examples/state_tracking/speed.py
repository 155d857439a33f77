"""How long a step takes, alone and with others beside it."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from examples.state_tracking.settings import Settings
from examples.state_tracking.training import Run

_WARM_UP = 10


class Speed(NamedTuple):
    """What steps of runs beside one another took.

    Attributes:
        model: of all of them.
        together: how many.
        prepared: seconds until all could begin.
        seconds: of one step of each, together.
        gain: over one after the other, by the time of one alone; 1 for that itself.
    """

    model: str
    together: int
    prepared: float
    seconds: float
    gain: float


def speeds(
    settings: Sequence[Settings], counts: Sequence[int], steps: int, device: torch.device
) -> list[Speed]:
    """The speed of so many runs at once, for each count, the first of which is 1.

    Args:
        settings: of runs of one model, as many as the largest count.
        counts: how many at once.
        steps: of each run, that are timed.
        device: where.
    """
    found: list[Speed] = []
    with tempfile.TemporaryDirectory() as folder:
        runs: list[Run] = []
        for count in counts:
            began = time.perf_counter()
            for each in settings[len(runs) : count]:
                runs.append(Run(each, Path(folder) / each.name, device))
                runs[-1].prepare()
            prepared = time.perf_counter() - began
            _advance(runs, _WARM_UP)
            seconds = _advance(runs, steps) / steps
            alone = found[0].seconds if found else seconds
            found.append(
                Speed(settings[0].model, count, prepared, seconds, alone * count / seconds)
            )
    return found


def _advance(runs: Sequence[Run], steps: int) -> float:
    """Seconds that steps of all took."""
    on_gpu = runs[0].device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        for run in runs:
            with torch.cuda.stream(run.stream):
                run.advance()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began
