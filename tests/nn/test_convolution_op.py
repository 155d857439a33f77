"""``convolve_silu`` and its step: values and gradients against float64, and as torch operators."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from pdssm_compiler.nn.convolution import CausalConvolution
from pdssm_compiler.nn.convolution_op import (
    convolve_silu,
    convolve_silu_backward,
    convolve_silu_step,
)
from pdssm_compiler.runtime import hand_written


def leaves(batch: int, length: int, channels: int, width: int) -> list[torch.Tensor]:
    torch.manual_seed(width + 7 * length)
    sizes = ((batch, length, channels), (channels, width), (channels,))
    return [torch.randn(size, dtype=torch.float64).requires_grad_() for size in sizes]


def published(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """By torch's own convolution, over a past of zeros."""
    width = weight.shape[1]
    past = functional.pad(x.transpose(1, 2), (width - 1, 0))
    y = functional.conv1d(past, weight.unsqueeze(1), bias, groups=len(bias))
    return functional.silu(y).transpose(1, 2)


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 4), st.integers(1, 5))
def test_values_and_gradients(batch: int, length: int, channels: int, width: int) -> None:
    given_ = leaves(batch, length, channels, width)
    found, want = convolve_silu(*given_)[0], published(*given_)
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(want)
    mine, theirs = (torch.autograd.grad(y, given_, grad) for y in (found, want))
    torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


@given(st.sets(st.sampled_from(["u", "again", "gate"])), st.integers(1, 3))
def test_gradients_arrive_at_entries(arriving: set[str], length: int) -> None:
    """``u`` read by two, and a gate of other channels than it convolves."""
    x, weight, bias = leaves(2, length, 3, 2)
    x = torch.cat([x, torch.randn(2, length, 3, dtype=torch.float64)], -1).detach()
    x.requires_grad_()
    found = dict(zip(("u", "again", "gate"), convolve_silu(x, weight, bias), strict=True))
    y = published(x[..., :3], weight, bias)
    want = {"u": y, "again": y, "gate": x[..., 3:]}
    if not arriving:
        return
    grads = {name: torch.randn_like(want[name]) for name in sorted(arriving)}
    mine, theirs = (
        torch.autograd.grad(
            [of[name] for name in grads],
            [x, weight, bias],
            list(grads.values()),
            materialize_grads=True,
        )
        for of in (found, want)
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("sizes", [(0, 3, 2, 4), (2, 0, 2, 4), (2, 3, 0, 4)])
def test_nothing_to_convolve(sizes: tuple[int, int, int, int]) -> None:
    given_ = leaves(*sizes)
    out = convolve_silu(*given_)[0]
    assert out.shape == given_[0].shape
    grads = torch.autograd.grad(out.sum(), given_)
    assert all(not grad.any() for grad in grads)


def test_low_precision_is_summed_in_float32() -> None:
    x, weight, bias = (each.detach() for each in leaves(2, 9, 3, 4))
    low = x.bfloat16()
    found = convolve_silu(low, weight.float(), bias.float())[0]
    assert found.dtype is torch.bfloat16
    want = published(low.double(), weight.float().double(), bias.float().double())
    torch.testing.assert_close(found.double(), want, rtol=2**-8, atol=1e-6)
    grad = torch.randn(x.shape).bfloat16()
    grads = convolve_silu_backward([grad, None, None], low, weight.float(), bias.float())
    assert [each.dtype for each in grads] == [torch.bfloat16, torch.float32, torch.float32]


@pytest.mark.parametrize("width", [1, 2, 4])
def test_steps_are_the_convolution_token_by_token(width: int) -> None:
    x, weight, bias = (each.detach() for each in leaves(2, 6, 3, width))
    window = torch.zeros(2, width - 1, 3, dtype=torch.float64)
    for t in range(6):
        y, window = convolve_silu_step(x[:, t], window, weight, bias)
        torch.testing.assert_close(y, published(x, weight, bias)[:, t])
    assert torch.equal(window, x[:, 6 - (width - 1) :])


def test_they_are_torch_operators() -> None:
    x, weight, bias = (each.detach().float() for each in leaves(2, 5, 3, 4))
    for tests in ((x, weight, bias), (x.requires_grad_(), weight.requires_grad_(), bias)):
        torch.library.opcheck(convolve_silu, tests)
    token = tuple(each.detach() for each in (x[:, 0], x[:, 1:4], weight, bias))
    torch.library.opcheck(convolve_silu_step, token)


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_the_layers_window_is_the_same_by_either_way(
    monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """As on a GPU, where the operator runs."""
    torch.manual_seed(0)
    conv, x = CausalConvolution(5, 4), torch.randn(2, length, 5)
    want = conv.activated(x, None)
    monkeypatch.setattr("pdssm_compiler.nn.convolution.has_kernel", lambda *_: True)
    found = conv.activated(x, None)
    torch.testing.assert_close(found, want)
    with torch.no_grad():
        token = conv.activated(x[:, :1], want[1])
        monkeypatch.undo()
        torch.testing.assert_close(token, conv.activated(x[:, :1], want[1]))


def test_a_compiler_asks_for_triton_once() -> None:
    """What says whether a kernel launches looks for files, which Dynamo cannot trace."""

    def asked(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if hand_written._launches() else x - 1

    found = torch.compile(asked, fullgraph=True, backend="eager")(torch.zeros(2))
    assert torch.equal(found, asked(torch.zeros(2)))
