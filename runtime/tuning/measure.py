"""What a process of its own does with a candidate: load it, hold it to the oracle, time it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch

from pdssm_compiler.runtime.devices import as_current
from pdssm_compiler.runtime.faults import check
from pdssm_compiler.runtime.plan import Plan, program_of
from pdssm_compiler.runtime.tuning.floor import floor_bytes
from pdssm_compiler.runtime.tuning.inputs import random_tensors
from pdssm_compiler.runtime.tuning.oracle import Probe, probes
from pdssm_compiler.runtime.tuning.problem import TuningProblem
from pdssm_compiler.runtime.tuning.timing import (
    LEAST_CALLS,
    Clock,
    copy_roof,
    device_times,
    host_times,
)

# Copies of a call's data, so that none is found in a cache, are no more and take no more.
_MOST_COPIES = 256
_MOST_COPIED = 1 << 30
# A graph of calls that are shorter than this together starts more often than it should.
_REPLAY_SECONDS = 0.002
# Fewer timed runs show no spread.
_FEWEST_RUNS = 3
# How many times slower than the best a candidate is that is not timed well.
_HOPELESS = 8


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        problem: the problem.
        config: the candidate, as text.
        runs: how often it is timed, if there is time.
        seconds: how long the timed runs may take, about.
        best_ms: of the fastest candidate so far.
    """

    problem: TuningProblem
    config: str
    runs: int
    seconds: float
    best_ms: float | None = None


@dataclass(frozen=True)
class Measured:
    """What a candidate is.

    Attributes:
        fault: why it is wrong, None if it is right.
        ms, spread: see :class:`~pdssm_compiler.runtime.tuning.rows.Row`.
        floor_bytes: the fewest bytes it can move.
        resources: what its kernel takes, where the backend knows it.
    """

    fault: str | None
    ms: float | None = None
    spread: float | None = None
    floor_bytes: int | None = None
    resources: dict[str, int] | None = None


def measure(request: Request) -> Measured:
    """Check and time a candidate. Whatever it raises, it has failed."""
    device = torch.device(request.problem.device)
    with as_current(device):
        return _measure(request, device)


def _measure(request: Request, device: torch.device) -> Measured:
    problem = request.problem
    bench = _bench(problem)
    plan = Plan(program_of(problem.text), device, problem.alignment, None, request.config)
    for probe in bench.probes:
        fault = probe.fault(plan)
        _synchronise(device)
        check()
        if fault is not None:
            return Measured(fault)
    calls = [partial(plan.run, tensors, trusted=True) for tensors in bench.copies]
    times = _times(bench.clock, calls, request)
    _synchronise(device)
    check()
    resources = plan.kernels.of(problem.sizes).kernel.resources()
    return Measured(None, times["ms"], times["spread"], bench.floor_bytes, resources)


def prepare(problem: TuningProblem) -> None:
    """Make what all candidates of a problem share: its inputs, their copies, the reference."""
    device = torch.device(problem.device)
    with as_current(device):
        for probe in _bench(problem).probes:
            probe.prepare()


def roof_of(device: str) -> float:
    """Bytes a second of a large copy on a device."""
    where = torch.device(device)
    with as_current(where):
        return copy_roof(where, Clock.of(where))


@dataclass(frozen=True)
class _Bench:
    """What the candidates of a problem share."""

    probes: list[Probe]
    copies: Sequence[Sequence[torch.Tensor]]
    clock: Clock
    floor_bytes: int


@lru_cache(maxsize=1)
def _bench(problem: TuningProblem) -> _Bench:
    device = torch.device(problem.device)
    program = program_of(problem.text)
    tensors = random_tensors(program, problem.sizes, device, seed=0)
    clock = Clock.cold(device)
    data = max(1, sum(tensor.nbytes for tensor in tensors))
    count = min(clock.copies(data), _MOST_COPIES, max(1, _MOST_COPIED // data))
    copies = [tensors, *([t.clone() for t in tensors] for _ in range(count - 1))]
    moved = floor_bytes(problem.text, tensors)
    return _Bench(probes(program, tensors, problem.sizes), copies, clock, moved)


def _times(clock: Clock, calls: Sequence[Callable[[], Any]], request: Request) -> dict[str, float]:
    """Times of a candidate: in full if it may win, otherwise of a few calls, as their launches
    alone would fill a graph.
    """
    timed = device_times if clock.on_gpu else host_times
    # It was called before, to be checked.
    first = timed(calls[0], 1, warmup=0)
    seconds, best = first["ms"] / 1e3, request.best_ms
    if first["ms"] > 1 and best is not None and first["ms"] > _HOPELESS * best:
        if seconds * _FEWEST_RUNS > request.seconds:
            return first
        first = timed(calls[0], _FEWEST_RUNS, warmup=0)
        if first["least_ms"] > _HOPELESS * best:
            return first
    # A graph holds every call, and of short ones several.
    least = min(LEAST_CALLS, max(1, math.ceil(_REPLAY_SECONDS / max(seconds, 1e-9))))
    together = max(least, len(calls)) if clock.on_gpu else 1
    runs = int(request.seconds / (seconds * together)) if seconds else request.runs
    return clock.work(calls, max(_FEWEST_RUNS, min(request.runs, runs)), least)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
