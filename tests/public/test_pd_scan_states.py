"""State in, state out, either way of time: any split equals the whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdssm_compiler import pd_scan
from tests.public.accuracy import (
    DIFFERENTIABLE,
    FORWARD,
    GRADIENT,
    assert_within,
    expected,
    expected_gradients,
)
from tests.public.scans import KINDS, MAPS, Case, Draw, Tensors, inputs

BY_TOKEN = ("diagonal", "drive", "selection", "destination")


def cut(tensors: Tensors, tokens: slice) -> Tensors:
    """The call on a stretch of tokens."""
    return {name: x[:, tokens] if name in BY_TOKEN else x for name, x in tensors.items()}


def assert_gradients_agree(
    outputs: tuple[torch.Tensor, ...], leaves: Tensors, tensors: Tensors, options: dict
) -> None:
    """Gradients from both outputs are those of the plain loop over the whole."""
    arriving = tuple(torch.randn_like(output) for output in outputs)
    found = torch.autograd.grad(outputs, [leaves[name] for name in DIFFERENTIABLE], arriving)
    want = expected_gradients(tensors, options, arriving)
    scale = expected_gradients(tensors, options, arriving, True)
    for name, gradient in zip(DIFFERENTIABLE, found, strict=True):
        assert_within(gradient, want[name], scale[name], GRADIENT, name)


@pytest.mark.parametrize(
    "case",
    [
        KINDS[1],
    ],
    ids=str,
)
@pytest.mark.parametrize("length", [0, 1, 6])
def test_reverse(case: Case, length: int) -> None:
    """From the last token to the first: what the turned sequence gives, turned."""
    tensors = inputs(case, Draw(2, length, 2, MAPS[case.map_class][0], "disk", 4))
    options = {**case.options, "reverse": True}
    leaves = {n: x.clone().requires_grad_(n in DIFFERENTIABLE) for n, x in tensors.items()}
    outputs = pd_scan(**leaves, **options, output_final_state=True)
    turned = {n: x.flip(1) if n in BY_TOKEN else x for n, x in tensors.items()}
    states, final = expected(turned, case.options)
    size, last = expected(turned, case.options, magnitude=True)
    assert_within(outputs[0].detach(), states.flip(1), size.flip(1), FORWARD, "states")
    assert_within(outputs[1].detach(), final, last, FORWARD, "final state")
    assert_gradients_agree(outputs, leaves, tensors, options)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("case", [KINDS[1]], ids=str)
@settings(max_examples=8)
@given(
    length=st.integers(0, 9),
    places=st.lists(st.integers(0, 9), max_size=3),
    seed=st.integers(0, 2**16),
)
def test_any_split_is_the_whole(
    case: Case, reverse: bool, length: int, places: list[int], seed: int
) -> None:
    tensors = inputs(case, Draw(2, length, 2, "random", "disk", seed))
    options = {**case.options, "reverse": reverse}
    leaves = {n: x.clone().requires_grad_(n in DIFFERENTIABLE) for n, x in tensors.items()}
    ends = sorted(min(place, length) for place in places)
    stretches = [slice(a, b) for a, b in zip([0, *ends], [*ends, length], strict=True)]
    state, parts = leaves["initial_state"], []
    for tokens in stretches[::-1] if reverse else stretches:
        given = cut(leaves, tokens) | {"initial_state": state}
        states, state = pd_scan(**given, **options, output_final_state=True)
        parts.insert(0 if reverse else len(parts), states)
    outputs = (torch.cat(parts, 1), state)
    want, scale = expected(tensors, options), expected(tensors, options, magnitude=True)
    for got, true, size in zip(outputs, want, scale, strict=True):
        assert_within(got.detach(), true, size, FORWARD, "output")
    assert_gradients_agree(outputs, leaves, tensors, options)
