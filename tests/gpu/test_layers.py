"""Layers on a GPU: what a CPU gives, without waiting for the device, compiled and captured."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch

from pdssm_compiler.nn import PDSSM, FlashPDSSM

# By itself the first is fused.
KINDS = [FlashPDSSM, partial(FlashPDSSM, fused=False), PDSSM]
Kind = Callable[[int], FlashPDSSM | PDSSM]


def made(kind: Kind, device: torch.device) -> tuple[FlashPDSSM | PDSSM, torch.Tensor]:
    """A layer and tokens."""
    torch.manual_seed(0)
    return kind(64).to(device), torch.randn(2, 300, 64).to(device)


@pytest.mark.parametrize("kind", KINDS)
def test_as_on_a_cpu(kind: Kind, device: torch.device) -> None:
    """In float64, where no choice is so near a tie that the order of sums decides it."""
    layer, x = made(kind, device)
    layer, x = layer.double(), x.double().requires_grad_()
    there, y = copy.deepcopy(layer).cpu(), x.detach().cpu().requires_grad_()
    out, want = layer(x), there(y)
    torch.testing.assert_close(out.cpu(), want, rtol=1e-9, atol=1e-9)
    got = torch.autograd.grad(out.sin().sum(), [x, *layer.parameters()])
    right = torch.autograd.grad(want.sin().sum(), [y, *there.parameters()])
    for mine, theirs in zip(got, right, strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_no_synchronisation(kind: Kind, device: torch.device) -> None:
    layer, x = made(kind, device)
    offsets = torch.tensor([0, 7, 7, 300], device=device)

    def train() -> None:
        layer(x).square().sum().backward()
        layer(x[:1], cu_seqlens=offsets, output_cache=True)

    train()
    torch.cuda.set_sync_debug_mode("error")
    try:
        train()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", KINDS)
def test_torch_compile(kind: Kind, device: torch.device) -> None:
    layer, x = made(kind, device)
    leaves = list(layer.parameters())
    compiled = torch.compile(layer, fullgraph=True)
    outs = compiled(x), layer(x)
    torch.testing.assert_close(*outs, rtol=1e-3, atol=1e-3)
    got, want = (torch.autograd.grad(out.square().sum(), leaves) for out in outs)
    for mine, right in zip(got, want, strict=True):
        assert (mine - right).norm() <= 1e-2 * right.norm() + 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_captured_step(kind: Kind, device: torch.device) -> None:
    """A graph that writes the next cache over the last decodes what steps decode."""
    layer, x = made(kind, device)
    with torch.no_grad():
        cache = static = layer.init_cache(2)
        want = []
        for token in x[:, :20].unbind(1):
            out, cache = layer.step(token, cache)
            want.append(out)
        static, token = layer.init_cache(2), torch.zeros_like(x[:, 0])
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out, following = layer.step(token, static)
            static.copy_(following)
        static.copy_(layer.init_cache(2))
        for number, given in enumerate(x[:, :20].unbind(1)):
            token.copy_(given)
            graph.replay()
            torch.testing.assert_close(out, want[number], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(static.state, cache.state, rtol=1e-4, atol=1e-4)
