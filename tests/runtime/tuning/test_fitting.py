"""Fitting the cost model's constants."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdssm_compiler.runtime.tuning.evidence import timed
from pdssm_compiler.runtime.tuning.fitting import Timed, fit
from pdssm_compiler.schedules.cost import Costs, Counts
from tests.runtime.tuning.simulated import H100, SMALL, measured

NAMES = ["cuda-rows", "cuda-chunks", "cuda-step", "triton-rows"]
NOTHING = Timed(Counts([], [], []), np.zeros(0), [])


def test_without_rows_everything_is_as_assumed() -> None:
    assert fit(NOTHING, NAMES) == Costs.prior(NAMES)


def test_what_a_gpu_takes_is_found() -> None:
    rows = timed(measured(H100).samples)
    costs = fit(rows, NAMES)
    off = np.log(costs.seconds(rows.counts) / rows.seconds)
    assert float(np.sqrt(np.mean(off**2))) < 0.05
    # Nothing was measured of it.
    assert costs.own["triton-rows"] == pytest.approx(Costs.prior(NAMES).own["triton-rows"])
    # And it holds on a GPU that has other figures.
    there = timed(measured(SMALL).samples)
    off = np.log(costs.seconds(there.counts) / there.seconds)
    assert float(np.sqrt(np.mean(off**2))) < 0.08


@settings(max_examples=10)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=3), st.floats(0.1, 10.0))
def test_a_few_rows_move_few_constants(places: list[int], scale: float) -> None:
    rows = timed(measured(H100).samples)
    few = rows.only([place % len(rows) for place in places])
    few = Timed(few.counts, few.seconds * scale, few.problems)
    found, assumed = fit(few, NAMES), Costs.prior(NAMES)
    for name, value in found.shared.items():
        assert 1 / 50 < value / assumed.shared[name] < 50
    expected = found.seconds(few.counts)
    assert np.isfinite(expected).all()
    # It is drawn towards what was measured, never away.
    before = np.abs(np.log(assumed.seconds(few.counts) / few.seconds)).max()
    assert np.abs(np.log(expected / few.seconds)).max() <= before * 1.2 + 1e-3
