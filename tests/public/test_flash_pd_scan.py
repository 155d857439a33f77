"""``flash_pd_scan``: values, and gradients of both logits by the active surrogate."""

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from pdssm_compiler import ArgumentError, NanLogitError, flash_pd_scan, reference
from pdssm_compiler.runtime.choices import hard_choice
from tests.public.accuracy import FORWARD, GRADIENT, assert_within
from tests.public.one_hot import LOGITS, defined
from tests.public.scans import Case, Draw, Tensors, inputs
from tests.public.test_pd_scan_gradients import cotangents

NAMES = (*LOGITS, "diagonal", "drive", "initial_state")
CASES = (
    Case(1, "dictionary", dictionary_size=1),
    Case(5, "dictionary", "row", dictionary_size=1),
    Case(7, "dictionary", dictionary_size=4),
    Case(8, "dictionary", "row", dtype=torch.complex128),
    Case(32, "dictionary", dtype=torch.complex128),
    Case(33, "dictionary", dictionary_size=5),
)
SMALL = Case(7, "dictionary", dictionary_size=4)
DRAW = Draw(2, 6, 3, "random", "disk", 2)


def flash_inputs(case: Case, draw: Draw) -> Tensors:
    """Every tensor of a call; with the maps ``collide``, all columns of a map have one row."""
    tensors = inputs(case, draw._replace(maps="random"))
    random = torch.Generator().manual_seed(draw.seed + 1)
    del tensors["dictionary"], tensors["selection"]
    n, size, real = case.state_size, case.dictionary_size, case.dtype.to_real()
    shapes = (draw.heads, size, n, n), (draw.batch, draw.length, draw.heads, size)
    for name, shape in zip(LOGITS, shapes, strict=True):
        tensors[name] = torch.randn(shape, generator=random, dtype=real)
    if draw.maps == "collide":
        along = 2 if case.orientation == "column" else 3
        tensors["dictionary_logits"].select(along, n // 2).add_(9)
    return tensors


def flash_draws() -> st.SearchStrategy[Draw]:
    return st.builds(
        Draw,
        st.integers(1, 3),
        st.sampled_from((0, 1, 2, 7, 13)),
        st.integers(1, 3),
        st.sampled_from(("random", "collide")),
        st.sampled_from(("disk", "zero", "nearly one", "rotation")),
        st.integers(0, 2**31 - 1),
    )


SURROGATES = pytest.mark.parametrize("surrogate", ["active", "dense"])


def results(tensors: Tensors, arriving: tuple[torch.Tensor, ...], **options: Any) -> Tensors:
    """States, final state and gradients, by name."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}
    states, final = flash_pd_scan(**leaves, **options, output_final_state=True)
    found = torch.autograd.grad([states, final], [leaves[name] for name in NAMES], arriving)
    return dict(zip(("states", "final", *NAMES), (states.detach(), final, *found), strict=True))


def assert_as_defined(case: Case, tensors: Tensors, temperature: float) -> None:
    arriving = cotangents(tensors)
    got = results(tensors, arriving, temperature=temperature, orientation=case.orientation)
    want, scale = (
        defined(tensors, case.orientation, temperature, arriving, magnitude)
        for magnitude in (False, True)
    )
    assert_within(got["states"], want.states, scale.states, FORWARD, "states")
    assert_within(got["final"], want.final, scale.final, FORWARD, "final state")
    for name in NAMES:
        assert got[name].dtype == tensors[name].dtype
        gradient, size = want.gradients[name], scale.gradients[name]
        assert_within(got[name], gradient, size, GRADIENT, f"gradient of {name}")


@pytest.mark.parametrize("case", CASES, ids=str)
@settings(max_examples=8)
@given(draw=flash_draws(), temperature=st.sampled_from((1.0, 0.5, 3.0)))
def test_as_defined(case: Case, draw: Draw, temperature: float) -> None:
    assert_as_defined(case, flash_inputs(case, draw), temperature)


@pytest.mark.parametrize("surrogate", ["active", "dense"])
@pytest.mark.parametrize("orientation", ["column", "row"])
def test_the_reference_is_the_definition(orientation: str, surrogate: str) -> None:
    """Its straight-through choices, by autograd alone, against matrices written out."""
    case = Case(4, "dictionary", orientation, dtype=torch.complex128)
    tensors = flash_inputs(case, DRAW)
    arriving = cotangents(tensors)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    outputs = reference.flash_pd_scan(
        **leaves,
        temperature=0.7,
        surrogate=surrogate,
        orientation=orientation,
        output_final_state=True,
    )
    found = torch.autograd.grad(outputs, [leaves[name] for name in NAMES], arriving)
    want = defined(tensors, orientation, 0.7, arriving, surrogate=surrogate)
    torch.testing.assert_close(outputs, (want.states, want.final))
    for name, gradient in zip(NAMES, found, strict=True):
        torch.testing.assert_close(gradient, want.gradients[name])


def test_ties_go_to_the_lowest_index() -> None:
    tensors = flash_inputs(SMALL, DRAW)
    for name in LOGITS:
        tensors[name].zero_()
    states, _ = flash_pd_scan(**tensors)
    first = tensors["diagonal"][:, 0] * tensors["initial_state"]
    want = tensors["drive"][:, 0].clone()
    want[..., 0] += first.sum(-1)
    torch.testing.assert_close(states[:, 0], want)
    _, index = hard_choice(tensors["selector_logits"], -1, torch.ones(()), "logits")
    assert not index.any()


@pytest.mark.parametrize("name", LOGITS)
def test_a_nan_is_an_error_at_once(name: str) -> None:
    tensors = flash_inputs(SMALL, DRAW)
    tensors[name][1, 2, 1, 3] = float("nan")
    place = {"dictionary_logits": "[1, 2, :, 3]", "selector_logits": "[1, 2, 1, :]"}[name]
    with pytest.raises(NanLogitError) as caught:
        flash_pd_scan(**tensors)
    assert str(caught.value) == (
        f"{name}{place} has a NaN, so nothing can be chosen; look for what made it"
    )


def test_infinite_logits_are_numbers() -> None:
    tensors = flash_inputs(SMALL, DRAW)
    tensors["selector_logits"][..., 2] = float("inf")
    tensors["selector_logits"][..., 1] = -float("inf")
    _, index = hard_choice(tensors["selector_logits"], -1, torch.ones(()), "logits")
    assert (index == 2).all()


@SURROGATES
def test_temperature_as_a_tensor(surrogate: str) -> None:
    tensors = flash_inputs(SMALL, DRAW)
    arriving = cotangents(tensors)
    want = results(tensors, arriving, temperature=0.5, surrogate=surrogate)
    for temperature in (torch.tensor(0.5), torch.tensor([0.5], dtype=torch.float64)):
        got = results(tensors, arriving, temperature=temperature, surrogate=surrogate)
        for name, tensor in want.items():
            torch.testing.assert_close(got[name], tensor, rtol=1e-6, atol=1e-7)


@SURROGATES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_low_precision(dtype: torch.dtype, surrogate: str) -> None:
    """Computed in float32; their gradients are rounded once."""
    tensors = flash_inputs(SMALL, DRAW)
    arriving = cotangents(tensors)
    low = tensors | {name: tensors[name].to(dtype) for name in LOGITS}
    got = results(low, arriving, surrogate=surrogate)
    want = results(
        low | {name: low[name].float() for name in LOGITS}, arriving, surrogate=surrogate
    )
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor.to(got[name].dtype))
        assert got[name].dtype == (dtype if name in LOGITS else SMALL.dtype)


def test_low_precision_payload_and_pairs() -> None:
    tensors = flash_inputs(SMALL, DRAW)
    arriving = cotangents(tensors)
    want = results(tensors, arriving)
    pairs = {n: torch.view_as_real(t) if t.is_complex() else t for n, t in tensors.items()}
    got = results(pairs, tuple(torch.view_as_real(g) for g in arriving))
    for name in LOGITS:
        assert torch.equal(got[name], want[name])
    low = pairs | {"drive": pairs["drive"].bfloat16()}
    final = torch.view_as_real(arriving[1]).clone()
    got = results(low, (torch.view_as_real(arriving[0]).bfloat16(), final))
    scale = max(want[name].abs().max() for name in LOGITS)
    for name in LOGITS:
        torch.testing.assert_close(got[name], want[name], rtol=0, atol=float(scale) * 0.03)


@pytest.mark.parametrize("names", [LOGITS[:1], LOGITS[1:], ("drive",), (LOGITS[1], "diagonal")])
def test_only_some_gradients(names: tuple[str, ...]) -> None:
    tensors = flash_inputs(SMALL, DRAW)
    arriving = cotangents(tensors)
    want = results(tensors, arriving)
    leaves = {n: t.clone().requires_grad_(n in names) for n, t in tensors.items()}
    outputs = flash_pd_scan(**leaves, output_final_state=True)
    found = torch.autograd.grad(outputs, [leaves[name] for name in names], arriving)
    for name, gradient in zip(names, found, strict=True):
        torch.testing.assert_close(gradient, want[name])


def test_without_gradients() -> None:
    tensors = flash_inputs(SMALL, DRAW)
    states, final = flash_pd_scan(**tensors)
    assert final is None
    assert not states.requires_grad
    with torch.no_grad():
        tensors["selector_logits"].requires_grad_()
        assert torch.equal(flash_pd_scan(**tensors)[0], states)


def test_backward_repeats_bit_by_bit() -> None:
    case = Case(33, "dictionary", dictionary_size=5)
    tensors = flash_inputs(case, Draw(3, 61, 4, "random", "nearly one", 5))
    arriving = cotangents(tensors)
    first = results(tensors, arriving)
    for _ in range(3):
        for name, tensor in results(tensors, arriving).items():
            assert torch.equal(tensor, first[name]), name


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_empty_calls(shape: tuple[int, int, int]) -> None:
    batch, length, heads = shape
    tensors = flash_inputs(SMALL, Draw(batch, length, heads, "random", "disk", 1))
    got = results(tensors, cotangents(tensors))
    for name in LOGITS:
        assert got[name].shape == tensors[name].shape
        assert not got[name].any()


def test_torch_compile_once_for_every_length() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def run(selector_logits: torch.Tensor, **more: torch.Tensor) -> Any:
        return flash_pd_scan(
            selector_logits=selector_logits * 2, **more, temperature=0.5, output_final_state=True
        )

    for batch, length in ((2, 5), (3, 9), (5, 12)):
        tensors = flash_inputs(SMALL, DRAW._replace(batch=batch, length=length))
        arriving = cotangents(tensors)
        gradients = []
        for function in (run, run._torchdynamo_orig_callable):
            leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
            outputs = function(**leaves)
            gradients.append(torch.autograd.grad(outputs, list(leaves.values()), arriving))
        torch.testing.assert_close(*gradients)
    assert counter.frame_count == 1


@pytest.mark.parametrize("dim", [-1, 1])
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck_of_hard_choice(dim: int, grad: bool) -> None:
    logits = torch.randn(2, 3, 4, requires_grad=grad)
    arguments = (logits, dim, torch.tensor(0.5), "logits")
    assert set(torch.library.opcheck(hard_choice, arguments).values()) == {"SUCCESS"}


N, K = 7, 4
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "surrogate": ({"surrogate": "soft"}, "surrogate must be one of 'active', 'dense'; got 'soft'"),
    "orientation": ({"orientation": "both"}, "orientation must be one of 'column', 'row'"),
    "no tensor": ({"selector_logits": 3}, "selector_logits must be a torch.Tensor, got int"),
    "dtype": (
        {"dictionary_logits": torch.zeros(3, K, N, N, dtype=torch.int32)},
        "dictionary_logits has the unsupported dtype torch.int32: use a real floating-point",
    ),
    "rank": (
        {"selector_logits": torch.zeros(2, 6, K)},
        r"selector_logits must have the shape \[B, T, H, K\], got \[2, 6, 4\]; reshape it",
    ),
    "not square": (
        {"dictionary_logits": torch.zeros(3, K, N, 1)},
        r"dictionary_logits must have the shape \[H, K, N, N\] with K and N of at least 1",
    ),
    "no maps": (
        {"dictionary_logits": torch.zeros(3, 0, N, N)},
        r"with K and N of at least 1, got \[3, 0, 7, 7\]",
    ),
    "K": (
        {"selector_logits": torch.zeros(2, 6, 3, K + 1)},
        "selector_logits are of 5 maps and dictionary_logits hold 4",
    ),
    "tokens": (
        {"selector_logits": torch.zeros(2, 5, 3, K)},
        r"selector_logits must have the shape \[B, T, H, K\] = \[2, 6, 3, 4\], got \[2, 5, 3, 4\]",
    ),
    "states": (
        {"dictionary_logits": torch.zeros(3, K, N + 1, N + 1)},
        r"dictionary_logits must have the shape \[H, K, N, N\] = \[3, 4, 7, 7\], got",
    ),
    "temperature": ({"temperature": 0.0}, "temperature must be a positive number, got 0.0"),
    "no temperature": ({"temperature": None}, "temperature must be a positive number, got None"),
    "temperatures": (
        {"temperature": torch.ones(2)},
        r"temperature must be one real number, got torch.float32 \[2\]",
    ),
    "trained": (
        {"temperature": torch.ones((), requires_grad=True)},
        r"temperature has no gradient here; pass temperature.detach\(\)",
    ),
    "elsewhere": (
        {"temperature": torch.ones((), device="meta")},
        "temperature is on meta and the logits on cpu; move it there",
    ),
    "too small": ({"temperature": 1e-40}, "temperature is 0 or infinite in torch.float32, in whi"),
    "too large": ({"temperature": 10**400}, "temperature is 0 or infinite in torch.float32"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_what_is_refused(case: tuple[dict[str, Any], str]) -> None:
    changed, message = case
    with pytest.raises(ArgumentError, match=message):
        flash_pd_scan(**flash_inputs(SMALL, DRAW) | changed)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_the_backward_looks_at_a_temperature_in_a_tensor(temperature: float) -> None:
    """Not the forward, which does not depend on it."""
    given = flash_inputs(SMALL, DRAW)
    given["selector_logits"].requires_grad_()
    states, _ = flash_pd_scan(**given, temperature=torch.tensor(temperature))
    with pytest.raises(
        ArgumentError, match=f"temperature must be a positive number, got {temperature}"
    ):
        states.abs().sum().backward()


@pytest.mark.parametrize("surrogate", ["active", "dense"])
def test_transforms_are_refused_with_the_way_out(surrogate: str) -> None:
    given = flash_inputs(SMALL, DRAW)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        changed = {**given, "selector_logits": logits}
        return flash_pd_scan(**changed, surrogate=surrogate)[0].abs().sum()

    logits = given["selector_logits"].detach()
    with pytest.raises(ArgumentError, match=r"cannot be differentiated by torch.func \(grad, vjp"):
        torch.func.grad(loss)(logits)
    # Not taken for 0.
    with pytest.raises(ArgumentError, match="no forward-mode derivative"):
        torch.func.jvp(loss, (logits,), (torch.ones_like(logits),))
    with warnings.catch_warnings():
        # Not before torch has warned of a rule that the operator of the choices does not have.
        warnings.simplefilter("error")
        with pytest.raises(ArgumentError, match="a scan cannot be mapped by vmap"):
            torch.func.vmap(loss)(torch.stack([logits, logits]))
