"""``pd_scan_step``: a token at a time, it is the scan."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from pdssm_compiler import ArgumentError, IndexRangeError, pd_scan_step
from pdssm_compiler.arguments import read_call, text_of
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.ops import adjoint_of, scan
from pdssm_compiler.runtime.plan import program_of
from pdssm_compiler.runtime.tuning.inputs import random_tensors
from tests.public.accuracy import (
    DIFFERENTIABLE,
    FORWARD,
    GRADIENT,
    assert_within,
    expected,
    expected_gradients,
)
from tests.public.scans import CASES, MAPS, Case, Draw, Tensors, draws, inputs

BY_TOKEN = ("diagonal", "drive", "selection", "destination")
CASE = Case(7, "dictionary")


def token(tensors: Tensors, t: int) -> Tensors:
    """What a step takes for token ``t``, but the state."""
    given = {name: x[:, t] if name in BY_TOKEN else x for name, x in tensors.items()}
    given.pop("initial_state")
    return given


@pytest.mark.parametrize("case", [CASES[3], CASES[4]], ids=str)
@settings(max_examples=4)
@given(data=st.data())
def test_steps_are_the_scan(case: Case, data: st.DataObject) -> None:
    tensors = inputs(case, data.draw(draws(case)))
    state = tensors["initial_state"]
    states, _ = expected(tensors, case.options)
    scale, _ = expected(tensors, case.options, magnitude=True)
    for t in range(tensors["drive"].shape[1]):
        state = pd_scan_step(state, **token(tensors, t), **case.options)
        assert_within(state, states[:, t], scale[:, t], FORWARD, f"state {t}")


@pytest.mark.parametrize("case", [CASES[3]], ids=str)
def test_gradients(case: Case) -> None:
    tensors = inputs(case, Draw(3, 1, 2, MAPS[case.map_class][0], "disk", 5))
    leaves = {n: x.clone().requires_grad_(n in DIFFERENTIABLE) for n, x in tensors.items()}
    got = pd_scan_step(leaves["initial_state"], **token(leaves, 0), **case.options)
    arriving = torch.randn_like(got)
    found = torch.autograd.grad(got, [leaves[name] for name in DIFFERENTIABLE], arriving)
    grads = (arriving[:, None], None)
    want = expected_gradients(tensors, case.options, grads)
    scale = expected_gradients(tensors, case.options, grads, True)
    for name, gradient in zip(DIFFERENTIABLE, found, strict=True):
        assert_within(gradient, want[name], scale[name], GRADIENT, name)


def test_gradients_through_many_steps() -> None:
    """Back through the states that were handed on, as a truncated training loop does."""
    tensors = inputs(CASE, Draw(2, 6, 3, "collide", "disk", 3))
    leaves = {n: x.clone().requires_grad_(n in DIFFERENTIABLE) for n, x in tensors.items()}
    state = leaves["initial_state"]
    for t in range(6):
        state = pd_scan_step(state, **token(leaves, t))
    arriving = torch.randn_like(state)
    found = torch.autograd.grad(state, [leaves[name] for name in DIFFERENTIABLE], arriving)
    want = expected_gradients(tensors, {}, (None, arriving))
    scale = expected_gradients(tensors, {}, (None, arriving), True)
    for name, gradient in zip(DIFFERENTIABLE, found, strict=True):
        assert_within(gradient, want[name], scale[name], GRADIENT, name)


@pytest.mark.parametrize("payload", [None, torch.bfloat16])
def test_pairs(payload: torch.dtype | None) -> None:
    """The next state is in float32 whatever the drive is stored in: it is carried on."""
    tensors = inputs(CASE, Draw(2, 1, 3, "random", "disk", 2))
    rounded = torch.view_as_real(tensors["drive"]).to(payload or torch.float32)
    tensors["drive"] = torch.view_as_complex(rounded.float())
    want = pd_scan_step(tensors["initial_state"], **token(tensors, 0))
    pairs = {n: torch.view_as_real(x) if x.is_complex() else x for n, x in tensors.items()}
    got = pd_scan_step(pairs["initial_state"], **token(pairs | {"drive": rounded}, 0))
    assert got.dtype == torch.float32
    assert torch.equal(torch.view_as_complex(got), want)
    rounded.requires_grad_()
    got = pd_scan_step(pairs["initial_state"], **token(pairs | {"drive": rounded}, 0))
    (gradient,) = torch.autograd.grad(got, rounded, torch.ones_like(got))
    assert torch.equal(gradient, torch.ones_like(rounded))


def step_call(grad: bool) -> tuple[Any, ...]:
    given = inputs(CASE, Draw(2, 1, 3, "random", "disk", 1))
    for name in DIFFERENTIABLE:
        given[name].requires_grad_(grad)
    request = read_call(
        given["diagonal"], given["drive"], given["dictionary"], given["selection"], None,
        "general", "column", given["initial_state"], False, states_storage="",
    )  # fmt: skip
    return (text_of(request.spec), request.tensors, [], "", False)


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(grad: bool) -> None:
    assert set(torch.library.opcheck(scan, step_call(grad)).values()) == {"SUCCESS"}


def test_opcheck_of_the_backward() -> None:
    """It is the same operator, with the adjoint's program."""
    text, *_ = step_call(True)
    derived = adjoint_of(text, DIFFERENTIABLE, ("states",))
    tensors = random_tensors(program_of(text), Sizes(2, 1, 3), torch.device("cpu"), 0)
    assert [tensor.shape for tensor in tensors] == [t.shape for t in step_call(False)[1]]
    reads = random_tensors(derived.program, Sizes(2, 1, 3), torch.device("cpu"), 0)
    found = torch.library.opcheck(scan, (derived.program.text, reads, [], "", True))
    assert set(found.values()) == {"SUCCESS"}


