"""Matrices of heads as kernels over them read them, whatever compiled those."""

from typing import Any

import torch

from pdssm_compiler.schedules.emit.matrices import Shape


def laid_out(matrices: torch.Tensor, shape: Shape, empty: Any = torch.empty) -> torch.Tensor:
    """Matrices ``[H, K, N, N]`` as ``[H, looped, K, lanes]``, or tile by tile as
    ``[H, lanes / tile, looped, K, tile]``; zeros behind both axes' ends.
    """
    heads, entries, n, _ = matrices.shape
    size: tuple[int, ...] = (heads, shape.looped, entries, shape.padded)
    if shape.tiled:
        size = (heads, shape.columns, shape.looped, entries, shape.lanes)
    new = torch.zeros if n < max(shape.looped, shape.padded) else empty
    table: torch.Tensor = new(size, dtype=matrices.dtype, device=matrices.device)
    for laid, given in _pieces(table, matrices.permute(shape.order), shape):
        laid.copy_(given)
    return table


def put_back(table: torch.Tensor, shape: Shape, matrices: torch.Tensor) -> None:
    """Matrices that kernels wrote, one such table for each of ``B``, to ``[B, H, K, N, N]``."""
    for of_batch, to in zip(table, matrices, strict=True):
        for laid, out in _pieces(of_batch, to.permute(shape.order), shape):
            out.copy_(laid)


def _pieces(
    table: torch.Tensor, matrices: torch.Tensor, shape: Shape
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Parts of a table ``[H, ...]`` and what they hold of matrices ``[H, looped, K, lanes]``."""
    n, lanes = shape.size, shape.lanes
    if not shape.tiled:
        return [(table[:, :n, :, :n], matrices)]
    by_rows = table.permute(0, 2, 3, 1, 4)[:, :n]
    whole, rest = divmod(n, lanes)
    pieces = []
    if whole:
        given = matrices[..., : whole * lanes].unflatten(-1, (whole, lanes))
        pieces.append((by_rows[..., :whole, :], given))
    if rest:
        pieces.append((by_rows[..., whole, :rest], matrices[..., whole * lanes :]))
    return pieces
