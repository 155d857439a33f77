"""``flash_pd_scan(surrogate="dense")``: gradients of both logits straight through a softmax."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from pdssm_compiler import ArgumentError, flash_pd_scan, reference
from pdssm_compiler.runtime.choices import hard_choice
from tests.public.accuracy import FORWARD, GRADIENT, assert_within, wide
from tests.public.one_hot import LOGITS, defined
from tests.public.packed import offsets
from tests.public.scans import Case, Draw, Tensors
from tests.public.test_flash_pd_scan import (
    DRAW,
    NAMES,
    SMALL,
    flash_draws,
    flash_inputs,
    results,
)
from tests.public.test_pd_scan_gradients import cotangents

ONE_STATE = Case(1, "dictionary", dictionary_size=1)
ONE_MAP = Case(5, "dictionary", "row", dictionary_size=1)
ROW = Case(8, "dictionary", "row", dtype=torch.complex128)
LARGE = Case(17, "dictionary", dictionary_size=11)
stress = pytest.mark.stress


def dense(tensors: Tensors, arriving: tuple[torch.Tensor, ...], **options: Any) -> Tensors:
    return results(tensors, arriving, **options, surrogate="dense")


def straight_through(
    tensors: Tensors, arriving: tuple[torch.Tensor, ...], **options: Any
) -> Tensors:
    """What autograd gives for the definition in double precision."""
    leaves = {name: wide(tensor).clone().requires_grad_() for name, tensor in tensors.items()}
    states, final = reference.flash_pd_scan(
        **leaves, **options, surrogate="dense", output_final_state=True
    )
    wanted = [leaves[name] for name in NAMES]
    found = torch.autograd.grad(
        [states, final],
        wanted,
        [wide(g) for g in arriving],
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(("states", "final", *NAMES), (states.detach(), final, *found), strict=True))


def assert_as_defined(case: Case, tensors: Tensors, temperature: float) -> None:
    arriving = cotangents(tensors)
    got = dense(tensors, arriving, temperature=temperature, orientation=case.orientation)
    want, scale = (
        defined(tensors, case.orientation, temperature, arriving, magnitude, "dense")
        for magnitude in (False, True)
    )
    assert_within(got["states"], want.states, scale.states, FORWARD, "states")
    for name in NAMES:
        assert got[name].dtype == tensors[name].dtype
        gradient, size = want.gradients[name], scale.gradients[name]
        assert_within(got[name], gradient, size, GRADIENT, f"gradient of {name}")


@pytest.mark.parametrize("case", [SMALL, ROW, LARGE], ids=str)
@settings(max_examples=4)
@given(draw=flash_draws(), temperature=st.sampled_from((1.0, 0.5, 3.0)))
def test_as_defined(case: Case, draw: Draw, temperature: float) -> None:
    assert_as_defined(case, flash_inputs(case, draw), temperature)


@stress
@pytest.mark.parametrize("orientation", ["column", "row"])
def test_reverse(orientation: str) -> None:
    case = Case(8, "dictionary", orientation, dtype=torch.complex128)
    tensors = flash_inputs(case, DRAW)
    arriving = cotangents(tensors)
    options = {"orientation": orientation, "reverse": True, "temperature": 0.5}
    got = dense(tensors, arriving, **options)
    torch.testing.assert_close(got, straight_through(tensors, arriving, **options))


@pytest.mark.parametrize(
    ("orientation", "reverse"), [pytest.param("column", False, marks=stress), ("row", True)]
)
def test_packed(orientation: str, reverse: bool) -> None:
    """Also sequences of no token and of one: each starts from its own state."""
    lengths = (0, 5, 1, 7, 0)
    case = Case(8, "dictionary", orientation, dtype=torch.complex128)
    tensors = flash_inputs(case, Draw(1, sum(lengths), 2, "random", "disk", 2))
    random = torch.Generator().manual_seed(3)
    state = torch.randn(len(lengths), 2, 8, dtype=case.dtype, generator=random)
    tensors["initial_state"] = state
    arriving = (
        torch.randn(tensors["drive"].shape, dtype=case.dtype, generator=random),
        torch.randn(state.shape, dtype=case.dtype, generator=random),
    )
    options = {
        "orientation": orientation,
        "reverse": reverse,
        "cu_seqlens": offsets(lengths),
    }
    got = dense(tensors, arriving, **options)
    torch.testing.assert_close(got, straight_through(tensors, arriving, **options))


def test_what_the_choices_do_not_change() -> None:
    """States are the active surrogate's bit by bit, and gradients of numbers but for rounding."""
    tensors = flash_inputs(SMALL, DRAW)
    arriving = cotangents(tensors)
    got, want = dense(tensors, arriving), results(tensors, arriving)
    for name in ("states", "final"):
        assert torch.equal(got[name], want[name]), name
    for name in ("diagonal", "drive", "initial_state"):
        torch.testing.assert_close(got[name], want[name], rtol=1e-6, atol=1e-6)
    for name in LOGITS:
        assert not torch.equal(got[name], want[name])