def test_torch_compile_once_for_every_batch() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def step(state: torch.Tensor, drive: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
        return pd_scan_step(state * 0.5, drive=drive + 1, **more)

    for batch in (2, 5, 3):
        tensors = inputs(CASE, Draw(batch, 1, 3, "random", "disk", batch))
        state, given = tensors["initial_state"].requires_grad_(), token(tensors, 0)
        got = step(state, **given)
        want = pd_scan_step(state * 0.5, **given | {"drive": given["drive"] + 1})
        assert torch.equal(got, want)
        gradients = [torch.autograd.grad(each.abs().sum(), state)[0] for each in (got, want)]
        torch.testing.assert_close(*gradients)
    assert counter.frame_count == 1


COMPLEX = torch.zeros(2, 3, 4, dtype=torch.complex64)
TABLES = torch.zeros(3, 6, 4, dtype=torch.int32)
CHOSEN = torch.zeros(2, 3, dtype=torch.int32)
GIVEN = {"state": COMPLEX, "diagonal": COMPLEX, "drive": COMPLEX}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no tensor": ({"state": 1.0}, "state must be a torch.Tensor, got float; torch.as_tensor"),
    "an axis T": (
        {"drive": COMPLEX[:, None]},
        r"drive must have the shape \[B, H, N\] for dtype torch.complex64, got \[2, 1, 3, 4\]; a "
        r"step is of one token, without an axis T",
    ),
    "no pairs": ({"drive": COMPLEX.real}, r"drive must have the shape \[B, H, N, 2\] for dtype"),
    "sizes": (
        {"state": COMPLEX[:1]},
        r"state must have the sizes \[B, H, N\] = \[2, 3, 4\], got \[1, 3, 4\]; make it agree",
    ),
    "precision": (
        {"state": COMPLEX.to(torch.complex128)},
        r"state must have the precision of diagonal, which is torch.complex64, got torch.complex1",
    ),
    "dtype": ({"diagonal": COMPLEX.real.int()}, "diagonal has the unsupported dtype torch.int32"),
    "selection": (
        {"dictionary": TABLES, "selection": CHOSEN[:, None]},
        r"selection must have the shape \[B, H\] = \[2, 3\], got \[2, 1, 3\]; a step is of one",
    ),
    "destination": (
        {"destination": TABLES},
        r"destination must have the shape \[B, H, N\] = \[2, 3, 4\], got \[3, 6, 4\]; a step",
    ),
    "dictionary": (
        {"dictionary": TABLES[:2], "selection": CHOSEN},
        r"dictionary must have the shape \[H, 6, 4\] = \[3, 6, 4\], got \[2, 6, 4\]; make it",
    ),
    "half": ({"dictionary": TABLES}, "dictionary is given without selection"),
    "map class": ({"map_class": "cyclic"}, "map_class must be one of 'general', 'permutation'"),
    "orientation": ({"orientation": 1}, "orientation must be one of 'column', 'row'; got 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors(name: str) -> None:
    changed, message = WRONG[name]
    with pytest.raises(ArgumentError, match=message):
        pd_scan_step(**GIVEN | changed)


def test_an_index_out_of_range() -> None:
    wrong = CHOSEN.clone()
    wrong[1, 2] = 6
    with pytest.raises(IndexRangeError, match=r"selection\[1, 0, 2\] = 6: entries must lie in"):
        pd_scan_step(**GIVEN, dictionary=TABLES, selection=wrong)


def test_no_rows() -> None:
    for shape in ((0, 3, 4), (2, 0, 4)):
        empty = COMPLEX.new_zeros(shape)
        assert pd_scan_step(empty, empty, empty).shape == shape
