"""Layers on a GPU: what a CPU gives, without waiting for the device, compiled and captured."""

import copy
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

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
# In float32, and under autocast, where other kernels run.
LOW = [False, True]


def autocast(low: bool) -> torch.autocast:
    return torch.autocast("cuda", dtype=torch.bfloat16, enabled=low)


def assert_close_in_norm(
    found: Sequence[torch.Tensor], want: Sequence[torch.Tensor], low: bool
) -> None:
    """As :func:`test_torch_compile` and :func:`test_low_precision` ask of gradients."""
    for mine, right in zip(found, want, strict=True):
        assert (mine - right).norm() <= (0.05 if low else 1e-2) * right.norm() + 1e-5


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


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("kind", KINDS)
def test_no_synchronisation(kind: Kind, low: bool, device: torch.device) -> None:
    layer, x = made(kind, device)
    offsets = torch.tensor([0, 7, 7, 300], device=device)

    def train() -> None:
        with autocast(low):
            out = layer(x)
            layer(x[:1], cu_seqlens=offsets, output_cache=True)
        out.float().square().sum().backward()

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


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("kind", KINDS)
def test_torch_compile_once_for_every_length(kind: Kind, low: bool, device: torch.device) -> None:
    torch._dynamo.reset()
    layer, _ = made(kind, device)
    leaves, counter = list(layer.parameters()), CompileCounterWithBackend("inductor")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    # Fewer than 4096 tokens: more of them Inductor may add up another way.
    for sizes in ((7, 300), (5, 129), (9, 310)):
        x = torch.randn(*sizes, 64, device=device)
        with autocast(low):
            outs = compiled(x), layer(x)
        assert_close_in_norm(
            *(torch.autograd.grad(out.float().sin().sum(), leaves) for out in outs), low
        )
        counts.append(counter.frame_count)
    # The first may be traced twice.
    assert counts[0] == counts[2]


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("kind", KINDS)
def test_a_captured_step_of_training(kind: Kind, low: bool, device: torch.device) -> None:
    """Forward and backward, replayed on other tokens and by another temperature."""
    layer, x = made(kind, device)
    leaves = list(layer.parameters())

    def train() -> tuple[torch.Tensor, ...]:
        with autocast(low):
            out = layer(x)
        return torch.autograd.grad(out.float().sin().sum(), leaves)

    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        train()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = train()
    seen = []
    for tau in (1.0, 0.5):
        x.copy_(torch.randn_like(x))
        layer.temperature.fill_(tau)
        graph.replay()
        assert_close_in_norm(captured, train(), low)
        seen.append(captured[0].clone())
    assert not torch.equal(*seen)


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
