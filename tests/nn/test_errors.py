"""What layers say of arguments that they cannot take."""

import importlib
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from pdssm_compiler.nn import PDSSM, Block, FlashPDSSM, LayerCache
from pdssm_compiler.runtime.errors import ArgumentError, NanLogitError, OffsetError

BAD_SIZES: dict[str, tuple[type, dict[str, Any], str]] = {
    "no number": (
        FlashPDSSM,
        {"d_model": 1.5},
        "d_model must be a whole number of at least 1, go",
    ),
    "zero": (FlashPDSSM, {"d_model": 4, "conv_width": 0}, "conv_width must be a whole number of"),
    "no divisor": (
        FlashPDSSM,
        {"d_model": 38},
        "d_model=38 has no divisor between its root and twice that, which leaves heads and "
        "state_size open: pass one of them that divides it, or both, whose product is the inner "
        "width",
    ),
    "not divisible": (
        FlashPDSSM,
        {"d_model": 6, "heads": 4},
        "d_model=6 is not divisible by heads=4, which leaves .* open: pass both, whose product",
    ),
    "state": (FlashPDSSM, {"d_model": 6, "state_size": 4}, "is not divisible by state_size=4, w"),
    "dictionary": (
        PDSSM,
        {"d_model": 4, "dictionary_size": True},
        "dictionary_size must be a whol",
    ),
    "surrogate": (
        FlashPDSSM,
        {"d_model": 4, "surrogate": "soft"},
        "surrogate must be one of 'active', 'dense'; got 'soft'",
    ),
    "readout": (
        PDSSM,
        {"d_model": 4, "readout": "gelu"},
        "readout must be one of 'linear', 'mlp'",
    ),
    "bias": (
        FlashPDSSM,
        {"d_model": 4, "bias": "no"},
        "bias must be True or False, got 'no'",
    ),
    "dropout": (
        PDSSM,
        {"d_model": 4, "dropout": 2.0},
        "dropout must be a number from 0 to 1, got 2.0; pass a float",
    ),
    "mixer": (
        Block,
        {"mixer": nn.Linear(4, 4), "hidden": 8},
        "mixer must be a FlashPDSSM or a CausalAttention, got Linear",
    ),
    "a block by itself": (
        Block,
        {"mixer": PDSSM(4), "hidden": 8},
        "mixer must be .*, got PDSSM; a PDSSM is a block by itself",
    ),
    "no width": (
        Block,
        {"mixer": FlashPDSSM(4), "hidden": 0},
        "hidden must be a whole number of at least 1, got 0",
    ),
    "dtype": (
        FlashPDSSM,
        {"d_model": 4, "dtype": torch.complex64},
        "dtype must be torch.float32, float64, bfloat16 or float16, got torch.complex64; pass one",
    ),
    "orientation": (
        PDSSM,
        {"d_model": 4, "orientation": 1},
        "orientation must be one of 'column'",
    ),
}


@pytest.mark.parametrize("case", BAD_SIZES)
def test_sizes(case: str) -> None:
    kind, options, message = BAD_SIZES[case]
    with pytest.raises(ArgumentError, match=message):
        kind(**options)


X = torch.zeros(2, 3, 4)
BAD_CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "no tensor": ({"x": [1.0]}, "x must be a torch.Tensor, got list"),
    "integers": ({"x": X.long()}, r"x must be real numbers, got torch.int64; convert it with .to"),
    "rank": (
        {"x": X[0]},
        r"x must have the shape \[B, T, 4\], got \[3, 4\]; the last axis is d_m",
    ),
    "width": ({"x": X[..., :3]}, r"x must have the shape \[B, T, 4\], got \[2, 3, 3\]"),
    "precision": (
        {"x": X.double()},
        r"x is torch.float64 and the layer's parameters are torch.float32; convert one with .to",
    ),
    "device": ({"x": X.to("meta")}, "x is on meta and the layer's parameters on cpu; move one"),
    "batch": ({"cu_seqlens": torch.tensor([0, 3])}, r"so B must be 1, got 2"),
    "offsets": ({"x": X[:1], "cu_seqlens": torch.ones(2)}, "cu_seqlens must be int32 or int64"),
    "no cache": ({"cache": (X,)}, "cache must be a LayerCache, got tuple; take what init_cache"),
    "another kind": (
        {"cache": LayerCache(torch.zeros(2, 2, 2, 2))},
        "of another kind of layer; take what this layer",
    ),
}


