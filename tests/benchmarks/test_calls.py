"""Problems and calls: their maps, their floors, and what the states are."""

from dataclasses import replace

import pytest
import torch

import pdssm_compiler
from benchmarks.calls import DIRECTIONS, calls_of
from benchmarks.problems import MAP_CLASSES, random_problem
from benchmarks.torch_loop import torch_loop
from tests.benchmarks.conftest import AGENDA, CPU, TINY


@pytest.mark.parametrize("maps", MAP_CLASSES)
def test_maps_are_as_they_are_called(maps: str) -> None:
    dictionary = random_problem(TINY, CPU, maps=maps).dictionary
    rows = {len(set(column.tolist())) for head in dictionary for column in head}
    if maps == "permutation":
        assert rows == {TINY.state_size}
    elif maps == "one row":
        assert rows == {1}
    else:
        assert min(rows) > 1
        assert max(rows) < TINY.state_size


def test_maps_of_another_name() -> None:
    with pytest.raises(ValueError, match="unknown maps 'worst'; use one of permutation"):
        random_problem(TINY, CPU, maps="worst")


@pytest.mark.parametrize("maps", MAP_CLASSES)
@pytest.mark.parametrize(
    ("payload", "floors"), [(None, (24, 40, 40)), (torch.bfloat16, (16, 28, 28))]
)
def test_floors_are_the_vectors_in_and_out(
    maps: str, payload: torch.dtype | None, floors: tuple[int, ...]
) -> None:
    calls = calls_of(TINY, maps, CPU, payload)
    assert tuple(calls) == DIRECTIONS
    assert tuple(c.floor_bytes for c in calls.values()) == tuple(
        floor * TINY.elements for floor in floors
    )


def test_a_step_reads_a_state_and_leaves_one() -> None:
    (call,) = calls_of(AGENDA.step, "random", CPU).values()
    states, final = call()
    assert torch.equal(states[:, 0], final)
    assert call.floor_bytes == 40 * AGENDA.step.elements


@pytest.mark.parametrize("maps", MAP_CLASSES)
def test_a_call_is_the_scan(maps: str) -> None:
    problem = random_problem(TINY, CPU, maps=maps)
    (states,) = calls_of(TINY, maps, CPU, directions=("forward",))["forward"]()
    looped = torch_loop(problem.diagonal, problem.drive, problem.destination)
    assert torch.allclose(states, looped, rtol=1e-5, atol=1e-5)
    scanned, _ = pdssm_compiler.pd_scan(problem.diagonal, problem.drive, **problem.maps)
    assert torch.allclose(states, scanned, rtol=1e-5, atol=1e-5)


def test_a_copy_is_the_same_call_elsewhere() -> None:
    call = replace(calls_of(TINY, "random", CPU)["backward, active"], config="cpu-rows")
    copy = call.copy()
    assert copy.config == "cpu-rows"
    assert {t.data_ptr() for t in call.tensors}.isdisjoint(t.data_ptr() for t in copy.tensors)
    for mine, theirs in zip(call(), copy(), strict=True):
        assert torch.equal(mine, theirs)
