"""Scans at the sizes that are measured: every token of every row follows from the one before it,
and every gradient from the one behind it.

Each is held to one step of the definition in double precision, all tokens at once, so nothing here
takes a loop over 32 768 of them. A state is known to ``c·ε·s``, ``s`` the same scan over absolute
values, and so is what a step makes of the state before it: the two may be twice as far apart.
"""

from typing import NamedTuple

import pytest
import torch

from benchmarks.calls import calls_of
from benchmarks.problems import MAP_CLASSES, Problem, random_problem
from pdssm_compiler import pd_scan
from pdssm_compiler.suite import SUITE, Shape
from tests.public.accuracy import FORWARD, GRADIENT, assert_within, magnitudes, wide

pytestmark = pytest.mark.usefixtures("poisoned_memory")

SHAPES = pytest.mark.parametrize("shape", SUITE, ids=lambda shape: shape.name)
MAPS = pytest.mark.parametrize("maps", MAP_CLASSES)


def scan(problem: Problem, maps: str, **more: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """States and final state."""
    states, final = pd_scan(
        problem.diagonal,
        problem.drive,
        **problem.maps,
        **more,
        map_class=MAP_CLASSES[maps],
        output_final_state=True,
    )
    assert final is not None
    return states, final


def absolute(problem: Problem) -> Problem:
    """The same of absolute values."""
    numbers = (magnitudes(each).to(each.dtype) for each in (problem.diagonal, problem.drive))
    return Problem(*numbers, problem.dictionary, problem.selection)


def part(problem: Problem, tokens: slice) -> Problem:
    """A stretch of tokens."""
    cut = (each[:, tokens] for each in (problem.diagonal, problem.drive))
    return Problem(*cut, problem.dictionary, problem.selection[:, tokens])


def step(problem: Problem, states: torch.Tensor) -> torch.Tensor:
    """What each token makes of the state before it, in double precision."""
    before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1)
    moved = torch.view_as_real(wide(problem.diagonal) * wide(before))
    places = problem.destination[..., None].expand(moved.shape)
    sums = torch.zeros_like(moved).scatter_add_(-2, places, moved)
    return torch.view_as_complex(sums) + wide(problem.drive)


@MAPS
@SHAPES
def test_every_state_follows_from_the_one_before(
    shape: Shape, maps: str, device: torch.device
) -> None:
    problem = random_problem(shape, device, maps=maps)
    states, final = scan(problem, maps)
    scale, last = scan(absolute(problem), maps)
    assert_within(states, step(problem, states), scale, 2 * FORWARD, "states")
    assert_within(final, wide(states[:, -1]), last, 2 * FORWARD, "final state")


@MAPS
@SHAPES
def test_any_split_is_the_whole(shape: Shape, maps: str, device: torch.device) -> None:
    """Also within a chunk, and a token before the end."""
    problem = random_problem(shape, device, maps=maps, seed=1)
    whole, final = scan(problem, maps)
    scale, last = scan(absolute(problem), maps)
    for cut in (1, shape.length // 2 + 3, shape.length - 1):
        first, state = scan(part(problem, slice(cut)), maps)
        rest = part(problem, slice(cut, None))
        second, end = scan(rest, maps, initial_state=state)
        joined = torch.cat([first, second], 1)
        assert_within(joined, wide(whole), scale, 2 * FORWARD, "states")
        assert_within(end, wide(final), last, 2 * FORWARD, "final state")


@SHAPES
def test_rows_know_nothing_of_one_another(shape: Shape, device: torch.device) -> None:
    """A sequence's states are the same bits whatever the others hold."""
    problem = random_problem(shape, device)
    states, _ = scan(problem, "random")
    others = random_problem(shape, device, seed=1)
    for name in ("diagonal", "drive", "selection"):
        getattr(others, name)[-1] = getattr(problem, name)[-1]
    others.dictionary.copy_(problem.dictionary)
    mixed, _ = scan(others, "random")
    assert torch.equal(mixed[-1], states[-1])


class Backward(NamedTuple):
    """What the active surrogate's backward is given and leaves."""

    given: dict[str, torch.Tensor]
    left: dict[str, torch.Tensor]


def backward(shape: Shape, maps: str, device: torch.device) -> Backward:
    """Of random states and gradients that arrive."""
    call = calls_of(shape, maps, device, directions=("backward, active",))["backward, active"]
    program = call.program
    names = [out.name for out in (*program.token_outputs, *program.sum_outputs)]
    given = [each.name for each in program.inputs if each.inverse_of is None]
    return Backward(
        dict(zip(given, call.tensors, strict=True)), dict(zip(names, call(), strict=True))
    )


@MAPS
@SHAPES
def test_every_gradient_follows_from_the_one_behind(
    shape: Shape, maps: str, device: torch.device
) -> None:
    """Of drive and diagonal, the selection's scores, the dictionary's sums."""
    given, left = backward(shape, maps, device)
    assert set(left) == {f"grad_{n}" for n in ("diagonal", "drive", "selection", "dictionary")}
    heads = torch.arange(shape.heads, device=device)
    selection = given["selection"].long()
    places = given["dictionary"].long()[heads, selection]
    diagonal, drive = wide(given["diagonal"]), wide(left["grad_drive"])
    # Scaled by what the terms may be: |D| ≤ 1, and gradients that arrive add up.
    largest = drive.abs().amax((1, 3), keepdim=True)
    gathered = drive.gather(-1, places)
    later = torch.cat([(diagonal.conj() * gathered)[:, 1:], torch.zeros_like(drive[:, :1])], 1)
    want = wide(given["grad_states"]) + later
    assert_within(left["grad_drive"], want, largest.expand(want.shape), 2 * GRADIENT, "drive")
    states = wide(given["saved_state"])
    before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1)
    want = before.conj() * gathered
    assert_within(left["grad_diagonal"], want, want, GRADIENT, "diagonal")
    terms = (want.conj() * diagonal).real
    sizes = (want * diagonal).abs()
    score, size = terms.sum(-1), sizes.sum(-1)
    assert_within(left["grad_selection"], score, size, GRADIENT, "selection")
    for k in range(shape.dictionary_size):
        chosen = (selection == k)[..., None]
        mine = left["grad_dictionary"][:, :, k]
        sums, scale = ((each * chosen).sum(1) for each in (terms, sizes))
        assert_within(mine, sums, scale, GRADIENT, f"dictionary, map {k}")
