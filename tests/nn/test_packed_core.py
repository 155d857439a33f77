"""The fused core on whole projections, and of one token: bit for bit what its parts give."""

from typing import Any

import pytest
import torch

from pdssm_compiler.nn import FlashPDSSM, flash, step_core
from pdssm_compiler.nn.core import mix_packed
from pdssm_compiler.nn.packed_core import mixer_core
from pdssm_compiler.nn.step_core import _mixer_step
from pdssm_compiler.runtime.backends import BACKENDS
from pdssm_compiler.runtime.errors import ArgumentError, NanLogitError

SURROGATES = ("active", "dense")


def layer_of(surrogate: str = "active", **options: Any) -> FlashPDSSM:
    torch.manual_seed(0)
    layer = FlashPDSSM(
        12, heads=2, state_size=3, dictionary_size=5, surrogate=surrogate, fused=True, **options
    )
    with torch.no_grad():
        layer.dictionary_logits.normal_()
    return layer


def trained(layer: FlashPDSSM, x: torch.Tensor, **options: Any) -> list[torch.Tensor]:
    """Outputs and every gradient, under autocast."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, cache = layer(x, output_cache=True, **options)
    loss = out.float().sin().sum() + cache.state.cos().sum() + cache.window.sum()
    leaves = [x, *(p for p in layer.parameters() if p.requires_grad)]
    return [out, cache.state, *torch.autograd.grad(loss, leaves, allow_unused=True)]


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_gradients_by_entries(monkeypatch: pytest.MonkeyPatch, surrogate: str) -> None:
    """As on a GPU, where tokens and gate have one gradient; it is not rounded on the way."""
    layer = layer_of(surrogate)
    x = torch.randn(2, 9, 12).requires_grad_()
    want = trained(layer, x)
    entries = []

    def counted(*given: Any, **named: Any) -> Any:
        entries.append(named["entries"])
        return mix_packed(*given, **named)

    monkeypatch.setattr(flash, "mix_packed", counted)
    monkeypatch.setattr("pdssm_compiler.nn.convolution.has_kernel", lambda *_: True)
    found = trained(layer, x)
    assert len(entries) == 1
    assert [entry.shape for entry in entries[0]] == [(2, 9, 2, 3)] * 2
    for mine, theirs in zip(found, want, strict=True):
        assert (mine.float() - theirs.float()).norm() <= 2**-7 * theirs.float().norm()


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("begun", [False, True])
def test_it_is_what_the_parts_give(
    monkeypatch: pytest.MonkeyPatch, surrogate: str, begun: bool
) -> None:
    layer = layer_of(surrogate)
    x = torch.randn(2, 9, 12).requires_grad_()
    options = {}
    if begun:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            options = {"cache": layer(torch.randn(2, 4, 12), output_cache=True)[1]}
    calls = []

    def counted(*given: Any, **named: Any) -> Any:
        calls.append(1)
        return mix_packed(*given, **named)

    monkeypatch.setattr(flash, "mix_packed", counted)
    found = trained(layer, x, **options)
    assert calls == [1]
    monkeypatch.setattr(flash, "_packs", lambda _: False)
    for mine, parts in zip(found, trained(layer, x, **options), strict=True):
        assert torch.equal(mine, parts)
    assert calls == [1]


def test_gradients_of_some_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A projection, or a dictionary, that is not trained."""
    x = torch.randn(2, 5, 12).requires_grad_()
    for frozen in ("dictionary_logits", "skip"):
        layer = layer_of()
        layer.get_parameter(frozen).requires_grad_(False)
        found = trained(layer, x)
        with monkeypatch.context() as patch:
            patch.setattr(flash, "_packs", lambda _: False)
            for mine, parts in zip(found, trained(layer, x), strict=True):
                assert torch.equal(mine, parts)