@pytest.mark.parametrize("kind", [FlashPDSSM, PDSSM])
@pytest.mark.parametrize("case", BAD_CALLS)
def test_calls(kind: type, case: str) -> None:
    given, message = BAD_CALLS[case]
    if kind is PDSSM and case == "another kind":
        given = {"cache": LayerCache(torch.zeros(2, 1, 4, 2), X)}
    with pytest.raises(ArgumentError, match=message):
        kind(4)(**{"x": X, **given})


@pytest.mark.parametrize("kind", [FlashPDSSM, PDSSM])
def test_steps(kind: type) -> None:
    layer = kind(4)
    with pytest.raises(ArgumentError, match=r"x must have the shape \[B, 4\], got \[2, 3, 4\]"):
        layer.step(X, layer.init_cache(2))
    with pytest.raises(
        ArgumentError, match=r"cache.state must have the shape \[2, .*\]; a cache g"
    ):
        layer.step(X[:, 0], layer.init_cache(3))
    with pytest.raises(
        ArgumentError, match=r"x is torch.float16 and the layer's parameters are t"
    ):
        layer.step(X[:, 0].half(), layer.init_cache(2))


@pytest.mark.parametrize("kind", [FlashPDSSM, PDSSM])
def test_what_is_no_step(kind: type) -> None:
    layer = kind(4)
    cache = layer.init_cache(2)
    low = cache._replace(state=cache.state.bfloat16())
    with pytest.raises(ArgumentError, match=r"cache.state must be torch.float32, whatever .* got"):
        layer.step(X[:, 0], low)
    with pytest.raises(ArgumentError, match=r"cache.state must be torch.float32, whatever"):
        layer(X, cache=low)
    with pytest.raises(ArgumentError, match=r"a step is of one token of each .* out cu_seqlens"):
        layer(X[:, 0], cache=cache, step=True, cu_seqlens=torch.tensor([0, 3]))
    with pytest.raises(ArgumentError, match="cache must be a LayerCache, got NoneType"):
        layer(X[:, 0], step=True)


@pytest.mark.parametrize("kind", [FlashPDSSM, PDSSM])
def test_what_the_scan_reports(kind: type) -> None:
    layer = kind(4)
    with pytest.raises(OffsetError, match=r"cu_seqlens\[-1\] = 9 past the end"):
        layer(X[:1], cu_seqlens=torch.tensor([0, 9]))
    with pytest.raises(OffsetError, match="offsets must not decrease"):
        layer(X[:1], cu_seqlens=torch.tensor([0, 2, 1, 3]))
    bad = X.clone()
    bad[1, 2] = float("nan")
    with pytest.raises(NanLogitError, match="has a NaN, so nothing can be chosen"):
        layer(bad)


@pytest.mark.parametrize("kind", [FlashPDSSM, PDSSM])
def test_no_gradient_by_a_temperature_of_zero(kind: type) -> None:
    layer = kind(4)
    layer.temperature.fill_(0)
    out = layer(X)
    with pytest.raises(
        ArgumentError, match=r"temperature must be a positive number, got 0.0: the"
    ):
        out.sum().backward()


def test_a_projection_of_another_kind_takes_what_it_takes() -> None:
    layer = FlashPDSSM(4)
    layer.in_proj.register_forward_pre_hook(lambda _, given: (given[0].float(),))
    assert torch.equal(layer(X.double()), layer(X))


@pytest.mark.parametrize("kind", [FlashPDSSM, PDSSM])
def test_quantised_projections(kind: type) -> None:
    """Whose weights are no tensors."""

    class Quantised(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.linear = linear

        def weight(self) -> torch.Tensor:
            return self.linear.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x)

    layer = kind(4)
    want = layer(X)
    for module in [*layer.modules()]:
        for name, child in [*module.named_children()]:
            if type(child) is nn.Linear:
                setattr(module, name, Quantised(child))
    assert torch.equal(layer(X), want)


@pytest.mark.parametrize("kind", [FlashPDSSM, PDSSM])
def test_what_a_layer_says_of_transforms(kind: type) -> None:
    layer = kind(4)
    with pytest.raises(ArgumentError, match=r"a scan cannot be differentiated by torch.func"):
        torch.func.grad(lambda x: layer(x).sum())(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ArgumentError, match="a scan cannot be mapped by vmap"):
            torch.func.vmap(layer)(X[:, None])


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "pdssm_compiler.nn.hugging_face"
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ImportError, match=r"needs the Python package transformers .*: pip instal"):
        importlib.import_module(name)
