"""``adjoint``: derived gradients are autograd's, for every PD scan and for random programs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdssm_compiler.ir import Program, interpret
from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.programs import PdScan, pd_scan
from tests.ir.agreement import (
    assert_adjoint_agrees,
    assert_close,
    cotangents_for,
    run_adjoint,
)
from tests.ir.pd_reference import all_specs, pd_reference, spec_id
from tests.ir.torch_oracle import differentiable
from tests.strategies import Sizes, affine_programs, arrays_for, pd_specs, programs, seeds, sizes


def assert_pd_gradients(spec: PdScan, shape: Sizes, seed: int) -> None:
    """Against autograd through dense matrices."""
    program = pd_scan(spec)
    arrays = arrays_for(program, shape, seed)
    cotangents = cotangents_for(program, shape, seed)
    names = differentiable(program)
    tensors = {
        name: torch.tensor(array, requires_grad=name in names) for name, array in arrays.items()
    }
    outputs = pd_reference(spec, tensors, shape)
    reached = [name for name in outputs if outputs[name].requires_grad]
    found = torch.autograd.grad(
        [outputs[name] for name in reached],
        [tensors[name] for name in names],
        [torch.tensor(cotangents[name]) for name in reached],
        allow_unused=True,
        materialize_grads=True,
    )
    want = {name: grad.resolve_conj().numpy() for name, grad in zip(names, found, strict=True)}
    assert_close(run_adjoint(adjoint(program), arrays, cotangents), want)


@pytest.mark.parametrize("length", [1, 6])
@pytest.mark.parametrize("spec", all_specs(), ids=spec_id)
def test_every_pd_scan(spec: PdScan, length: int) -> None:
    assert_pd_gradients(spec, Sizes(2, length, 3), seed=length)


@given(pd_specs(), sizes(max_length=8, min_length=1), seeds())
def test_random_pd_scans(spec: PdScan, shape: Sizes, seed: int) -> None:
    assert_pd_gradients(spec, shape, seed)


@given(programs(), sizes(), seeds())
def test_random_programs(program: Program, shape: Sizes, seed: int) -> None:
    assert_adjoint_agrees(program, arrays_for(program, shape, seed), shape, seed)


@given(affine_programs(), sizes(), seeds())
def test_random_affine_programs(program: Program, shape: Sizes, seed: int) -> None:
    assert_adjoint_agrees(program, arrays_for(program, shape, seed), shape, seed)


@given(programs(max_ops=8), sizes(max_length=3, min_length=1), seeds(), st.data())
def test_subsets_of_inputs_and_outputs(
    program: Program, shape: Sizes, seed: int, data: st.DataObject
) -> None:
    arrays = arrays_for(program, shape, seed)
    inputs, outputs = differentiable(program), sorted(cotangents_for(program, shape, seed))
    wrt = data.draw(st.lists(st.sampled_from(inputs), min_size=1, unique=True))
    arriving = data.draw(st.lists(st.sampled_from(outputs), unique=True)) if outputs else []
    assert_adjoint_agrees(program, arrays, shape, seed, sorted(wrt), arriving)


@given(programs(max_ops=8), seeds())
def test_gradient_is_the_slope(program: Program, seed: int) -> None:
    """Central differences along a random direction: no autograd in between."""
    shape = Sizes(1, 3, 2)
    arrays, step = arrays_for(program, shape, seed), 1e-5
    names = differentiable(program)
    direction = {name: arrays_for(program, shape, seed ^ 1)[name] for name in names}
    cotangents = cotangents_for(program, shape, seed)

    def value(scale: float) -> float:
        moved = arrays | {name: arrays[name] + scale * direction[name] for name in names}
        results = interpret(program, moved)
        return sum(np.vdot(grad, results[name]).real for name, grad in cotangents.items())

    slope = (value(step) - value(-step)) / (2 * step)
    found = run_adjoint(adjoint(program), arrays, cotangents)
    predicted = sum(np.vdot(found[name], direction[name]).real for name in names)
    # The differences are good to step² times a third derivative.
    assert abs(slope - predicted) <= 1e-6 * max(1.0, abs(predicted))


@pytest.mark.parametrize("orientation", ["column", "row"])
def test_without_tokens_only_the_ends_have_gradients(orientation: str) -> None:
    spec = PdScan(3, 2, "c128", orientation=orientation, initial_state=True, final_state=True)
    program, shape = pd_scan(spec), Sizes(2, 0, 3)
    arrays, cotangents = arrays_for(program, shape, 1), cotangents_for(program, shape, 1)
    got = run_adjoint(adjoint(program), arrays, cotangents)
    assert got["drive"].shape == got["diagonal"].shape == (2, 0, 3, 3)
    np.testing.assert_array_equal(got["initial_state"], cotangents["final_state"])
