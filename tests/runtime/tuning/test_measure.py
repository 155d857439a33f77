"""How often what is slow is called to be timed."""

from types import SimpleNamespace
from typing import Any

import pytest

from pdssm_compiler.runtime.tuning import measure
from pdssm_compiler.runtime.tuning.timing import Clock

CLOCK = Clock(True, 1 << 20)


@pytest.mark.parametrize(
    ("ms", "best_ms", "calls", "least"),
    [
        # Nothing is known to be better, or it may win: in full.
        (2000.0, None, 1, 1),
        (0.2, 0.19, 1, 8),
        (0.9, 0.5, 1, 3),
        # Hopeless, but soon done: a few calls. Or one.
        (34.0, 0.2, 4, None),
        (2000.0, 0.2, 1, None),
        # Many times slower than next to nothing.
        (0.9, 0.01, 1, 3),
    ],
)
def test_what_is_slow_is_called_seldom(
    monkeypatch: pytest.MonkeyPatch,
    ms: float,
    best_ms: float | None,
    calls: int,
    least: int | None,
) -> None:
    seen: list[tuple[str, int, int]] = []

    def plain(function: Any, runs: int, warmup: int) -> dict[str, float]:
        seen.append(("plain", runs, warmup))
        return {"ms": ms, "least_ms": ms, "spread": 0.0}

    def replays(functions: Any, runs: int, least_calls: int) -> dict[str, float]:
        seen.append(("graph", runs, least_calls))
        return {"ms": ms, "spread": 0.0}

    monkeypatch.setattr(measure, "device_times", plain)
    monkeypatch.setattr("pdssm_compiler.runtime.tuning.timing.graph_times", replays)
    request: Any = SimpleNamespace(runs=10, seconds=0.3, best_ms=best_ms)
    found = measure._times(CLOCK, [lambda: None], request)
    assert found["ms"] == ms
    assert sum(runs for how, runs, _ in seen if how == "plain") == calls
    assert all(warmup == 0 for how, _, warmup in seen if how == "plain")
    graphs = [(runs, held) for how, runs, held in seen if how == "graph"]
    assert [held for _, held in graphs] == ([] if least is None else [least])
    assert all(3 <= runs <= 10 for runs, _ in graphs)
