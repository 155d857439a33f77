"""``mixture_pd_scan`` by ``selection``: what tokens with weights of their own get."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from pdssm_compiler import (
    ArgumentError,
    IndexRangeError,
    NanLogitError,
    mixture_pd_scan,
    reference,
)
from tests.public.packed import offsets
from tests.public.test_mixture_pd_scan import Tensors, kernels, results, templates

__all__ = ["kernels", "templates"]
MIXTURES = 5


def tensors(
    batch: int = 2,
    length: int = 7,
    heads: int = 3,
    n: int = 6,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    states: int | None = None,
) -> tuple[Tensors, torch.Tensor]:
    """A call's tensors, and which mixture each token has."""
    random = torch.Generator().manual_seed(seed)
    numbers = {"dtype": dtype, "generator": random}
    complex_ = {"dtype": dtype.to_complex(), "generator": random}
    given_ = {
        "dictionary_logits": torch.randn(heads, 4, n, n, **numbers),
        "mixture_weights": torch.randn(MIXTURES, heads, 4, **numbers).softmax(-1),
        "diagonal": torch.randn(batch, length, heads, n, **complex_) * 0.6,
        "drive": torch.randn(batch, length, heads, n, **complex_),
        "initial_state": torch.randn(states or batch, heads, n, **complex_),
    }
    return given_, torch.randint(MIXTURES, (batch, length, heads), generator=random)


def token_by_token(mixture_weights: torch.Tensor, selection: torch.Tensor, **more: Any) -> Any:
    """Every token with weights of its own."""
    heads = torch.arange(selection.shape[2])
    return mixture_pd_scan(mixture_weights=mixture_weights[selection.long(), heads], **more)


@settings(max_examples=10)
@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from((1, 2, 6)),
    st.sampled_from(("column", "row")),
    st.booleans(),
    st.sampled_from((0.3, 1.0, 4)),
    st.sampled_from((torch.uint8, torch.int16, torch.int32, torch.int64)),
)
def test_values_and_gradients(
    length: int,
    heads: int,
    n: int,
    orientation: str,
    reverse: bool,
    tau: float,
    dtype: torch.dtype,
) -> None:
    given_, selection = tensors(2, length, heads, n)
    options = {
        "selection": selection.to(dtype),
        "orientation": orientation,
        "reverse": reverse,
        "temperature": tau,
    }
    got = results(mixture_pd_scan, given_, **options)
    for other in (token_by_token, reference.mixture_pd_scan):
        for name, value in results(other, given_, **options).items():
            torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("orientation", ["column", "row"])
def test_packed(orientation: str) -> None:
    given_, selection = tensors(1, states=4)
    options = {"orientation": orientation, "cu_seqlens": offsets([3, 0, 1, 3])}
    got = results(mixture_pd_scan, given_, selection=selection, **options)
    for name, value in results(token_by_token, given_, selection=selection, **options).items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-9, msg=name)


def test_one_selection_and_one_mixture_for_all_heads() -> None:
    given_, selection = tensors()
    one = {
        **given_,
        "mixture_weights": given_["mixture_weights"][:, 0],
        "dictionary_logits": given_["dictionary_logits"][0],
    }
    got = results(mixture_pd_scan, one, selection=selection[..., 0])
    all_heads = selection[..., :1].expand_as(selection)
    for other in (mixture_pd_scan, reference.mixture_pd_scan):
        for name, value in results(other, one, selection=all_heads).items():
            torch.testing.assert_close(got[name], value, msg=name)
    assert got["mixture_weights"].shape == (MIXTURES, 4)


@pytest.mark.stress
def test_float32(kernels: None) -> None:
    """By kernels of the sizes that users have; the matrices are products in float32 whatever
    torch rounds those to.
    """
    given_, selection = tensors(n=64, dtype=torch.float32)
    wide = {
        name: each.to(torch.promote_types(each.dtype, torch.float64))
        for name, each in given_.items()
    }
    want = results(token_by_token, wide, selection=selection)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            got = results(mixture_pd_scan, given_, selection=selection)
    finally:
        torch.set_float32_matmul_precision(before)
    for name, value in want.items():
        torch.testing.assert_close(got[name].to(value.dtype), value, rtol=1e-4, atol=1e-4)


def test_without_gradients_there_is_no_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    given_, selection = tensors()
    want = results(mixture_pd_scan, given_, selection=selection)["states"]
    monkeypatch.delattr(torch, "softmax")
    got, _ = mixture_pd_scan(**given_, selection=selection)
    assert torch.equal(got, want)
    given_["drive"].requires_grad_()
    got, _ = mixture_pd_scan(**given_, selection=selection)
    assert torch.equal(got, want)


@pytest.mark.parametrize("batch", [0, 1])
def test_nothing_to_scan(batch: int) -> None:
    given_, selection = tensors(batch, 0)
    got = results(mixture_pd_scan, given_, selection=selection)
    assert got["states"].shape == (batch, 0, 3, 6)
    assert not got["dictionary_logits"].any()


