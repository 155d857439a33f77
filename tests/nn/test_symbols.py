"""``PDSSM`` of symbols: what it gives for the tokens that they stand for."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from pdssm_compiler.nn import PDSSM
from pdssm_compiler.runtime.errors import ArgumentError, IndexRangeError, NanLogitError
from tests.nn.layers import PD, Layer, made

ROWS = 4


def given_to(
    layer: Layer, batch: int, length: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """A table, and symbols of it."""
    random = torch.Generator().manual_seed(seed)
    table = torch.randn(ROWS, layer.d_model, generator=random, dtype=torch.float64)
    symbols = torch.randint(ROWS, (batch, length), generator=random)
    return table.to(layer.skip.dtype).requires_grad_(), symbols


def assert_alike(layer: Layer, table: torch.Tensor, symbols: torch.Tensor, **options: Any) -> None:
    """Values and gradients of the table and of all parameters, as by tokens."""
    got = layer(table, symbols=symbols, **options)
    want = layer(table[symbols], **options)
    leaves = [table, *layer.parameters()]
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    outs = (
        [(got,), (want,)]
        if isinstance(got, torch.Tensor)
        else [(g[0], g[1][0]) for g in (got, want)]
    )
    mine, right = (torch.autograd.grad([each.sin().sum() for each in out], leaves) for out in outs)
    torch.testing.assert_close(mine, right, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", PD)
@settings(max_examples=4)
@given(st.integers(1, 3), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_values_and_gradients(name: str, batch: int, length: int, seed: int) -> None:
    layer = made(PDSSM, name, seed)
    assert_alike(layer, *given_to(layer, batch, length, seed))


@pytest.mark.parametrize("name", ["linear", "mlp, row"])
def test_caches_and_packed_sequences(name: str) -> None:
    layer = made(PDSSM, name, 0)
    table, symbols = given_to(layer, 3, 7)
    with torch.no_grad():
        _, cache = layer(table[symbols], output_cache=True)
    assert_alike(layer, table, symbols[:, :4], cache=cache, output_cache=True)
    packed = {"cu_seqlens": torch.tensor([0, 4, 4, 7]), "output_cache": True}
    assert_alike(layer, table, symbols[:1], cache=cache, **packed)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_empty(shape: tuple[int, int]) -> None:
    layer = made(PDSSM, "linear", 0)
    table, symbols = given_to(layer, *shape)
    out = layer(table, symbols=symbols)
    assert out.shape == (*shape, layer.d_model)
    out.sum().backward()
    assert not table.grad.any()


def test_noise_is_of_tokens() -> None:
    layer = made(PDSSM, "linear", 0)
    layer.noise = 0.5
    table, symbols = given_to(layer, 2, 5)
    outs = []
    for x in ({"x": table, "symbols": symbols}, {"x": table[symbols]}):
        torch.manual_seed(3)
        outs.append(layer.train()(**x))
    assert torch.equal(*outs)
    assert not torch.equal(outs[0], layer.eval()(table, symbols=symbols))


def test_soft_matrices_are_of_tokens() -> None:
    layer = made(PDSSM, "linear", 0)
    layer.choice = "soft"
    table, symbols = given_to(layer, 2, 5)
    assert torch.equal(layer(table, symbols=symbols), layer(table[symbols]))


def test_autocast() -> None:
    """By the rules of tokens: what is in low precision differs by its roundings."""
    layer = made(PDSSM, "linear", 0, torch.float32)
    table, symbols = given_to(layer, 2, 5)
    with torch.autocast("cpu", torch.bfloat16):
        got, want = layer(table, symbols=symbols), layer(table[symbols])
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)


def test_compiled_once_for_every_length() -> None:
    torch._dynamo.reset()
    layer, counter = made(PDSSM, "linear", 0), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for batch, length in ((7, 9), (8, 6)):
        table, symbols = given_to(layer, batch, length)
        outs = compiled(table, symbols=symbols), layer(table, symbols=symbols)
        torch.testing.assert_close(*outs)
        leaves = [table, *layer.parameters()]
        got, want = (torch.autograd.grad(out.sin().sum(), leaves) for out in outs)
        torch.testing.assert_close(got, want)
        counts.append(counter.frame_count)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_dtypes_of_symbols(dtype: torch.dtype) -> None:
    layer = made(PDSSM, "linear", 0)
    table, symbols = given_to(layer, 2, 5)
    assert torch.equal(layer(table, symbols=symbols.to(dtype)), layer(table, symbols=symbols))


WRONG = torch.zeros(2, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"x": torch.zeros(2, 5, 4)},
            ArgumentError,
            r"the table \[V, 4\] of .* leave symbols out",
        ),
        ({"x": torch.zeros(0, 4)}, ArgumentError, r"with V of at least 1, got \[0, 4\]"),
        ({"x": torch.zeros(3, 5)}, ArgumentError, r"the table \[V, 4\] .* got \[3, 5\]"),
        ({"x": torch.zeros(4, 4).int()}, ArgumentError, "x must be real numbers"),
        ({"x": torch.zeros(4, 4)}, ArgumentError, "x is torch.float32 and the layer's param"),
        ({"symbols": [1]}, ArgumentError, "symbols must be a torch.Tensor, got list"),
        ({"symbols": WRONG.float()}, ArgumentError, r"\[B, T\], got torch.float32 \[2, 5\]"),
        ({"symbols": WRONG[0]}, ArgumentError, r"\[B, T\], got torch.int64 \[5\]"),
        ({"symbols": WRONG.to("meta")}, ArgumentError, "symbols are on meta and x, .* on cpu"),
        (
            {"symbols": WRONG + 4},
            IndexRangeError,
            r"symbols\[0, 0\] = 4: .* in \[0, 4\), the rows",
        ),
        ({"symbols": WRONG - 1}, IndexRangeError, r"symbols\[0, 0\] = -1: "),
        ({"step": True}, ArgumentError, r"leave out symbols, and give x\[symbols\]"),
    ],
)
def test_what_is_wrong_is_said(
    changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    layer = made(PDSSM, "linear", 0)
    table, symbols = given_to(layer, 2, 5)
    with pytest.raises(error, match=message):
        layer(**{"x": table, "symbols": symbols, **changed})


@pytest.mark.parametrize(
    ("noise", "error"),
    [(0.0, IndexRangeError), pytest.param(0.5, NanLogitError, marks=pytest.mark.stress)],
)
def test_symbols_that_nobody_looked_at(noise: float, error: type[Exception]) -> None:
    """As those of a GPU, or of a graph: the kernels report them."""
    torch._dynamo.reset()
    layer = made(PDSSM, "linear", 0)
    layer.noise = noise
    table, symbols = given_to(layer, 2, 5)
    symbols[1, 3] = ROWS
    with pytest.raises(error):
        torch.compile(layer, fullgraph=True, backend="eager")(table, symbols=symbols)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_transforms_are_refused_not_lost(noise: float) -> None:
    layer = made(PDSSM, "linear", 0).train()
    layer.noise = noise
    table, symbols = given_to(layer, 2, 5)

    def of_table(x: torch.Tensor) -> torch.Tensor:
        return layer(x, symbols=symbols)

    def of_weight(weight: torch.Tensor) -> torch.Tensor:
        changed = {"drive_proj.weight": weight}
        return torch.func.functional_call(layer, changed, (table,), {"symbols": symbols})

    table = table.detach()
    for function, at in ((of_table, table), (of_weight, layer.drive_proj.weight.detach())):
        with pytest.raises(ArgumentError, match="no forward-mode derivative"):
            torch.func.jvp(function, (at,), (torch.ones_like(at),))
        with pytest.raises(ArgumentError, match=r"cannot be differentiated by torch\.func"):
            torch.func.grad(lambda x, f=function: f(x).sum())(at)
    with pytest.raises(ArgumentError, match="cannot be mapped by vmap"):
        torch.func.vmap(lambda some: layer(table, symbols=some))(symbols.unsqueeze(1))