@stress
def test_without_an_initial_state_and_from_the_final_state_alone() -> None:
    tensors = flash_inputs(ROW, DRAW)
    del tensors["initial_state"]
    found = []
    for scan in (flash_pd_scan, reference.flash_pd_scan):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
        _, final = scan(**leaves, surrogate="dense", orientation="row", output_final_state=True)
        found.append(torch.autograd.grad(final.abs().square().sum(), list(leaves.values())))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("case", [ONE_MAP, pytest.param(ONE_STATE, marks=stress)], ids=str)
def test_one_map_has_nothing_to_choose_from(case: Case) -> None:
    tensors = flash_inputs(case, DRAW)
    assert_as_defined(case, tensors, 0.5)
    got = dense(tensors, cotangents(tensors))
    assert not got["selector_logits"].any()
    assert got["dictionary_logits"].any() == (case.state_size > 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=stress)])
def test_low_precision_payload_and_pairs(dtype: torch.dtype) -> None:
    tensors = flash_inputs(SMALL, DRAW)
    arriving = cotangents(tensors)
    want = dense(tensors, arriving)
    pairs = {n: torch.view_as_real(t) if t.is_complex() else t for n, t in tensors.items()}
    got = dense(pairs, tuple(torch.view_as_real(g) for g in arriving))
    for name in LOGITS:
        assert torch.equal(got[name], want[name])
    low = pairs | {"drive": pairs["drive"].to(dtype)}
    final = torch.view_as_real(arriving[1]).clone()
    got = dense(low, (torch.view_as_real(arriving[0]).to(dtype), final))
    scale = max(want[name].abs().max() for name in LOGITS)
    for name in LOGITS:
        torch.testing.assert_close(got[name], want[name], rtol=0, atol=float(scale) * 0.03)


def test_expanded_inputs() -> None:
    tensors = flash_inputs(SMALL, DRAW)
    expanded = {name: tensor[:1].expand(tensor.shape) for name, tensor in tensors.items()}
    arriving = cotangents(tensors)
    found = []
    for given_ in (expanded, {name: tensor.contiguous() for name, tensor in expanded.items()}):
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in given_.items()}
        outputs = flash_pd_scan(**leaves, surrogate="dense", output_final_state=True)
        found.append(torch.autograd.grad(outputs, [leaves[name] for name in NAMES], arriving))
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("names", [LOGITS[:1], LOGITS[1:], ("drive",), (LOGITS[1], "diagonal")])
def test_only_some_gradients(names: tuple[str, ...]) -> None:
    tensors = flash_inputs(SMALL, DRAW)
    arriving = cotangents(tensors)
    want = dense(tensors, arriving)
    leaves = {n: t.clone().requires_grad_(n in names) for n, t in tensors.items()}
    outputs = flash_pd_scan(**leaves, surrogate="dense", output_final_state=True)
    found = torch.autograd.grad(outputs, [leaves[name] for name in names], arriving)
    for name, gradient in zip(names, found, strict=True):
        torch.testing.assert_close(gradient, want[name])


def test_without_gradients() -> None:
    tensors = flash_inputs(SMALL, DRAW)
    states, _ = flash_pd_scan(**tensors, surrogate="dense")
    assert not states.requires_grad
    assert torch.equal(states, flash_pd_scan(**tensors)[0])


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_empty_calls(shape: tuple[int, int, int]) -> None:
    tensors = flash_inputs(SMALL, Draw(*shape, "random", "disk", 1))
    got = dense(tensors, cotangents(tensors))
    for name in LOGITS:
        assert got[name].shape == tensors[name].shape
        assert not got[name].any()


def test_backward_repeats_bit_by_bit() -> None:
    tensors = flash_inputs(LARGE, Draw(3, 161, 4, "random", "nearly one", 5))
    arriving = cotangents(tensors)
    first = dense(tensors, arriving)
    for strict in (False, True):
        torch.use_deterministic_algorithms(strict)
        try:
            again = dense(tensors, arriving)
        finally:
            torch.use_deterministic_algorithms(False)
        for name, tensor in again.items():
            assert torch.equal(tensor, first[name]), name


def test_precision_of_products_is_float32s_own() -> None:
    """Neither a global setting nor autocast changes a bit."""
    tensors = flash_inputs(SMALL, Draw(2, 50, 2, "random", "disk", 3))
    arriving = cotangents(tensors)
    want = dense(tensors, arriving)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            got = dense(tensors, arriving)
    finally:
        torch.set_float32_matmul_precision(before)
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name


