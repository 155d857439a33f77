"""Times: medians and spreads, of calls on the host and of work on a GPU."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, least and most, in milliseconds."""
    return {
        "ms": statistics.median(seconds) * 1e3,
        "least_ms": min(seconds) * 1e3,
        "most_ms": max(seconds) * 1e3,
        "runs": len(seconds),
    }


def host_times(function: Callable[[], Any], runs: int, warmup: int = 2) -> dict[str, float]:
    """Time of a call on the CPU."""
    for _ in range(warmup):
        function()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return summary(seconds)


def graph_times(function: Callable[[], Any], runs: int, calls: int = 8) -> dict[str, float]:
    """Time of a call's work on the current GPU, free of what the host takes to launch it: replays
    of a graph of several calls.
    """
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            function()
    times = device_times(graph.replay, runs, warmup=2)
    return times | {name: times[name] / calls for name in ("ms", "least_ms", "most_ms")}


def device_times(function: Callable[[], Any], runs: int, warmup: int = 5) -> dict[str, float]:
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
