"""Times: medians and spreads, of calls on the host and of work on a GPU."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

Function = Callable[[], Any]
Times = dict[str, float]

# Data that is read again after this many times the last-level cache comes from memory.
_CACHES = 4
# Calls of a graph, so that its own start counts for little.
LEAST_CALLS = 8


def summary(seconds: list[float]) -> Times:
    """Median, least and most, in milliseconds, and how far apart the two are, of the median."""
    median = statistics.median(seconds)
    return {
        "ms": median * 1e3,
        "least_ms": min(seconds) * 1e3,
        "most_ms": max(seconds) * 1e3,
        "spread": (max(seconds) - min(seconds)) / median,
        "runs": len(seconds),
    }


def host_times(function: Function, runs: int, warmup: int = 2) -> Times:
    """Time of a call on the CPU."""
    for _ in range(warmup):
        function()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return summary(seconds)


def graph_times(functions: Sequence[Function], runs: int, least_calls: int = LEAST_CALLS) -> Times:
    """Time of a call's work on the current GPU, free of what the host takes to launch it: replays
    of a graph of several calls, those of ``functions`` in turn.
    """
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for function in islice(cycle(functions), max(3, len(functions))):
            function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    calls = len(functions) * -(-least_calls // len(functions))
    kept = []
    with torch.cuda.graph(graph):
        for function in islice(cycle(functions), calls):
            result = function()
            # Where calls take turns, each is to write to memory of its own.
            if len(functions) > 1:
                kept.append(result)
    times = device_times(graph.replay, runs, warmup=2)
    return times | {name: times[name] / calls for name in ("ms", "least_ms", "most_ms")}


def device_times(function: Function, runs: int, warmup: int = 5) -> Times:
    """Time of a call's work on the current GPU, by events."""
    for _ in range(warmup):
        function()
    torch.cuda.synchronize()
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(runs)
    ]
    for start, end in events:
        start.record()
        function()
        end.record()
    torch.cuda.synchronize()
    return summary([start.elapsed_time(end) / 1e3 for start, end in events])


def copy_roof(device: torch.device, clock: "Clock") -> float:
    """Bytes a second of a large copy by torch, reads and writes together."""
    size = 1 << (31 if device.type == "cuda" else 26)
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    times = clock.calls([lambda: target.copy_(source)], 20)
    return 2 * source.numel() / (times["ms"] / 1e3)


def cpu_cache_bytes() -> int:
    """The last-level cache of the first processor, as Linux tells it; 0 where nobody does."""
    levels = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    sizes = [path.read_text().strip() for path in levels]
    return max((int(s[:-1]) << 10 for s in sizes if s.endswith("K")), default=0)


def in_turn(functions: Sequence[Function]) -> Function:
    """A function that calls the next of them each time."""
    following = cycle(functions)
    return lambda: next(following)()


@dataclass(frozen=True)
class Clock:
    """How a device is timed. All that only a GPU can do is behind it.

    Attributes:
        on_gpu: by events and graphs, or by the host's clock.
        cache_bytes: the last-level cache that timed calls must not find their data in; 0 for
            calls that take what they find.
    """

    on_gpu: bool
    cache_bytes: int = 0

    @classmethod
    def of(cls, device: torch.device) -> "Clock":
        """The clock of a device. A CPU's calls take what they find in its caches, as its copy
        roof does.
        """
        if device.type != "cuda":
            return cls(False)
        return cls(True, torch.cuda.get_device_properties(device).L2_cache_size)

    @classmethod
    def cold(cls, device: torch.device) -> "Clock":
        """The clock of a device whose calls find nothing in the last-level cache, a CPU's
        neither.
        """
        return cls.of(device) if device.type == "cuda" else cls(False, cpu_cache_bytes())

    def copies(self, data_bytes: int) -> int:
        """How many copies of a call's data must take turns, so that none is in the cache when it
        is read.
        """
        return max(1, -(-_CACHES * self.cache_bytes // data_bytes))

    def work(
        self, functions: Sequence[Function], runs: int, least_calls: int = LEAST_CALLS
    ) -> Times:
        """Times of what a call does on the device; of calls that do the same on other data, in
        turn. A GPU's graph holds at least so many calls.
        """
        if self.on_gpu:
            return graph_times(functions, runs, least_calls)
        return host_times(in_turn(functions), runs)

    def calls(self, functions: Sequence[Function], runs: int) -> Times:
        """Times of eager calls, which the host may hold up."""
        times = device_times if self.on_gpu else host_times
        return times(in_turn(functions), runs)
