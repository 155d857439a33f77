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


def put_back(tables: torch.Tensor, shape: Shape, matrices: torch.Tensor) -> None:
    """The sums over ``P`` of matrices that kernels wrote, a table for each of ``[P, B]``, to
    ``[B, H, K, N, N]``; in one pass, as they are large.
    """
    for of_parts, to in zip(tables.unbind(1), matrices, strict=True):
        for laid, out in _pieces(of_parts, to.permute(shape.order), shape):
            if len(laid) == 1:
                out.copy_(laid[0])
            else:
                torch.sum(laid, 0, out=out)


def _pieces(
    table: torch.Tensor, matrices: torch.Tensor, shape: Shape
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Parts of tables ``[…, H, …]`` and what they hold of matrices ``[H, looped, K, lanes]``."""
    n, lanes = shape.size, shape.lanes
    if not shape.tiled:
        return [(table[..., :n, :, :n], matrices)]
    by_rows = table.movedim(-4, -2)[..., :n, :, :, :]
    whole, rest = divmod(n, lanes)
    pieces = []
    if whole:
        given = matrices[..., : whole * lanes].unflatten(-1, (whole, lanes))
        pieces.append((by_rows[..., :whole, :], given))
    if rest:
        pieces.append((by_rows[..., whole, :rest], matrices[..., whole * lanes :]))
    return pieces
