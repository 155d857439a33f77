"""Where the diagonal comes from: one module for each of the two parametrisations.

Both give ``D`` as real pairs ``[..., 2]`` in float32, or in float64 for float64 inputs, whatever
autocast says; see :func:`pdssm_compiler.nn.precision.wide`.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pdssm_compiler.arguments import without_autocast
from pdssm_compiler.nn.initialise import inverse_softplus, log_uniform_, whole
from pdssm_compiler.nn.mlp import Mlp
from pdssm_compiler.nn.precision import wide


def polar_pairs(magnitude: torch.Tensor, phase: torch.Tensor) -> torch.Tensor:
    """``magnitude · exp(i phase)`` as pairs ``[..., 2]``.

    Not ``torch.polar``: ``torch.compile`` generates code for real numbers alone.
    """
    return torch.stack((magnitude * torch.cos(phase), magnitude * torch.sin(phase)), -1)


class DecayDiagonal(nn.Module):
    """Flash PD-SSM's: ``D = exp(-softplus(δ + bias) · exp(a_log) + i φ)``.

    ``δ`` and ``φ`` are projections of the token, which the mixer makes together with its others.

    Args:
        heads: ``H``.
        state_size: ``N``.

    Source: arXiv 2605.19150; the parametrisation of the magnitude is Mamba's (arXiv 2312.00752).
    """

    NO_DECAY = frozenset({"a_log", "delta_bias"})
    # The range of softplus(bias) and of exp(a_log).
    STEPS = (1e-3, 1e-1)
    RATES = (1.0, 16.0)

    def __init__(self, heads: int, state_size: int, **factory: Any) -> None:
        super().__init__()
        self.heads = heads
        self.state_size = state_size
        self.a_log = nn.Parameter(torch.empty(heads, state_size, **factory))
        self.delta_bias = nn.Parameter(torch.empty(heads, state_size, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Steps log-uniform in [0.001, 0.1] and rates uniform in [1, 16], as in Mamba: memories of
        one token to a thousand, see :mod:`pdssm_compiler.nn.initialise`.
        """
        with torch.no_grad():
            step = log_uniform_(
                torch.empty_like(self.delta_bias, dtype=torch.float32), *self.STEPS
            )
            self.delta_bias.copy_(inverse_softplus(step))
            self.a_log.uniform_(*self.RATES).log_()

    def forward(self, delta: torch.Tensor | None = None, phase: torch.Tensor | None = None) -> Any:
        """The diagonal, or what heads have of it, for a kernel that computes the rest.

        Args:
            delta: ``[B, T, H, N]``, real.
            phase: likewise, in radians.

        Returns:
            float32 or float64 ``[B, T, H, N, 2]``; without arguments ``(bias, exp(a_log))``, each
            ``[H, N]``.
        """
        dtype = wide((self.a_log if delta is None else delta).dtype)
        # A copy: where the parameters are gathered for this call, they are gone after it.
        bias = self.delta_bias.to(dtype, copy=delta is None)
        rate = torch.exp(self.a_log.to(dtype))
        if delta is None or phase is None:
            return bias, rate
        magnitude = torch.exp(-functional.softplus(delta.to(dtype) + bias) * rate)
        return polar_pairs(magnitude, phase.to(dtype))

    def mean_loss(self) -> torch.Tensor:
        """The mean of ``1 - |D|²`` where ``δ = 0``; of use when the drive is initialised."""
        bias, a_log = (whole(each.detach()).float() for each in (self.delta_bias, self.a_log))
        return -torch.expm1(-2 * functional.softplus(bias) * torch.exp(a_log)).mean()

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f"heads={self.heads}, state_size={self.state_size}"


class SigmoidDiagonal(nn.Module):
    """PD-SSM's: ``|D| = σ(MLP_mag(u))``, ``arg D = 2π σ(MLP_phase(u))``.

    The MLPs are Linear, GELU, Linear. They are computed in float32 under autocast too: a small
    part of the layer's work, and all of its memory hangs on it.

    Args:
        d_model: the tokens' width.
        state_size: ``N``.
        hidden: the MLPs' hidden width.

    Source: arXiv 2509.22284.
    """

    # The range of 1 - |D| and of arg D / 2π.
    LOSSES = (1e-3, 1e-1)
    TURNS = (1e-3, 1e-1)

    def __init__(self, d_model: int, state_size: int, hidden: int, **factory: Any) -> None:
        super().__init__()
        self.magnitude = Mlp(d_model, hidden, state_size, **factory)
        self.phase = Mlp(d_model, hidden, state_size, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The last biases: ``1 - |D|`` log-uniform in [0.001, 0.1], a memory of ten tokens to a
        thousand, and phases log-uniform in [0.001, 0.1] turns. Torch's own bias, about 0, would
        start at ``|D| = 1/2`` and ``arg D = π``: a state that forgets within a few tokens and
        changes its sign with each. The rest as ``torch.nn.Linear`` does.
        """
        for mlp, (low, high), sign in (
            (self.magnitude, self.LOSSES, -1),
            (self.phase, self.TURNS, 1),
        ):
            mlp.reset_parameters()
            bias = mlp.last.bias
            with torch.no_grad():
                part = log_uniform_(torch.empty_like(bias, dtype=torch.float32), low, high)
                bias.copy_(sign * torch.logit(part))

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        """The diagonal, float32 or float64 ``[B, T, N, 2]``, of tokens ``[B, T, d_model]``."""
        with without_autocast(u.device.type):
            weight = self.magnitude.first.weight
            # Of what was put in a linear layer's place, as a quantised one, it may be anything.
            u = u.to(weight.dtype) if isinstance(weight, torch.Tensor) else u.float()
            magnitude, phase = (mlp(u).to(wide(u.dtype)) for mlp in (self.magnitude, self.phase))
            return polar_pairs(torch.sigmoid(magnitude), 2 * math.pi * torch.sigmoid(phase))

    def mean_loss(self) -> torch.Tensor:
        """The mean of ``1 - |D|²`` by the biases alone; of use when the drive is initialised."""
        bias = whole(self.magnitude.last.bias.detach()).float()
        return 1 - torch.sigmoid(bias).square().mean()
