"""The convolution of sequences that begin, with its SiLU: torch operators.

``pdssm_compiler::convolve_silu(Tensor x, Tensor weight, Tensor bias) -> (Tensor, Tensor, Tensor)``
takes ``[B, T, d + e]``, ``[d, width]`` and ``[d]``. Its first result is ``u = silu(y)``
``[B, T, d]`` in the dtype of ``x``, with ``y`` what
:class:`~pdssm_compiler.nn.convolution.CausalConvolution` makes of the first ``d`` channels after a
past of zeros; sums and the sums of gradients are in float32 (float64 of float64). The channels
behind them, a gate, are not computed with.

The other two results are *entries*: they stand for ``u`` once more, and for the channels behind,
where the gradients of one reader of each arrive, while their values are never read (they are one
number in memory). So the backward has in hand what autograd would add up and put together in
kernels of its own, and ``x`` has one gradient, written once. It reads ``x`` again and keeps
nothing else.

``convolve_silu_step(Tensor x, Tensor window, Tensor weight, Tensor bias) -> (Tensor, Tensor)`` is
the convolution of one token ``[B, d]`` after a window ``[B, width - 1, d]``, and the next window;
it has no gradient.

On GPUs each is one kernel of Triton's (:mod:`pdssm_compiler.nn.convolution_kernels`). A
compiler that fuses torch's own operations writes sums in float32 and reads them again for each
of the gradients of weights and bias.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from pdssm_compiler.nn.precision import wide
from pdssm_compiler.runtime.binding import is_distributed
from pdssm_compiler.runtime.hand_written import triton_runs
from pdssm_compiler.runtime.operators import refuse_vmap

# Tokens of a program, channels of one, and its warps: four channels a thread. Measured on an H200.
_FORWARD = (64, 128, 1)
_BACKWARD = (128, 512, 4)
_MOST_WIDTH = 4
Grads = Sequence[torch.Tensor | None]
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

_library = torch.library.Library("pdssm_compiler", "FRAGMENT")
for _definition in (
    "convolve_silu(Tensor x, Tensor weight, Tensor bias) -> (Tensor, Tensor, Tensor)",
    "convolve_silu_backward(Tensor?[] grads, Tensor x, Tensor weight, Tensor bias) "
    "-> (Tensor, Tensor, Tensor)",
    "convolve_silu_step(Tensor x, Tensor window, Tensor weight, Tensor bias) -> (Tensor, Tensor)",
):
    _library.define(_definition, tags=(torch.Tag.pt2_compliant_tag,))

convolve_silu = torch.ops.pdssm_compiler.convolve_silu.default
convolve_silu_backward = torch.ops.pdssm_compiler.convolve_silu_backward.default
convolve_silu_step = torch.ops.pdssm_compiler.convolve_silu_step.default


def has_kernel(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the operator has a kernel of its own for them."""
    return (
        triton_runs(x.device)
        and x.dtype in _DTYPES
        and weight.dtype in _DTYPES
        and weight.shape[1] <= _MOST_WIDTH
        # Gathered only where the module itself is called.
        and not is_distributed(weight)
    )


