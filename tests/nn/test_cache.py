"""Caches: any split of a sequence, into pieces and single tokens, gives what the whole gives."""

import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdssm_compiler.nn import PDSSM, CausalAttention, CausalLM, FlashPDSSM, LayerCache
from pdssm_compiler.nn.attention import AttentionCache
from pdssm_compiler.runtime.errors import ArgumentError
from tests.nn.layers import CASES, Layer, made, tokens

LENGTH = 9


def assert_same(got: LayerCache, want: LayerCache) -> None:
    """Two caches hold the same numbers."""
    for mine, theirs in zip(got, want, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def stepped(layer: Layer, x: torch.Tensor, cache: LayerCache) -> tuple[torch.Tensor, LayerCache]:
    """A piece, token by token."""
    outs = []
    for token in x.unbind(1):
        out, cache = layer.step(token, cache)
        outs.append(out)
    return torch.stack(outs, 1) if outs else x[:, :0], cache


@pytest.mark.parametrize(("kind", "name"), CASES)
@settings(max_examples=3)
@given(
    pieces=st.lists(st.tuples(st.integers(0, LENGTH), st.booleans()), max_size=3),
    batch=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_any_split_equals_the_whole(
    kind: type, name: str, pieces: list[tuple[int, bool]], batch: int, seed: int
) -> None:
    """Each piece by a call, or by steps."""
    layer = made(kind, name, seed)
    x = tokens(layer, batch, LENGTH, seed)
    with torch.no_grad():
        want, end = layer(x, output_cache=True)
        cuts = sorted(pieces)
        cache, outs, start = layer.init_cache(batch), [], 0
        for cut, by_steps in [*cuts, (LENGTH, True)]:
            piece = x[:, start:cut]
            if by_steps:
                out, cache = stepped(layer, piece, cache)
            else:
                out, cache = layer(piece, cache=cache, output_cache=True)
            outs.append(out)
            start = cut
    torch.testing.assert_close(torch.cat(outs, 1), want, rtol=1e-10, atol=1e-10)
    assert_same(cache, end)


@pytest.mark.parametrize(("kind", "name"), [(FlashPDSSM, "odd"), (PDSSM, "mlp, row")])
def test_gradients_go_through_a_cache(kind: type, name: str) -> None:
    """Of tokens in an earlier piece, and of parameters by it: choices too."""
    layer = made(kind, name, 3)
    x = tokens(layer, 2, LENGTH).requires_grad_()
    leaves = [x, *layer.parameters()]
    whole = layer(x)
    first, cache = layer(x[:, :4], output_cache=True)
    split = torch.cat([first, layer(x[:, 4:], cache=cache)], 1)
    arriving = tokens(layer, 2, LENGTH, 1)
    for got, want in zip(
        *(torch.autograd.grad(y, leaves, arriving) for y in (split, whole)), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)
    assert not torch.autograd.grad(
        layer(x[:, 4:], cache=cache.detach()).sum(), x, retain_graph=True
    )[0][:, :4].any()


@pytest.mark.parametrize(("kind", "name"), [(FlashPDSSM, "odd"), (PDSSM, "linear")])
def test_rows_of_a_cache(kind: type, name: str) -> None:
    """Beams in another order, one of them twice."""
    layer, rows = made(kind, name, 0), torch.tensor([2, 0, 2])
    x = tokens(layer, 3, LENGTH)
    _, cache = layer(x[:, :5], output_cache=True)
    got, _ = layer.step(x[rows, 5], cache.select(rows))
    torch.testing.assert_close(got, layer.step(x[:, 5], cache)[0][rows])


@pytest.mark.parametrize(("kind", "name"), [(FlashPDSSM, "odd"), (PDSSM, "linear")])
def test_a_cache_is_written_into_another(kind: type, name: str) -> None:
    layer = made(kind, name, 0)
    x = tokens(layer, 2, LENGTH)
    with torch.no_grad():
        _, cache = layer(x, output_cache=True)
        static = layer.init_cache(2)
        places = [None if tensor is None else tensor.data_ptr() for tensor in static]
        assert static.copy_(cache) is static
    assert_same(static, cache)
    assert places == [None if tensor is None else tensor.data_ptr() for tensor in static]
    with pytest.raises(ArgumentError, match="window is a tensor in one cache and None in the oth"):
        static._replace(window=torch.zeros(2)).copy_(static._replace(window=None))
    with pytest.raises(ArgumentError, match=r"state is \[1, .*\] and is to be written into \[2, "):
        static.copy_(layer.init_cache(1))
    with pytest.raises(ArgumentError, match="copy_ takes a LayerCache, got NoneType; pass what"):
        static.copy_(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("layer", [FlashPDSSM(4), CausalAttention(4, 2)])
def test_rows_that_are_none(layer: Any) -> None:
    cache = layer.init_cache(2)
    for rows, message in (
        (torch.tensor([0, 2]), r"rows\[1\] = 2, and the cache is of 2 sequences; number them"),
        (torch.tensor([-1]), r"rows\[0\] = -1, and the cache is of 2 sequences"),
        (torch.tensor([True, False]), r"rows must be int32 or int64 \[B'\], got torch.bool \[2\]"),
        (torch.tensor([[0]]), r"rows must be int32 or int64 \[B'\], got torch.int64 \[1, 1\]"),
        (torch.tensor([0], device="meta"), "rows are on meta and the cache on cpu; move one"),
        ([0], "rows must be a torch.Tensor, got list"),
    ):
        with pytest.raises(ArgumentError, match=message):
            cache.select(rows)


def test_steps_take_the_maps_of_the_cache() -> None:
    """So a dictionary is searched once a sequence, not once a token."""
    layer = made(FlashPDSSM, "odd", 0)
    x = tokens(layer, 2, 2)
    with torch.no_grad():
        _, cache = layer(x, output_cache=True)
        want = layer.step(x[:, 0], cache)[0]
        layer.dictionary_logits.neg_()
        assert torch.equal(layer.step(x[:, 0], cache)[0], want)
        assert not torch.equal(layer.step(x[:, 0], cache._replace(maps=None))[0], want)


def test_a_cache_is_loaded_as_tensors_are() -> None:
    model = CausalLM(7, 4, layers=2, attention_every=2, attention_heads=2)
    _, cache = model(torch.zeros(2, 3, dtype=torch.long), output_cache=True)
    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    again = torch.load(file, weights_only=True)
    assert [type(each) for each in again] == [LayerCache, AttentionCache]
    torch.testing.assert_close(again, cache)
