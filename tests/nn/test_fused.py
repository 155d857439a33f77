"""``FlashPDSSM`` with its core in one kernel gives what it gives in parts, and keeps no states."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdssm_compiler import ArgumentError
from pdssm_compiler.nn import FlashPDSSM
from pdssm_compiler.schedules.templates.torch_tokens import TorchTokens
from tests.nn.layers import FLASH, made, tokens
from tests.torch_only import torch_only


def both(name: str, seed: int, dtype: torch.dtype = torch.float64) -> list[FlashPDSSM]:
    """One layer in parts, and the same with its core in one kernel."""
    layers = []
    for fused in (False, True):
        layer = made(FlashPDSSM, name, seed, dtype)
        layer.fused = fused
        layers.append(layer)
    return layers


def found(layer: FlashPDSSM, x: torch.Tensor, **options: Any) -> list[torch.Tensor]:
    """What it gives, and the gradients of tokens and parameters, in order."""
    x = x.detach().clone().requires_grad_()
    out = layer(x, **options)
    outs = [out] if isinstance(out, torch.Tensor) else [out[0], out[1].state, out[1].window]
    random = torch.Generator().manual_seed(1)
    reached = [each for each in outs if each.requires_grad]
    arriving = [
        torch.randn(each.shape, generator=random, dtype=torch.float64).to(each.dtype)
        for each in reached
    ]
    leaves = [x, *layer.parameters()]
    return [*outs, *torch.autograd.grad(reached, leaves, arriving)]


@pytest.mark.parametrize("name", FLASH)
@settings(max_examples=3)
@given(
    batch=st.integers(1, 2),
    length=st.sampled_from((0, 1, 7)),
    carried=st.booleans(),
    masked=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_as_in_parts(
    name: str, batch: int, length: int, carried: bool, masked: bool, seed: int
) -> None:
    layers = both(name, seed)
    x = tokens(layers[0], batch, length, seed)
    options: dict[str, Any] = {}
    if masked:
        options["attention_mask"] = torch.arange(length).expand(batch, length) >= length // 2
    if carried:
        _, cache = layers[0](tokens(layers[0], batch, 3, seed + 1), output_cache=True)
        options |= {"cache": cache.detach(), "output_cache": True}
    want, got = (found(layer, x, **options) for layer in layers)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["odd", "dense"])
def test_packed(name: str) -> None:
    """And where the ends are carried, which is in parts."""
    layers = both(name, 0)
    x, offsets = tokens(layers[0], 1, 9), torch.tensor([0, 4, 4, 9])
    for output_cache in (False, True):
        options = {"cu_seqlens": offsets, "output_cache": output_cache}
        want, got = (found(layer, x, **options) for layer in layers)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.stress
def test_kernels_in_float32(kernels: None) -> None:
    """By what users get on a CPU."""
    in_parts, fused = both("odd", 0, torch.float32)
    x = tokens(fused, 2, 30)
    with torch_only(TorchTokens()):
        want = found(in_parts.double(), x.double())
    for mine, right in zip(found(fused, x), want, strict=True):
        # Thirty tokens of a few dozen roundings each.
        assert (mine - right).abs().max() <= 1e-4 * right.abs().max()


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_low_precision(low: torch.dtype) -> None:
    """The core rounds what it gives alone; in parts the states are rounded as well."""
    layers = both("odd", 0, torch.float32)
    x = tokens(layers[0], 2, 9)
    want = layers[0](x)
    with torch.autocast("cpu", low):
        in_parts, fused = (layer(x, output_cache=True) for layer in layers)
    assert fused[0].dtype == in_parts[0].dtype == low
    assert fused[1].state.dtype == torch.float32
    error, others = ((out.float() - want).norm() for out in (fused[0], in_parts[0]))
    assert error <= 2 * others
    fused[0].float().square().sum().backward()
    for parameter in layers[1].parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


def kept(layer: FlashPDSSM, x: torch.Tensor) -> list[torch.Tensor]:
    """What a forward keeps for the backward, one tensor of each memory, without parameters."""
    found: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    for parameter in layer.parameters():
        found.pop(parameter.untyped_storage().data_ptr(), None)
    return list(found.values())


@pytest.mark.parametrize("name", ["odd", "dense"])
def test_no_states_are_kept(name: str) -> None:
    """Of complex numbers, those that the projection gave, and a state a sequence."""
    layers = both(name, 0, torch.float32)
    d, heads, n = layers[0].d_inner, layers[0].heads, layers[0].state_size
    x = tokens(layers[0], 2, 40)
    sizes = []
    for layer in layers:
        memories = kept(layer, x)
        complex_ = [t for t in memories if t.is_complex()]
        shapes = sorted(list(t.shape) for t in complex_)
        if layer.fused:
            # The drive and C are copies where an odd number of logits shifts the pairs.
            tokens_of = [s for s in shapes if s == [2, 40, heads, n]]
            assert len(tokens_of) <= 2
            assert [s for s in shapes if s not in tokens_of] == [[2, 2, heads, n]]
        sizes.append(sum(t.untyped_storage().nbytes() for t in memories))
    in_parts, fused = sizes
    # Diagonal and states, four numbers, and what both are made by.
    assert in_parts - fused > 4 * 80 * 4 * d


def test_by_itself_it_is_fused_on_cpus_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, called = FlashPDSSM(16), []
    assert layer.fused is None
    whole = layer._fused
    monkeypatch.setattr(layer, "_fused", lambda *given: called.append(1) or whole(*given))
    layer(torch.randn(1, 3, 16))
    assert called == [1]
    assert layer._fuses(torch.device("cuda"))
    # Where nothing has been measured it is not.
    assert not layer._fuses(torch.device("mps"))
    layer.fused = False
    layer(torch.randn(1, 3, 16))
    assert called == [1]
    assert FlashPDSSM(16, fused=True)._fuses(torch.device("mps"))


def test_what_fused_may_be() -> None:
    with pytest.raises(ArgumentError, match="fused must be True or False, got Tensor"):
        FlashPDSSM(16, fused=torch.ones(2))