def _sums(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The convolution, in the wide dtype."""
    width, dtype = weight.shape[1], wide(x.dtype)
    past = functional.pad(x.to(dtype), (0, 0, width - 1, 0))
    y = bias.to(dtype)
    for lag in range(width):
        y = y + past.narrow(1, width - 1 - lag, x.shape[1]) * weight.to(dtype)[:, width - 1 - lag]
    return y


def _entries(u: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For ``u`` and for the channels behind: one number each."""
    rest = (*x.shape[:2], x.shape[2] - u.shape[2])
    return x.new_ones(()).expand(u.shape), x.new_ones(()).expand(rest)


def _in_torch(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    u = functional.silu(_sums(x[..., : len(weight)], weight, bias)).to(x.dtype)
    return u, *_entries(u, x)


def _in_torch_backward(
    grads: Grads, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    (channels, width), length, dtype = weight.shape, x.shape[1], wide(x.dtype)
    whole = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    own, behind = x[..., :channels], grads[2]
    y = _sums(own, weight, bias)
    s = torch.sigmoid(y)
    arrived = torch.zeros_like(y)
    for grad in grads[:2]:
        if grad is not None:
            arrived += grad
    of_sums = arrived * s * (1 + y * (1 - s))
    later = functional.pad(of_sums, (0, 0, 0, width - 1))
    past = functional.pad(own.to(dtype), (0, 0, width - 1, 0))
    of_x = torch.zeros_like(of_sums)
    of_weight = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    for lag in range(width):
        at = width - 1 - lag
        of_x += later.narrow(1, lag, length) * weight.to(dtype)[:, at]
        of_weight[:, at] = (of_sums * past.narrow(1, at, length)).sum((0, 1))
    whole[..., :channels] = of_x
    if behind is not None:
        whole[..., channels:] = behind
    return whole, of_weight.to(weight.dtype), of_sums.sum((0, 1)).to(bias.dtype)


def _dense_channels(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


def _by_kernel(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if not has_kernel(x, weight):
        return _in_torch(x, weight, bias)
    batch, length, _ = x.shape
    channels, width = weight.shape
    tokens, block, warps = _FORWARD
    runs = -(-length // tokens)
    out = torch.empty((batch, length, channels), dtype=x.dtype, device=x.device)
    if out.numel() > 0:
        from pdssm_compiler.nn.convolution_kernels import convolve

        x = _dense_channels(x)
        with torch.cuda.device(x.device):
            convolve[(runs * batch, -(-channels // block))](
                x,
                weight.contiguous(),
                bias.contiguous(),
                out,
                length,
                runs,
                channels,
                *x.stride()[:2],
                width,
                tokens,
                block,
                num_warps=warps,
                enable_fp_fusion=True,
            )
    return out, *_entries(out, x)


def _by_kernel_backward(
    grads: Grads, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    arrived = [grad.contiguous() for grad in grads[:2] if grad is not None]
    channels, width = weight.shape
    has_gate = x.shape[2] == 2 * channels and grads[2] is not None
    whole = has_gate or x.shape[2] == channels
    if not (arrived and whole and x.numel() > 0 and has_kernel(x, weight)):
        return _in_torch_backward(grads, x, weight, bias)
    from pdssm_compiler.nn.convolution_kernels import convolve_backward

    x = _dense_channels(x)
    batch, length, _ = x.shape
    tokens, block, warps = _BACKWARD
    runs = -(-length // tokens)
    of_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    sums = torch.empty((batch, runs, 5, channels), dtype=torch.float32, device=x.device)
    gate = grads[2].contiguous() if has_gate and grads[2] is not None else arrived[0]
    with torch.cuda.device(x.device):
        convolve_backward[(runs * batch, -(-channels // block))](
            arrived[0],
            arrived[-1],
            gate,
            x,
            weight.contiguous(),
            bias.contiguous(),
            of_x,
            sums,
            length,
            runs,
            channels,
            *x.stride()[:2],
            *of_x.stride()[:2],
            len(arrived) > 1,
            has_gate,
            width,
            tokens,
            block,
            num_warps=warps,
            enable_fp_fusion=True,
        )
    total = sums.sum((0, 1))
    # By lag, and a channel's last weight is the token's own.
    of_weight = total[:width].flip(0).T.contiguous()
    return of_x, of_weight.to(weight.dtype), total[4].to(bias.dtype)


def _step_in_torch(
    x: torch.Tensor, window: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = wide(x.dtype)
    taps = torch.cat([window.to(dtype), x.to(dtype).unsqueeze(1)], 1)  # [B, width, d]
    width = weight.shape[1]
    y = bias.to(dtype)
    for lag in range(width):
        y = y + taps[:, width - 1 - lag] * weight.to(dtype)[:, width - 1 - lag]
    return functional.silu(y).to(x.dtype), taps[:, 1:].to(window.dtype).contiguous()


def _step_by_kernel(
    x: torch.Tensor, window: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    if not has_kernel(x, weight) or x.numel() == 0:
        return _step_in_torch(x, window, weight, bias)
    from pdssm_compiler.nn.convolution_kernels import convolve_step

    batch, channels = x.shape
    _, block, warps = _FORWARD
    x = x if x.stride(1) == 1 else x.contiguous()
    window = window.contiguous()
    out = torch.empty((batch, channels), dtype=x.dtype, device=x.device)
    after = torch.empty_like(window)
    with torch.cuda.device(x.device):
        convolve_step[(batch, -(-channels // block))](
            x,
            window,
            weight.contiguous(),
            bias.contiguous(),
            out,
            after,
            channels,
            x.stride(0),
            weight.shape[1],
            block,
            num_warps=warps,
            enable_fp_fusion=True,
        )
    return out, after


for _name, _of_torch, _of_gpu in (
    ("convolve_silu", _in_torch, _by_kernel),
    ("convolve_silu_backward", _in_torch_backward, _by_kernel_backward),
    ("convolve_silu_step", _step_in_torch, _step_by_kernel),
):
    refuse_vmap(_library, _name)
    for _type in ("CPU", "MPS", "XPU"):
        _library.impl(_name, _of_torch, _type)
    _library.impl(_name, _of_gpu, "CUDA")


def _fake(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    u = x.new_empty((*x.shape[:2], weight.shape[0]))
    return u, *_entries(u, x)


def _fake_backward(
    grads: Grads, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _fake_step(
    x: torch.Tensor, window: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape), window.new_empty(window.shape)


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    # An absent gradient costs nothing; a tensor of zeros would be read.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    if all(grad is None for grad in grads):
        return None, None, None
    found = convolve_silu_backward(list(grads), *ctx.saved_tensors)
    return tuple(
        each if need else None for each, need in zip(found, ctx.needs_input_grad, strict=True)
    )


torch.library.register_fake("pdssm_compiler::convolve_silu", _fake)
torch.library.register_fake("pdssm_compiler::convolve_silu_backward", _fake_backward)
torch.library.register_fake("pdssm_compiler::convolve_silu_step", _fake_step)
torch.library.register_autograd(
    "pdssm_compiler::convolve_silu", _gradients, setup_context=_setup_context
)

__all__ = ["convolve_silu", "convolve_silu_backward", "convolve_silu_step", "has_kernel"]
