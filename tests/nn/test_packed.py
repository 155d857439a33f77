"""Packed sequences: each as if it were alone, in values, gradients and caches."""

from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdssm_compiler.nn import PDSSM, FlashPDSSM, LayerCache
from pdssm_compiler.nn.past import Past
from tests.nn.layers import CASES, made, tokens


@pytest.mark.parametrize(("kind", "name"), CASES)
@settings(max_examples=3)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    started=st.booleans(),
    seed=st.integers(0, 99),
)
def test_packed_equals_separate(
    kind: type, name: str, lengths: list[int], started: bool, seed: int
) -> None:
    layer = made(kind, name, seed)
    offsets = [0, *accumulate(lengths)]
    x = tokens(layer, 1, offsets[-1], seed).requires_grad_()
    cache = None
    if started:
        _, cache = layer(tokens(layer, len(lengths), 2, seed + 1), output_cache=True)
    got, after = layer(x, cache=cache, cu_seqlens=torch.tensor(offsets), output_cache=True)
    separate = [
        layer(
            x[:, begin:end],
            cache=None if cache is None else cache.select(torch.tensor([number])),
            output_cache=True,
        )
        for number, (begin, end) in enumerate(pairwise(offsets))
    ]
    want = torch.cat([out for out, _ in separate], 1)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    for field in ("state", "window"):
        if getattr(after, field) is not None:
            alone = torch.cat([getattr(last, field) for _, last in separate])
            torch.testing.assert_close(getattr(after, field), alone, rtol=1e-10, atol=1e-10)
    leaves = [x, *layer.parameters()]
    arriving = tokens(layer, 1, offsets[-1], seed + 2)
    alone = torch.cat([last.state for _, last in separate])
    found = [
        torch.autograd.grad(
            (out * arriving).sum() + state.sum(),
            leaves,
            retain_graph=True,
            materialize_grads=True,
            allow_unused=True,
        )
        for out, state in ((got, after.state), (want, alone))
    ]
    for mine, right in zip(*found, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-8, atol=1e-8)


def test_nothing_of_a_sequence_reaches_another() -> None:
    for layer in (made(FlashPDSSM, "odd", 0), made(PDSSM, "linear", 0)):
        x = tokens(layer, 1, 8)
        other = x.clone()
        other[:, :4] = 1e6
        offsets = torch.tensor([0, 4, 8], dtype=torch.int32)
        got, want = (layer(each, cu_seqlens=offsets) for each in (other, x))
        assert torch.equal(got[:, 4:], want[:, 4:])


@settings(max_examples=15)
@given(lengths=st.lists(st.integers(0, 4), min_size=1, max_size=4), reach=st.integers(0, 3))
def test_past(lengths: list[int], reach: int) -> None:
    offsets = [0, *accumulate(lengths)]
    x = torch.arange(1.0, offsets[-1] + 1).view(1, -1, 1)
    before = -torch.arange(1.0, len(lengths) * reach + 1).view(len(lengths), reach, 1)
    past = Past(x, before, torch.tensor(offsets))
    whole = [
        torch.cat([before[number], x[0, begin:end]])
        for number, (begin, end) in enumerate(pairwise(offsets))
    ]
    for lag in range(reach + 1):
        want = [each[reach - lag : len(each) - lag] for each in whole]
        assert torch.equal(past.lagged(lag)[0], torch.cat(want))
    assert torch.equal(past.last(), torch.stack([each[len(each) - reach :] for each in whole]))


def test_a_cache_of_packed_sequences_is_one_of_a_batch() -> None:
    """A prompt of each length, then tokens of all of them together."""
    layer = made(FlashPDSSM, "odd", 0)
    x, following = tokens(layer, 1, 7), tokens(layer, 3, 1, 1)[:, 0]
    _, cache = layer(x, cu_seqlens=torch.tensor([0, 2, 2, 7]), output_cache=True)
    assert isinstance(cache, LayerCache)
    got, _ = layer.step(following, cache)
    want = layer(torch.cat([x[:, 2:], following[None, 2:]], 1))[:, -1]
    torch.testing.assert_close(got[2:], want)
    torch.testing.assert_close(got[1:2], layer(following[1:2, None])[:, 0])
