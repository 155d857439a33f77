"""Matrices of heads as kernels over them read them, whatever compiled those."""

from typing import Any

import torch

from pdssm_compiler.schedules.emit.matrices import Shape


def laid_out(matrices: torch.Tensor, shape: Shape, empty: Any = torch.empty) -> torch.Tensor:
    """Matrices ``[H, K, N, N]`` as ``[H, looped, K, lanes]``, zeros behind both axes' ends."""
    heads, entries, n, _ = matrices.shape
    size = (heads, shape.looped, entries, shape.padded)
    new = torch.zeros if n < max(shape.looped, shape.padded) else empty
    table: torch.Tensor = new(size, dtype=matrices.dtype, device=matrices.device)
    table[:, :n, :, :n] = matrices.permute(shape.order)
    return table


def put_back(table: torch.Tensor, shape: Shape, matrices: torch.Tensor) -> None:
    """Matrices that kernels wrote, ``[B, H, looped, K, lanes]``, to ``[B, H, K, N, N]``."""
    n = shape.size
    as_laid_out = matrices.permute(0, *(axis + 1 for axis in shape.order))
    as_laid_out.copy_(table[:, :, :n, :, :n])
