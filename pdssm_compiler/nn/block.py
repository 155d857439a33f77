"""The residual block of a language model: :class:`Block`."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pdssm_compiler.nn.arguments import positive
from pdssm_compiler.nn.attention import CausalAttention
from pdssm_compiler.nn.flash import FlashPDSSM
from pdssm_compiler.runtime.errors import ArgumentError


class Block(nn.Module):
    """``x + mixer(norm(x))``, then ``x + mlp(norm(x))``: pre-norm, with a gated SiLU MLP.

    Args:
        mixer: :class:`FlashPDSSM` or :class:`CausalAttention`, or a module with what a block
            needs of them: ``d_model``, ``out_proj`` and ``reset_parameters``.
        hidden: the MLP's hidden width.
        device: of the parameters.
        dtype: likewise.

    Raises:
        ArgumentError: a mixer that is none, or a width that is none.
    """

    def __init__(self, mixer: FlashPDSSM | CausalAttention, hidden: int, **factory: Any) -> None:
        super().__init__()
        needed = ("d_model", "out_proj", "reset_parameters")
        if not isinstance(mixer, nn.Module) or not all(hasattr(mixer, name) for name in needed):
            raise ArgumentError(
                f"mixer must be a FlashPDSSM or a CausalAttention, got "
                f"{type(mixer).__name__}; a PDSSM is a block by itself, and stands in none"
            )
        d_model, hidden = mixer.d_model, positive("hidden", hidden)
        self.mixer_norm = nn.RMSNorm(d_model, **factory)
        self.mixer = mixer
        self.mlp_norm = nn.RMSNorm(d_model, **factory)
        self.mlp_in = nn.Linear(d_model, 2 * hidden, bias=False, **factory)
        self.mlp_out = nn.Linear(hidden, d_model, bias=False, **factory)

    def reset_parameters(self, branch_scale: float = 1.0) -> None:
        """Start anew; what a branch adds to the residual stream is scaled down by
        ``branch_scale``.
        """
        parts = (self.mixer_norm, self.mixer, self.mlp_norm, self.mlp_in, self.mlp_out)
        for part in parts:
            part.reset_parameters()
        with torch.no_grad():
            for last in (self.mixer.out_proj, self.mlp_out):
                last.weight.mul_(branch_scale)

    def forward(self, x: torch.Tensor, **options: Any) -> Any:
        """The block; ``[B, T, d_model]``, options and results as the mixer's."""
        mixed = self.mixer(self.mixer_norm(x), **options)
        if isinstance(mixed, tuple):
            return self._after(x, mixed[0]), mixed[1]
        return self._after(x, mixed)

    def step(self, x: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        """One token, ``[B, d_model]``."""
        after: tuple[torch.Tensor, Any] = self(x, cache=cache, step=True)
        return after

    def _after(self, x: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        x = x + mixed
        value, gate = self.mlp_in(self.mlp_norm(x)).chunk(2, -1)
        out: torch.Tensor = x + self.mlp_out(value * functional.silu(gate))
        return out