def test_torch_compile_once_for_every_length() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(mixture_pd_scan, fullgraph=True, dynamic=True, backend=counter)
    frames = set()
    for batch, length in ((2, 7), (6, 9), (8, 11)):
        given_, selection = tensors(batch, length)
        options = {"selection": selection, "temperature": torch.tensor(0.7)}
        got, want = (
            results(compiled, given_, **options),
            results(mixture_pd_scan, given_, **options),
        )
        for name, value in want.items():
            torch.testing.assert_close(got[name], value, msg=name)
        # The first call may be traced twice.
        frames.add(counter.frame_count)
    assert len(frames) == 1


def test_repeatable() -> None:
    given_, selection = tensors(dtype=torch.float32)
    first, second = (results(mixture_pd_scan, given_, selection=selection) for _ in range(2))
    assert all(torch.equal(first[name], value) for name, value in second.items())


def test_a_temperature_that_is_changed_before_the_backward() -> None:
    found = []
    for later in (0.7, 3.0):
        given_, selection = tensors()
        leaves = {name: each.requires_grad_() for name, each in given_.items()}
        tau = torch.tensor(0.7)
        states, _ = mixture_pd_scan(**leaves, selection=selection, temperature=tau)
        tau.fill_(later)
        found += torch.autograd.grad(states.abs().sum(), leaves["mixture_weights"])
    assert torch.equal(*found)


def test_a_nan_is_reported() -> None:
    given_, selection = tensors()
    given_["mixture_weights"][2, 1, 0] = float("nan")
    said = r"\[0, 2\] of head 1 has a NaN, .* mixture v of the weights"
    with pytest.raises(NanLogitError, match=said):
        mixture_pd_scan(**given_, selection=selection)


@pytest.mark.parametrize("grad", [False, True])
def test_a_selection_out_of_range(grad: bool) -> None:
    given_, selection = tensors()
    selection[1, 3, 2] = MIXTURES
    leaves = {name: each.requires_grad_(grad) for name, each in given_.items()}
    for function in (mixture_pd_scan, reference.mixture_pd_scan):
        with pytest.raises(IndexRangeError, match=r"selection\[1, 3, 2\] = 5: .* \[0, 5\)"):
            function(**leaves, selection=selection)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"choice": "soft"}, "choice='soft' has a matrix for every token, .* leave selection out"),
        ({"noise": 0.5}, "noise is drawn for every token, and selection has tokens share"),
        ({"noise": torch.zeros(1)}, "noise is drawn for every token"),
        ({"selection": [1]}, "selection must be a torch.Tensor, got list"),
        ({"selection": torch.zeros(2, 7, 3)}, "selection has the unsupported dtype torch.float32"),
        (
            {"selection": torch.zeros(2, 7, 2).int()},
            r"\[B, T, H\] = \[2, 7, 3\], or \[B, T\], got",
        ),
        ({"selection": torch.zeros(2, 6).int()}, r"\[B, T, H\] = \[2, 7, 3\], or \[B, T\], got"),
        ({"mixture_weights": torch.zeros(2, 7, 3, 4)}, r"shape \[V, H, K\] or \[V, K\] with V of"),
        ({"mixture_weights": torch.zeros(0, 3, 4)}, r"with V of at least 1, got \[0, 3, 4\]"),
        ({"mixture_weights": torch.zeros(5, 2, 4)}, r"\[V, H, K\] = \[5, 3, 4\], got \[5, 2, 4\]"),
        ({"mixture_weights": torch.zeros(5, 3, 3)}, "are of 3 maps and dictionary_logits hold 4"),
        ({"temperature": torch.tensor(-1.0)}, "temperature must be a positive number, got -1"),
        (
            {"diagonal": torch.zeros(2, 7, 3, 5, dtype=torch.complex128)},
            r"diagonal must have the shape \[B, T, H, N\] = \[2, 7, 3, 6\]",
        ),
    ],
)
def test_what_is_wrong_is_said(changed: dict[str, Any], message: str) -> None:
    given_, selection = tensors()
    leaves = {name: each.requires_grad_() for name, each in given_.items()}
    with pytest.raises(ArgumentError, match=message):
        mixture_pd_scan(**{**leaves, "selection": selection, **changed})


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", ["dictionary_logits", "mixture_weights", "drive"])
def test_forward_mode_is_refused_not_lost(name: str, shared: bool) -> None:
    given_, selection = tensors()
    if not shared:
        heads = torch.arange(selection.shape[2])
        given_["mixture_weights"] = given_["mixture_weights"][selection, heads]
    options = {"selection": selection} if shared else {}

    def scanned(tensor: torch.Tensor) -> torch.Tensor:
        return mixture_pd_scan(**given_ | {name: tensor}, **options)[0]

    with pytest.raises(ArgumentError, match="no forward-mode derivative"):
        torch.func.jvp(scanned, (given_[name],), (torch.ones_like(given_[name]),))
    with pytest.raises(ArgumentError, match=r"cannot be differentiated by torch\.func"):
        torch.func.grad(lambda tensor: scanned(tensor).abs().sum())(given_[name])


def test_a_second_derivative_is_refused_with_the_way_out() -> None:
    given_, selection = tensors()
    weights = given_["mixture_weights"].requires_grad_()
    states, _ = mixture_pd_scan(**given_, selection=selection)
    (first,) = torch.autograd.grad(states.abs().sum(), weights, create_graph=True)
    with pytest.raises(ArgumentError, match=r"mixture_pd_scan of pdssm_compiler\.reference"):
        first.sum().backward()
