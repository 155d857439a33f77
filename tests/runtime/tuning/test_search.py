"""Which candidates are measured: all of few, and of many the promising ones."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.tuning.cost_model import CostModel, features
from pdssm_compiler.runtime.tuning.effort import EFFORTS, Effort
from pdssm_compiler.runtime.tuning.problem import TuningProblem
from pdssm_compiler.runtime.tuning.search import BATCH, Search
from pdssm_compiler.runtime.tuning.space import Entry, Space, changes, space_of
from pdssm_compiler.schedules.registry import TEMPLATES
from pdssm_compiler.schedules.templates.cuda_rows import CudaRowsConfig
from pdssm_compiler.schedules.templates.torch_tokens import TorchTokensConfig
from tests.runtime.tuning import simulated

PROBLEM = TuningProblem(pd_scan(PdScan(32, 8)).text, "a scan", "forward", Sizes(2, 512, 8))
ROWS, TOKENS = TEMPLATES["cuda-rows"], TEMPLATES["torch-tokens"]
FIRST = CudaRowsConfig(4, 4)
WIDE = tuple(
    Entry(ROWS, config, False, changes(FIRST, config))
    for tile in (2, 4, 8, 16, 32)
    for slots in (2, 3, 4, 5, 6, 8)
    for sets in (1, 2)
    for team in (1, 2, 4)
    if (config := CudaRowsConfig(tile, slots, sets, team)) != FIRST
)
SLOW = Entry(TOKENS, TorchTokensConfig(), False, 1)
SPACE = Space(
    (Entry(ROWS, FIRST, True, 0), SLOW),
    (*WIDE, Entry(TOKENS, TorchTokensConfig(split=True), False, 2)),
    (),
)


def cost(entry: Entry) -> float:
    """A valley with a step, whose lowest point is tile 16, slots 6, sets 2, team 1."""
    if entry.template is TOKENS:
        return 100.0
    config = entry.config
    far = abs(math.log2(config.tile / 16)) + 0.5 * abs(math.log2(config.slots / 6))
    return 1.0 + 0.2 * far + 0.15 * (config.sets == 1) + 0.1 * config.team


def searched(
    effort: Effort,
    cost: Callable[[Entry], float | None],
    space: Space = SPACE,
    begun: Mapping[Entry, float | None] = MappingProxyType({}),
) -> dict[Entry, float | None]:
    """Every candidate that a search has measured, and those it began with."""
    search, times = Search(space, effort), dict(begun)
    while batch := search.next(times):
        assert not set(batch) & set(times)
        assert len(batch) == len(set(batch))
        times |= {entry: cost(entry) for entry in batch}
        assert len(times) <= effort.candidates
    return times


def test_a_small_space_is_measured_whole() -> None:
    times = searched(Effort(1000, 1, 1.0, 1e9, 1), cost)
    assert set(times) == {*SPACE.first, *SPACE.others}


def test_the_heuristics_come_first_and_hopeless_templates_end_there() -> None:
    search = Search(SPACE, EFFORTS["full"])
    first = search.next({})
    assert tuple(first) == SPACE.first
    times = searched(EFFORTS["full"], cost)
    assert {entry for entry in times if entry.template is TOKENS} == {SLOW}
    assert len(times) == len(WIDE) + 2  # few enough for `full`


def test_what_is_hopeless_by_itself_is_not_measured() -> None:
    """Unless nothing else is right, or it is fast enough for what is known of it."""
    assert EFFORTS["quick"].hopeless == 2.0
    best = min(cost(entry) for entry in WIDE)
    for least, runs in ((1e3, False), (best, True)):
        slow = replace(SLOW, least_ms=least)
        space = Space((SPACE.first[0], slow), SPACE.others, ())
        assert Search(space, EFFORTS["quick"]).next({}) == [SPACE.first[0]]
        times = searched(EFFORTS["quick"], lambda e: min(cost(e), 3.0), space)
        assert [e for e in times if e.template is TOKENS] == [slow] * runs
        assert len(times) <= Search(space, EFFORTS["quick"]).planned(times)
    failed = searched(Effort(9, 1, 1.0, 2.0, 1), lambda _: None, space)
    assert list(failed)[:2] == [SPACE.first[0], slow]


def test_a_loop_of_plain_pytorch_knows_what_it_takes_on_a_gpu() -> None:
    sizes = Sizes(32, 46554, 1)
    here = space_of(replace(PROBLEM, sizes=sizes))
    there = space_of(replace(PROBLEM, sizes=sizes, absent=simulated.H100))
    least = {e.template.name: e.least_ms for e in there.first if e.least_ms}
    # It took 1925 ms.
    assert least == {"torch-tokens": pytest.approx(93.1, rel=1e-3)}
    assert not any(entry.least_ms for entry in here.first)


@pytest.mark.parametrize("effort", ["quick", "full"])
def test_a_large_space_is_searched_near_its_best(effort: str) -> None:
    times = searched(EFFORTS[effort], cost)
    best = min(ms for ms in times.values() if ms is not None)
    assert best <= 1.05 * min(map(cost, WIDE))


@pytest.mark.parametrize("effort", ["quick", "full"])
def test_a_search_that_has_ended_stays_ended(effort: str) -> None:
    # Patience ends it, rather than the number of candidates.
    patient = replace(EFFORTS[effort], candidates=len(WIDE) - 1)
    times = searched(patient, cost)
    assert Search(SPACE, patient).next(times) == []
    # One that was interrupted between two batches goes on as if it had not been.
    for done in range(len(SPACE.first), len(times), BATCH):
        begun = dict(list(times.items())[:done])
        assert list(searched(patient, cost, begun=begun)) == list(times)


def test_a_search_ends_when_it_finds_nothing_faster() -> None:
    for patience in (1, 3):
        times = searched(Effort(120, 1, 1.0, 8.0, patience), lambda e: 1.0 + (not e.heuristic))
        assert len(times) == len(SPACE.first) + patience * BATCH


def test_candidates_that_fail_are_passed_over() -> None:
    def fails(entry: Entry) -> float | None:
        return None if entry.template is ROWS and entry.config.slots != 3 else cost(entry)

    times = searched(EFFORTS["quick"], fails)
    assert min(ms for ms in times.values() if ms is not None) < 2.5
    assert len(searched(EFFORTS["quick"], lambda _: None)) == EFFORTS["quick"].candidates


def test_the_candidates_of_this_cpu() -> None:
    space = space_of(PROBLEM)
    assert space.first[0].template.name == "cpu-rows"
    assert {e.template.name for e in space.first} == {
        "cpu-rows", "torch-chunks", "torch-tokens",
    }  # fmt: skip
    assert [e.heuristic for e in space.first] == [True, False, False]
    every = [*space.first, *space.others]
    assert len(every) == len(set(every))
    for entry in every:
        assert entry.template.feasible(PROBLEM.program, PROBLEM.target, entry.config) is None
        assert (entry.changes == 0) == entry.heuristic


def test_both_backends_of_a_gpu_are_in_one_race() -> None:
    """Of one that is not here, as if its compilers were."""
    space = space_of(replace(PROBLEM, absent=simulated.H100))
    assert space.first[0].heuristic
    first = {entry.template.name: entry.template.backend for entry in space.first}
    # Plain PyTorch as well, which what is measured is held to.
    assert set(first.values()) == {"tvm-cuda", "triton", "torch"}
    others = {entry.template.name for entry in space.others}
    assert {"cuda-rows", "cuda-chunks", "triton-rows", "triton-chunks"} <= others


def test_a_smaller_gpu_has_no_candidate_that_does_not_fit() -> None:
    """Found out before anything is compiled."""
    program = replace(PROBLEM, absent=simulated.H100).program
    found = {}
    for gpu in (simulated.H100, simulated.SMALL):
        space = space_of(replace(PROBLEM, absent=gpu))
        found[gpu.name] = {(e.template.name, e.config) for e in (*space.first, *space.others)}
        for name, config in found[gpu.name]:
            assert TEMPLATES[name].feasible(program, gpu, config) is None
    refused = {
        TEMPLATES[name].feasible(program, simulated.SMALL, config)
        for name, config in found[simulated.H100.name] - found[simulated.SMALL.name]
    }
    assert any("shared memory" in (reason or "") for reason in refused)


PLACES = st.lists(st.integers(0, len(WIDE) - 1), min_size=1, max_size=30, unique=True)
SLOPES = st.fixed_dictionaries(
    {name: st.floats(-0.1, 0.1) for name in ("tile", "slots", "sets", "team")}
)


@given(PLACES, SLOPES, st.data())
def test_a_model_says_what_was_measured_and_knows_less_elsewhere(
    known: list[int], slopes: dict[str, float], data: st.DataObject
) -> None:
    """Of times that follow a law, and are off it by what two timings of the same differ by."""
    model = CostModel([(entry.template.name, entry.fields) for entry in WIDE])
    noise = st.floats(-0.01, 0.01)
    measured = {
        place: sum(
            slope * math.log2(WIDE[place].fields[name]) for name, slope in slopes.items()
        ) + data.draw(noise)
        for place in known
    }  # fmt: skip
    every = model.expected(measured, range(len(WIDE)))
    off = np.abs(every.mean[known] - np.array([measured[place] for place in known]))
    # Sums of the smoother's rows are below 2.3, and what it takes from slopes is below 0.018.
    assert off.max() <= 0.05
    deviations = np.sqrt(np.maximum(np.diag(every.covariance), 0.0))
    assert deviations[known].max() <= 0.02 + 1e-6
    others = [place for place in range(len(WIDE)) if place not in measured]
    assert deviations[others].mean() > 2 * deviations[known].mean()


def test_what_one_template_takes_says_nothing_of_another() -> None:
    model = CostModel([("a", {"x": 1}), ("a", {"x": 2}), ("b", {"x": 1})])
    expected = model.expected({0: math.log(0.5)}, [1, 2])
    assert expected.mean[0] < expected.mean[1] < 0
    assert expected.covariance[0, 0] < expected.covariance[1, 1]
    assert expected.covariance[0, 1] == pytest.approx(0.0, abs=0.3)


def test_a_failure_is_seldom_alone() -> None:
    model = CostModel([("t", {"x": 1 << n}) for n in range(8)])
    far = model.expected({0: 0.0, 7: None}, [1, 6])
    assert far.mean[0] < far.mean[1] < math.log(3.0)


def test_a_batch_is_not_many_times_the_same() -> None:
    """Beside the most promising one, its neighbours promise less."""
    model = CostModel([("t", {"x": 1 << n}) for n in range(12)])
    expected = model.expected({0: 0.0, 11: 0.0}, list(range(1, 11)))
    first, second, third = expected.most_promising(3, 0.0)
    assert min(abs(first - second), abs(second - third), abs(first - third)) >= 2
    assert sorted(expected.most_promising(99, 0.0)) == list(range(10))


@pytest.mark.parametrize("number", range(4))
def test_quick_is_near_the_best_of_all_on_a_gpu_that_follows_the_law(number: int) -> None:
    """Which it knows nothing of; on spaces of hundreds as they are."""
    problem = simulated.problems(simulated.H100)[number]
    entries = simulated.candidates(problem)
    seconds = dict(zip(entries, simulated.seconds(problem, entries), strict=True))
    first = [entry for entry in space_of(problem).first if entry in seconds]
    rest = [entry for entry in entries if entry not in first]
    space = Space(tuple(first), tuple(rest), ())
    noise = np.random.default_rng(number)
    times = searched(
        EFFORTS["quick"], lambda e: float(seconds[e] * np.exp(noise.normal(0, 0.01))), space
    )
    assert len(times) < len(entries) / 5
    taken = min(times, key=lambda entry: times[entry] or math.inf)
    assert seconds[taken] <= 1.05 * min(seconds.values())


def test_features_of_a_config() -> None:
    assert features({"a": 7, "b": True, "c": None}) == {"a": 3.0, "b": 1.0, "c none": 1.0}
