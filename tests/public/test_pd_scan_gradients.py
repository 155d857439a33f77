"""``pd_scan``: its gradients, against autograd through the plain loop and finite differences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdssm_compiler import pd_scan
from tests.kernels import under_stress
from tests.public.accuracy import (
    DIFFERENTIABLE,
    FORWARD,
    GRADIENT,
    assert_within,
    epsilon,
    expected_gradients,
)
from tests.public.scans import CASES, KINDS, Case, Draw, Tensors, draws, inputs

Cotangents = tuple[torch.Tensor | None, torch.Tensor | None]


def cotangents(tensors: Tensors, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """What arrives at the states and at the final state."""
    random = torch.Generator().manual_seed(seed)
    start, drive = tensors["initial_state"], tensors["drive"]
    return (
        torch.randn(drive.shape, dtype=start.dtype, generator=random),
        torch.randn(start.shape, dtype=start.dtype, generator=random),
    )


def gradients(
    case: Case, tensors: Tensors, arriving: Cotangents, names: tuple[str, ...] = DIFFERENTIABLE
) -> Tensors:
    """By the compiled backward."""
    leaves = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    for name in names:
        leaves[name].requires_grad_()
    outputs = pd_scan(**leaves, **case.options, output_final_state=True)
    pairs = [(o, g) for o, g in zip(outputs, arriving, strict=True) if g is not None]
    found = torch.autograd.grad(
        [o for o, _ in pairs], [leaves[n] for n in names], [g for _, g in pairs]
    )
    return dict(zip(names, found, strict=True))


def assert_gradients(
    case: Case, tensors: Tensors, arriving: Cotangents, names: tuple[str, ...] = DIFFERENTIABLE
) -> None:
    got = gradients(case, tensors, arriving, names)
    assert set(got) == set(names)
    want = expected_gradients(tensors, case.options, arriving)
    scale = expected_gradients(tensors, case.options, arriving, True)
    for name, gradient in got.items():
        assert gradient.dtype == case.dtype
        assert_within(gradient, want[name], scale[name], GRADIENT, f"gradient of {name}")


# Sources and classes that are left come in other widths: these run under stress.
SELDOM = [CASES[at] for at in (2, 5, 6, 10, 13, 16)]


@pytest.mark.parametrize(
    "case", [*(case for case in CASES if case not in SELDOM), *under_stress(*SELDOM)], ids=str
)
@settings(max_examples=8)
@given(data=st.data())
def test_gradients(case: Case, data: st.DataObject) -> None:
    tensors = inputs(case, data.draw(draws(case)))
    assert_gradients(case, tensors, cotangents(tensors))


# Of the kinds that have maps, half, in which any two properties meet; all under stress.
EACH_TIME = (0, 1, 3, 5, 8, 10, 12)
FIRST = [KINDS[at] for at in EACH_TIME]


@pytest.mark.parametrize(
    "case", [*FIRST, *under_stress(*(kind for kind in KINDS if kind not in FIRST))], ids=str
)
def test_gradcheck(case: Case) -> None:
    maps = {"general": "random"}.get(case.map_class, case.map_class)
    tensors = inputs(case, Draw(1, 3, 2, maps, "disk", 7))
    leaves = [tensors[name].requires_grad_() for name in DIFFERENTIABLE]
    fixed = {name: tensor for name, tensor in tensors.items() if name not in DIFFERENTIABLE}

    def scan(*values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        named = dict(zip(DIFFERENTIABLE, values, strict=True))
        return pd_scan(**named, **fixed, **case.options, output_final_state=True)

    assert torch.autograd.gradcheck(scan, leaves, fast_mode=False)


def test_gradients_of_a_long_sequence() -> None:
    case = CASES[8]
    tensors = inputs(case, Draw(1, 257, 2, "random", "nearly one", 5))
    assert_gradients(case, tensors, cotangents(tensors))


# Of a case one output each time, both under stress.
@pytest.mark.parametrize(
    "one",
    [
        *((CASES[2], 0), (CASES[4], 1), (CASES[7], 0)),
        *under_stress((CASES[2], 1), (CASES[4], 0), (CASES[7], 1)),
    ],
    ids=lambda one: f"{one[0]}-{('states', 'final state')[one[1]]}",
)
def test_one_output_alone(one: tuple[Case, int]) -> None:
    case, reached = one
    maps = "permutation" if case.map_class == "permutation" else "random"
    tensors = inputs(case, Draw(2, 5, 3, maps, "disk", 2))
    arriving = cotangents(tensors)
    assert_gradients(case, tensors, (arriving[0], None) if reached == 0 else (None, arriving[1]))


@pytest.mark.parametrize(
    "names",
    [
        ("drive",),
        ("initial_state",),
        ("diagonal", "initial_state"),
        *under_stress(("diagonal",), ("diagonal", "drive"), ("drive", "initial_state")),
    ],
    ids=" and ".join,
)
def test_only_some_inputs(names: tuple[str, ...]) -> None:
    case = CASES[3]
    tensors = inputs(case, Draw(2, 5, 3, "random", "disk", 2))
    arriving = cotangents(tensors)
    assert_gradients(case, tensors, arriving, names)


def test_without_an_initial_state() -> None:
    case = CASES[2]
    tensors = inputs(case, Draw(2, 5, 3, "random", "disk", 2))
    arriving = cotangents(tensors)
    del tensors["initial_state"]
    assert_gradients(case, tensors, arriving, ("diagonal", "drive"))


@pytest.mark.parametrize("case", CASES[2:5], ids=str)
@given(data=st.data())
@settings(max_examples=8)
def test_splitting_anywhere_equals_the_whole(case: Case, data: st.DataObject) -> None:
    tensors = inputs(case, data.draw(draws(case)))
    cut = data.draw(st.integers(0, tensors["drive"].shape[1]))
    arriving = cotangents(tensors)
    whole = gradients(case, tensors, arriving)
    leaves = {n: t.clone().requires_grad_(t.is_complex()) for n, t in tensors.items()}
    tokens = [name for name in leaves if name not in ("dictionary", "initial_state")]
    first = leaves | {name: leaves[name][:, :cut] for name in tokens}
    second = leaves | {name: leaves[name][:, cut:] for name in tokens}
    left, state = pd_scan(**first, **case.options, output_final_state=True)
    right, final = pd_scan(
        **second | {"initial_state": state}, **case.options, output_final_state=True
    )
    found = torch.autograd.grad(
        [torch.cat([left, right], dim=1), final],
        [leaves[name] for name in DIFFERENTIABLE],
        arriving,
    )
    # The split adds λ + ḡ in another order at the cut; everything else is the same arithmetic.
    scale = expected_gradients(tensors, case.options, arriving, True)
    for name, gradient in zip(DIFFERENTIABLE, found, strict=True):
        assert_within(gradient, whole[name].to(torch.complex128), scale[name], 8, name)


@pytest.mark.parametrize("payload", [torch.bfloat16, torch.float16])
def test_low_precision_payload(payload: torch.dtype) -> None:
    case = Case(16, "dictionary")
    tensors = inputs(case, Draw(2, 6, 3, "random", "disk", 2))
    drive = torch.view_as_real(tensors["drive"]).to(payload)
    arriving = torch.view_as_real(cotangents(tensors)[0]).to(payload)
    final = torch.view_as_real(cotangents(tensors)[1]).clone()
    low = tensors | {"drive": drive}
    got = gradients(case, low, (arriving, final))
    assert [gradient.dtype for gradient in got.values()] == [case.dtype, payload, case.dtype]
    rounded = tensors | {"drive": torch.view_as_complex(drive.float())}
    both = (torch.view_as_complex(arriving.float()), torch.view_as_complex(final))
    want = expected_gradients(rounded, {}, both)
    scale = expected_gradients(rounded, {}, both, True)
    assert_within(
        got["initial_state"], want["initial_state"], scale["initial_state"], GRADIENT, "start"
    )
    # The drive's gradient is stored in the payload dtype; the diagonal's is a product with states
    # that were.
    error = (torch.view_as_complex(got["drive"].double()) - want["drive"]).abs()
    fine = GRADIENT * epsilon(torch.float32)
    assert (error <= (epsilon(payload) + fine) * scale["drive"].abs()).all()
    error = (got["diagonal"] - want["diagonal"]).abs()
    assert (error <= (epsilon(payload) + fine) * scale["diagonal"].abs()).all()


def test_real_pairs_get_real_gradients() -> None:
    case = Case(7, "dictionary")
    tensors = inputs(case, Draw(2, 5, 3, "random", "disk", 2))
    arriving = cotangents(tensors)
    want = gradients(case, tensors, arriving)
    pairs = {n: torch.view_as_real(t) if t.is_complex() else t for n, t in tensors.items()}
    got = gradients(case, pairs, tuple(torch.view_as_real(g) for g in arriving))
    for name in DIFFERENTIABLE:
        assert torch.equal(torch.view_as_complex(got[name]), want[name])


def test_expanded_diagonal_sums_its_gradient() -> None:
    case = Case(7, "token")
    tensors = inputs(case, Draw(2, 5, 3, "random", "disk", 2))
    arriving = cotangents(tensors)
    shape = tensors["diagonal"].shape
    tensors["diagonal"] = tensors["diagonal"][:1, :1].expand(shape)
    want = gradients(case, tensors, arriving)["diagonal"].sum((0, 1), keepdim=True)
    one = tensors["diagonal"][:1, :1].clone().requires_grad_()
    outputs = pd_scan(
        **tensors | {"diagonal": one.expand(shape)}, **case.options, output_final_state=True
    )
    states = [outputs[0]]
    (found,) = torch.autograd.grad([*states, outputs[1]], [one], arriving)
    torch.testing.assert_close(found, want, rtol=FORWARD * epsilon(torch.float32), atol=1e-5)


def test_expanded_cotangents() -> None:
    case = Case(7, "token")
    tensors = inputs(case, Draw(2, 5, 3, "random", "disk", 2))
    arriving = tuple(torch.ones(()).to(case.dtype).expand(g.shape) for g in cotangents(tensors))
    dense = tuple(g.contiguous() for g in arriving)
    want = gradients(case, tensors, dense)
    for name, gradient in gradients(case, tensors, arriving).items():
        assert torch.equal(gradient, want[name])


def test_no_gradient_is_recorded_without_being_asked_for() -> None:
    tensors = inputs(Case(7, "token"), Draw(2, 5, 3, "random", "disk", 2))
    tensors["drive"].requires_grad_()
    with torch.no_grad():
        assert not pd_scan(**tensors)[0].requires_grad
    assert pd_scan(**tensors)[0].requires_grad


def test_a_second_backward_is_refused() -> None:
    tensors = inputs(Case(7, "token"), Draw(2, 5, 3, "random", "disk", 2))
    leaf = tensors["drive"].requires_grad_()
    states, _ = pd_scan(**tensors)
    (gradient,) = torch.autograd.grad(states.abs().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.abs().sum(), tensors["diagonal"])
