"""Layers under ``torch.compile(fullgraph=True)``: one graph for every length and batch.

Sizes of the first calls are those of nothing else, since Dynamo takes equal sizes for one. Graphs
are counted from the second call on: the first may be traced twice.
"""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from pdssm_compiler.nn import PDSSM, FlashPDSSM
from tests.nn.layers import made, tokens

KINDS = [(FlashPDSSM, "odd"), (PDSSM, "linear")]
STRESS = pytest.mark.stress


@pytest.mark.parametrize(
    ("kind", "name", "grad"),
    [
        (*KINDS[0], True),
        pytest.param(*KINDS[1], False, marks=STRESS),
        pytest.param(*KINDS[1], True, marks=STRESS),
    ],
)
def test_forward_and_backward(kind: type, name: str, grad: bool) -> None:
    torch._dynamo.reset()
    layer, counter = made(kind, name, 0), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for batch, length in ((7, 9), (8, 5)):
        x = tokens(layer, batch, length).requires_grad_(grad)
        with torch.set_grad_enabled(grad):
            outs = compiled(x), layer(x)
        torch.testing.assert_close(*outs)
        if grad:
            leaves = [x, *layer.parameters()]
            got, want = (torch.autograd.grad(out.sin().sum(), leaves) for out in outs)
            torch.testing.assert_close(got, want)
        counts.append(counter.frame_count)
    assert counts[0] == counts[1]


@pytest.mark.parametrize(("kind", "name"), [KINDS[0], pytest.param(*KINDS[1], marks=STRESS)])
def test_packed_sequences_and_steps(kind: type, name: str) -> None:
    torch._dynamo.reset()
    layer, counter = made(kind, name, 0), CompileCounterWithBackend("eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def run(x, cu_seqlens, cache):  # type: ignore[no-untyped-def]
        return layer(x, cu_seqlens=cu_seqlens, cache=cache, output_cache=True)

    step = torch.compile(layer.step, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    with torch.no_grad():
        for offsets in ([0, 4, 4, 9, 10, 13, 17, 19], [0, 2, 11, 12, 13]):
            cu_seqlens = torch.tensor(offsets)
            _, cache = layer(tokens(layer, len(offsets) - 1, 3, 1), output_cache=True)
            x = tokens(layer, 1, offsets[-1])
            got = run(x, cu_seqlens, cache)
            want = layer(x, cu_seqlens=cu_seqlens, cache=cache, output_cache=True)
            torch.testing.assert_close(got, want)
            token = tokens(layer, len(offsets) - 1, 1)[:, 0]
            torch.testing.assert_close(step(token, cache), layer.step(token, cache))
            counts.append(counter.frame_count)
    assert counts[0] == counts[1]
