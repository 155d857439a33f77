"""Clocks: what they say of known times, and what they replay."""

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdssm_compiler.runtime.tuning.timing import (
    Clock,
    device_times,
    graph_times,
    host_times,
    in_turn,
    summary,
)


def test_a_summary() -> None:
    assert summary([0.004, 0.002, 0.003]) == {
        "ms": 3.0,
        "least_ms": 2.0,
        "most_ms": 4.0,
        "spread": pytest.approx(2 / 3),
        "runs": 3,
    }


def test_the_host_times_calls_after_a_warmup() -> None:
    calls: list[int] = []
    assert host_times(lambda: calls.append(1), runs=3)["runs"] == 3
    assert len(calls) == 5


@given(st.integers(0, 1 << 28), st.integers(1, 1 << 34))
def test_copies_are_as_many_as_the_cache_needs(cache: int, data: int) -> None:
    copies = Clock(True, cache).copies(data)
    assert copies >= 1
    assert copies * data >= 4 * cache
    assert copies == 1 or (copies - 1) * data < 4 * cache


def test_calls_take_turns() -> None:
    call = in_turn([lambda: "a", lambda: "b", lambda: "c"])
    assert [call() for _ in range(5)] == ["a", "b", "c", "a", "b"]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Of a GPU, what clocks ask: streams, events 8 ms apart, graphs that count their replays."""
    state = SimpleNamespace(capturing=False, replays=0)

    class Graph:
        def replay(self) -> None:
            state.replays += 1

    @contextmanager
    def entered(*_: Any) -> Any:
        yield

    @contextmanager
    def captured(_: Graph) -> Any:
        state.capturing = True
        yield
        state.capturing = False

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            pass

        def elapsed_time(self, end: "Event") -> float:
            assert end is not self
            return 8.0

    for name, value in {
        "Stream": object,
        "stream": entered,
        "synchronize": lambda: None,
        "CUDAGraph": Graph,
        "graph": captured,
        "Event": Event,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return state


@pytest.mark.parametrize(("functions", "calls"), [(1, 8), (3, 9), (20, 20)])
def test_a_graph_holds_each_call_as_often(
    gpu: SimpleNamespace, functions: int, calls: int
) -> None:
    seen: dict[int, int] = dict.fromkeys(range(functions), 0)

    def call(number: int) -> torch.Tensor:
        seen[number] += gpu.capturing
        return torch.empty(1)

    times = graph_times([lambda n=n: call(n) for n in range(functions)], runs=4)
    assert set(seen.values()) == {calls // functions}
    assert times["ms"] == pytest.approx(8.0 / calls)
    assert times["most_ms"] == pytest.approx(8.0 / calls)
    assert (times["spread"], times["runs"]) == (0, 4)
    assert gpu.replays == 2 + 4


def test_events_time_each_run(gpu: SimpleNamespace) -> None:
    calls: list[int] = []
    assert device_times(lambda: calls.append(1), runs=3)["ms"] == 8.0
    assert len(calls) == 5 + 3


def test_a_clock_is_the_devices() -> None:
    assert Clock.of(torch.device("cpu")) == Clock(on_gpu=False, cache_bytes=0)