def test_second_derivatives_are_refused() -> None:
    tensors = flash_inputs(SMALL, DRAW)
    for name in LOGITS:
        leaves = {n: t.clone().requires_grad_() for n, t in tensors.items()}
        states, _ = flash_pd_scan(**leaves, surrogate="dense")
        (grad,) = torch.autograd.grad(
            states.abs().square().sum(), [leaves[name]], create_graph=True
        )
        with pytest.raises(ArgumentError, match=r"no gradient of its own.*reference"):
            grad.square().sum().backward()
        # Which has them.
        states, _ = reference.flash_pd_scan(**leaves, surrogate="dense")
        (grad,) = torch.autograd.grad(
            states.abs().square().sum(), [leaves[name]], create_graph=True
        )
        (second,) = torch.autograd.grad(grad.square().sum(), [leaves["diagonal"]])
        assert second.abs().max() > 0


class _Largest(TorchDispatchMode):
    """The largest number of elements that a tensor of a result holds in memory."""

    numel = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.itemsize)
        return result


def test_nothing_a_token_is_larger_than_its_logits_and_states() -> None:
    tensors = flash_inputs(LARGE, Draw(2, 300, 2, "random", "disk", 1))
    leaves = {n: t.clone().requires_grad_() for n, t in tensors.items()}
    with _Largest() as largest:
        states, _ = flash_pd_scan(**leaves, surrogate="dense")
        states.abs().square().sum().backward()
    # Factors of complex numbers, counted as real ones at most.
    n, maps, tokens = LARGE.state_size, LARGE.dictionary_size, 2 * 300 * 2
    assert tokens * n <= largest.numel <= tokens * 2 * n < tokens * n * maps / 4
    assert leaves["selector_logits"].grad.any()


def test_torch_compile_once_for_every_length() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def run(selector_logits: torch.Tensor, temperature: torch.Tensor, **more: Any) -> Any:
        return flash_pd_scan(
            selector_logits=selector_logits * 2,
            **more,
            temperature=temperature,
            surrogate="dense",
            output_final_state=True,
        )

    for batch, length, tau in ((2, 5, 0.5), (3, 9, 0.4), (5, 12, 2.0)):
        tensors = flash_inputs(SMALL, DRAW._replace(batch=batch, length=length))
        tensors["temperature"] = torch.tensor(tau)
        arriving = cotangents(tensors)
        gradients = []
        for function in (run, run._torchdynamo_orig_callable):
            leaves = {n: t.clone().requires_grad_(n in NAMES) for n, t in tensors.items()}
            outputs = function(**leaves)
            wanted = [leaves[name] for name in NAMES]
            gradients.append(torch.autograd.grad(outputs, wanted, arriving))
        torch.testing.assert_close(*gradients)
    assert counter.frame_count == 1


@pytest.mark.parametrize("surrogate", ["active", "dense"])
def test_torch_compile_once_for_every_temperature(surrogate: str) -> None:
    """Annealed as a Python number, too, which is an input of the graph as a tensor is."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def run(temperature: float, **more: torch.Tensor) -> torch.Tensor:
        return flash_pd_scan(**more, temperature=temperature, surrogate=surrogate)[0]

    tensors = flash_inputs(SMALL, DRAW)
    for tau in (1.0, 0.5, 2.0):
        found = []
        for function in (run, run._torchdynamo_orig_callable):
            leaves = {n: t.clone().requires_grad_(n in LOGITS) for n, t in tensors.items()}
            states = function(tau, **leaves)
            wanted = [leaves[name] for name in LOGITS]
            found.append(torch.autograd.grad(states.abs().square().sum(), wanted))
        torch.testing.assert_close(*found)
    assert counter.frame_count == 1


@stress
def test_torch_compile_packed() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def scan(**given_: Any) -> torch.Tensor:
        return flash_pd_scan(**given_, surrogate="dense")[0]

    compiled = torch.compile(scan, fullgraph=True, dynamic=True, backend=counter)
    frames = set()
    # No size that is compiled in: Dynamo takes sizes that are equal at first for one.
    for lengths in ((6, 0, 5, 2, 1), (8, 9)):
        tensors = flash_inputs(SMALL, Draw(1, sum(lengths), 3, "random", "disk", 2))
        del tensors["initial_state"]
        found = []
        for function in (compiled, scan):
            leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
            states = function(**leaves, cu_seqlens=offsets(lengths))
            found.append(torch.autograd.grad(states.abs().square().sum(), list(leaves.values())))
        torch.testing.assert_close(*found)
        frames.add(counter.frame_count)
    assert len(frames) == 1


@pytest.mark.parametrize("dim", [-1, 1])
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck_of_hard_choice(dim: int, grad: bool) -> None:
    logits = torch.randn(2, 3, 4, requires_grad=grad)
    arguments = (logits, dim, torch.tensor(0.5), "logits", True)
    assert set(torch.library.opcheck(hard_choice, arguments).values()) == {"SUCCESS"}