@pytest.mark.parametrize("sizes", [(0, 3), (2, 0)])
def test_no_tokens(sizes: tuple[int, int]) -> None:
    layer = layer_of()
    out, state, *grads = trained(layer, torch.randn(*sizes, 12).requires_grad_())
    assert out.shape == (*sizes, 12)
    assert state.shape == (sizes[0], 2, 3, 2)
    assert all(grad is None or not grad.any() for grad in grads[1:])


def operands(layer: FlashPDSSM) -> tuple[Any, ...]:
    """Of ``mixer_core``, as a layer calls it."""
    taken: list[Any] = []

    def took(*given: Any) -> Any:
        taken.append(given)
        return mixer_core(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pdssm_compiler.nn.core.mixer_core", took)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layer(torch.randn(2, 5, 12))
    return taken[0]


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_it_is_a_torch_operator(surrogate: str) -> None:
    text, projection, others, entries, temperature, dense = operands(layer_of(surrogate))
    leaves = [each.detach() for each in others]
    given = (text, projection.detach().requires_grad_(), leaves, entries, temperature, dense)
    # What autograd is asked for of tensors in a list is not looked at.
    torch.library.opcheck(
        mixer_core,
        given,
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


def test_a_projection_of_another_width_is_told() -> None:
    text, projection, *rest = operands(layer_of())
    with pytest.raises(ArgumentError, match=r"projection must have the shape \[B, T, 46\]"):
        mixer_core(text, projection[..., :-1], *rest)


def test_a_nan_is_told() -> None:
    text, projection, *rest = operands(layer_of())
    wrong = projection.detach().clone()
    wrong[1, 2, -1] = float("nan")
    with pytest.raises(NanLogitError, match=r"selector_logits\[1, 2, 1, :\] has a NaN"):
        mixer_core(text, wrong, *rest)


def test_no_second_gradient() -> None:
    layer = layer_of()
    x = torch.randn(1, 3, 12).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    (grad,) = torch.autograd.grad(out.float().sin().sum(), x, create_graph=True)
    with pytest.raises(ArgumentError, match="no gradient of its own"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_steps_in_one_kernel(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    layer = layer_of().to(dtype)
    x = torch.randn(3, 6, 12).to(dtype)
    with torch.no_grad():
        whole, last = layer(x, output_cache=True)
        runs = []
        for at_once in (True, False):
            if not at_once:
                monkeypatch.setattr(FlashPDSSM, "_steps_at_once", lambda *_: False)
            cache, outs = layer.init_cache(3), []
            for token in x.unbind(1):
                out, cache = layer.step(token, cache)
                outs.append(out)
            runs.append((torch.stack(outs, 1), cache))
    (outs, cache), (parts, of_parts) = runs
    torch.testing.assert_close(outs, whole)
    torch.testing.assert_close(cache.state, last.state)
    # In parts the read-out is of states that are not rounded; maps and choices are the same.
    torch.testing.assert_close(cache.state, of_parts.state)
    torch.testing.assert_close(outs, parts, rtol=2**-6, atol=2**-6)


def test_the_step_is_a_torch_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []

    def took(*given: Any) -> Any:
        taken.append(given)
        return _mixer_step(*given)

    monkeypatch.setattr("pdssm_compiler.nn.step_core._mixer_step", took)
    layer = layer_of().to(torch.bfloat16)
    with torch.no_grad():
        layer.step(torch.randn(2, 12).bfloat16(), layer.init_cache(2))
    torch.library.opcheck(
        _mixer_step, tuple(taken[0]), test_utils=("test_schema", "test_faketensor")
    )


def test_whether_a_step_chooses_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks at files, which no token should."""
    asked: list[None] = []
    monkeypatch.setattr(BACKENDS["tvm-cuda"], "unavailable", lambda: asked.append(None))
    step_core._has_cuda_kernels.cache_clear()
    try:
        told = [step_core._chooses(torch.device(name)) for name in ("cuda", "cuda", "cpu")]
    finally:
        step_core._has_cuda_kernels.cache_clear()
    assert (told, len(asked)) == ([True, True, False], 1)
