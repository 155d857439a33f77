"""The causal depthwise convolution: :class:`CausalConvolution`."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pdssm_compiler.nn.convolution_op import (
    convolve_silu,
    convolve_silu_step,
    has_kernel,
)
from pdssm_compiler.nn.past import Past
from pdssm_compiler.nn.precision import wide


class CausalConvolution(nn.Module):
    """``y_t[c] = bias[c] + Σ_j weight[c, j] x_{t - width + 1 + j}[c]``, each channel by itself.

    It is ``torch.nn.Conv1d(d, d, width, groups=d)`` over tokens that stand before the channels,
    with ``width - 1`` tokens of the past before them: a sum of a few shifted tensors, which
    ``torch.compile`` makes one kernel together with what comes after. Added up in float32 (or
    float64), whatever the tokens are stored in.

    Args:
        channels: ``d``.
        width: how many tokens each result reads.
    """

    NO_DECAY = frozenset({"bias"})

    def __init__(self, channels: int, width: int, **factory: Any) -> None:
        super().__init__()
        self.channels = channels
        self.width = width
        self.weight = nn.Parameter(torch.empty(channels, width, **factory))
        self.bias = nn.Parameter(torch.empty(channels, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in ``±1/√width``, as ``torch.nn.Conv1d`` of one channel: the inputs' variance is
        kept up to a constant.
        """
        bound = 1 / math.sqrt(self.width)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def empty_window(self, sequences: int) -> torch.Tensor:
        """The past of sequences that begin: zeros ``[B, width - 1, d]``."""
        return torch.zeros(
            (sequences, self.width - 1, self.channels),
            dtype=wide(self.weight.dtype),
            device=self.weight.device,
        )

    def forward(
        self, x: torch.Tensor, window: torch.Tensor, cu_seqlens: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Convolve, and give the window to go on with.

        Args:
            x: ``[B, T, d]``.
            window: the tokens before, ``[B, width - 1, d]``, of packed sequences
                ``[S, width - 1, d]``.
            cu_seqlens: offsets of packed sequences ``[S + 1]``, with ``B = 1``.

        Returns:
            ``(y, window)``: ``y`` ``[B, T, d]`` in float32, or float64 of float64, and the last
            ``width - 1`` inputs.
        """
        dtype = wide(x.dtype)
        past = Past(x.to(dtype), window.to(dtype), cu_seqlens)
        weight = self.weight.to(dtype)
        y = self.bias.to(dtype)
        for lag in range(self.width):
            y = y + past.lagged(lag) * weight[:, self.width - 1 - lag]
        return y, past.last()

    def activated(
        self,
        x: torch.Tensor,
        window: torch.Tensor | None,
        cu_seqlens: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``silu`` of what :meth:`forward` gives, in the dtype of ``x``, and the window.

        Args:
            x: as there.
            window: as there; None where sequences begin.
            cu_seqlens: as there.
        """
        if window is None and cu_seqlens is None and has_kernel(x, self.weight):
            return convolve_silu(x, self.weight, self.bias)[0], self._last_of(x)
        if window is None:
            sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
            window = self.empty_window(sequences)
        elif x.shape[1] == 1 and cu_seqlens is None and self._steps(x, window):
            u, after = convolve_silu_step(x.squeeze(1), window, self.weight, self.bias)
            return u.unsqueeze(1), after
        y, window = self(x, window, cu_seqlens)
        return functional.silu(y).to(x.dtype), window

    def joined(
        self, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """:meth:`activated` of sequences that begin, from tokens with their gate behind them.

        Args:
            x: ``[B, T, 2 d]``.

        Returns:
            ``(u, window, entries)``; the entries are where the gradients of one reader of ``u``
            and of the gate arrive, see :mod:`pdssm_compiler.nn.convolution_op`.
        """
        u, of_u, of_gate = convolve_silu(x, self.weight, self.bias)
        return u, self._last_of(x[..., : self.channels]), (of_u, of_gate)

    def _last_of(self, x: torch.Tensor) -> torch.Tensor:
        """The window after all tokens of sequences that begin."""
        reach, before = self.width - 1, self.empty_window(x.shape[0])
        last = x[:, max(0, x.shape[1] - reach) :].to(before.dtype)
        return torch.cat([before, last], 1).narrow(1, last.shape[1], reach)

    def has_kernel(self, x: torch.Tensor) -> bool:
        """Whether sequences that begin are convolved by one kernel, as :meth:`joined` does."""
        return has_kernel(x, self.weight)

    def _steps(self, x: torch.Tensor, window: torch.Tensor) -> bool:
        """Whether a token has a kernel, and nothing wants a gradient."""
        wants = torch.is_grad_enabled() and any(
            each.requires_grad for each in (x, window, self.weight, self.bias)
        )
        return has_kernel(x, self.weight) and not wants

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f"{self.channels}, width={self.width}"
