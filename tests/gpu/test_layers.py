"""Layers on a GPU: what a CPU gives, without waiting for the device, compiled and captured."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch

from pdssm_compiler.nn import PDSSM, FlashPDSSM
from pdssm_compiler.nn.convolution_op import convolve_silu, convolve_silu_backward
from pdssm_compiler.runtime.choices import (
    _places,
    chosen_along_last,
    softmax_gradient,
    surrogate_gradient,
)

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


@pytest.mark.parametrize("sizes", [(2, 300, 64), (3, 7, 520), (1, 1, 8)])
def test_convolution_kernels(sizes: tuple[int, int, int], device: torch.device) -> None:
    """In bfloat16, a token's gate behind it, against float64 on a CPU."""
    torch.manual_seed(0)
    batch, length, channels = sizes
    x = torch.randn(batch, length, 2 * channels).bfloat16()
    weight, bias = torch.randn(channels, 4), torch.randn(channels)
    grads = [torch.randn(sizes).bfloat16() for _ in range(3)]
    there = [each.to(device) for each in (x, weight, bias)]
    exact = [each.double() for each in (x, weight, bias)]
    found = [convolve_silu(*there)[0]]
    found += convolve_silu_backward([each.to(device) for each in grads], *there)
    want = [convolve_silu(*exact)[0]]
    want += convolve_silu_backward([each.double() for each in grads], *exact)
    for mine, right in zip(found, want, strict=True):
        assert (mine.cpu().double() - right).abs().max() <= 2**-7 * right.abs().max()


@pytest.mark.parametrize("maps", [1, 5, 32, 1000])
def test_choice_kernels(maps: int, device: torch.device) -> None:
    """Of a part of a wider tensor, with ties and NaNs, as torch chooses on a CPU."""
    torch.manual_seed(maps)
    whole = torch.randn(2, 37, 8 + 3 * maps).bfloat16()
    whole[0, 3, 8] = float("nan")
    logits = whole[..., 8:].unflatten(2, (3, maps))
    beside = torch.zeros_like(whole).to(device)
    into = beside[..., 8:].unflatten(2, (3, maps))
    there = whole.to(device)[..., 8:].unflatten(2, (3, maps))
    index = chosen_along_last(there, "logits")
    assert torch.equal(index.cpu(), _places(logits, -1))
    tau = torch.tensor(0.7)
    for dense in (False, True):
        grad = torch.randn(2, 37, 3, maps) if dense else torch.randn(2, 37, 3)
        surrogate_gradient(there, grad.to(device), index, tau.to(device), dense, into)
        want = softmax_gradient(logits, grad, index.cpu(), tau, -1, dense)
        torch.testing.assert_close(into.cpu(), want, rtol=2**-7, atol=1e-3, equal_nan=True)
        assert not beside[..., :8].any()


def test_low_precision(device: torch.device) -> None:
    """The fused core on whole projections, beside the scan in parts: the same but for rounding."""
    layer, x = made(partial(FlashPDSSM, fused=True), device)
    parts = copy.deepcopy(layer)
    parts.fused = False
    grads = []
    for each in (layer, parts):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            out = each(x.bfloat16())
        grads.append(torch.autograd.grad(out.float().sin().sum(), list(each.parameters())))
    for mine, theirs in zip(*grads, strict=True):
        assert (mine - theirs).norm() <= 0.05 * theirs.norm()


def test_a_captured_step_in_low_precision(device: torch.device) -> None:
    layer, x = made(FlashPDSSM, device)
    layer, x = layer.bfloat16(), x.bfloat16()
    with torch.no_grad():
        whole, last = layer(x[:, :20], output_cache=True)
        static, token = layer.init_cache(2), torch.zeros_like(x[:, 0])
        layer.step(token, static)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out, following = layer.step(token, static)
            static.copy_(following)
        static.copy_(layer.init_cache(2))
        for number, given in enumerate(x[:, :20].unbind(1)):
            token.copy_(given)
            graph.replay()
            torch.testing.assert_close(out, whole[:, number], rtol=2**-6, atol=2**-6)
    torch.testing.assert_close(static.state, last.state, rtol=1e-2, atol=1e-2)
