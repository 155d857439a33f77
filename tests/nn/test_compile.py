"""Layers under ``torch.compile(fullgraph=True)``: one graph for every length and batch."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from pdssm_compiler.nn import PDSSM, FlashPDSSM
from tests.nn.layers import made, tokens

KINDS = [(FlashPDSSM, "odd"), (PDSSM, "linear")]


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_forward_and_backward(kind: type, name: str) -> None:
    torch._dynamo.reset()
    layer, counter = made(kind, name, 0), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    for batch, length in ((2, 9), (3, 5), (4, 6)):
        x = tokens(layer, batch, length).requires_grad_()
        leaves = [x, *layer.parameters()]
        got, want = (torch.autograd.grad(f(x).sin().sum(), leaves) for f in (compiled, layer))
        torch.testing.assert_close(compiled(x), layer(x))
        torch.testing.assert_close(got, want)
    assert counter.frame_count == 1


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_packed_sequences_and_caches(kind: type, name: str) -> None:
    torch._dynamo.reset()
    layer, counter = made(kind, name, 0), CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def run(x, cu_seqlens, cache):  # type: ignore[no-untyped-def]
        return layer(x, cu_seqlens=cu_seqlens, cache=cache, output_cache=True)

    with torch.no_grad():
        for offsets in ([0, 4, 4, 9], [0, 2, 11, 12, 13]):
            cu_seqlens = torch.tensor(offsets)
            _, cache = layer(tokens(layer, len(offsets) - 1, 3, 1), output_cache=True)
            x = tokens(layer, 1, offsets[-1])
            got = run(x, cu_seqlens, cache)
            want = layer(x, cu_seqlens=cu_seqlens, cache=cache, output_cache=True)
            torch.testing.assert_close(got, want)
    assert counter.frame_count == 1


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_step(kind: type, name: str) -> None:
    torch._dynamo.reset()
    layer, counter = made(kind, name, 0), CompileCounterWithBackend("aot_eager")
    step = torch.compile(layer.step, fullgraph=True, dynamic=True, backend=counter)
    with torch.no_grad():
        for batch in (2, 5):
            x = tokens(layer, batch, 4)
            _, cache = layer(x[:, :3], output_cache=True)
            torch.testing.assert_close(step(x[:, 3], cache), layer.step(x[:, 3], cache))
    assert counter.frame_count == 1
