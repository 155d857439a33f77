"""Rows sorted by their map, and cut into blocks of one map each: what products of the rows of each
map are made by. Kernels do it where Triton launches, torch's operations elsewhere, to the bit.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from pdssm_compiler.runtime.devices import as_current
from pdssm_compiler.runtime.hand_written import triton_runs
from pdssm_compiler.runtime.sums import add_at

# Maps that a program of a kernel holds, numbers that it has, and rows of a block that it gathers.
_MOST_MAPS, _NUMBERS, _ROWS = 1024, 1024, 16


class Blocks(NamedTuple):
    """Blocks of rows.

    Attributes:
        order: the rows, sorted by their map, int64 ``[R]``.
        first: where in ``order`` a block begins, int64 ``[G]``.
        end: where the rows of its map end, int64 ``[G]``; up to ``first`` if it is empty.
        map: which map it is of, int64 ``[G]``; never less than that before.
        last: the number of blocks of maps 0 … k, int64 ``[maps]``, but those that are empty.
        length: rows of a block, at most.
    """

    order: torch.Tensor
    first: torch.Tensor
    end: torch.Tensor
    map: torch.Tensor
    last: torch.Tensor
    length: int


def cut(map_of_row: torch.Tensor, maps: int, length: int) -> Blocks:
    """Cut rows into blocks, on the device: how many have which map is not known on the host.

    A map of ``c`` rows has ``⌈c / length⌉`` blocks, so all of them at most
    ``⌊R / length⌋ + maps``; those that are not needed are empty.

    Args:
        map_of_row: ``[R]``, in ``[0, maps)``.
        maps: how many.
        length: rows of a block.
    """
    # In as few bytes as there are maps for, each of which is a pass. Stable, so that there is one
    # order.
    keys, order = map_of_row.to(_narrowest(maps)).sort(stable=True)
    device, count = keys.device, len(order) // length + maps
    every = torch.arange(maps + 1, dtype=keys.dtype, device=device)
    bounds = torch.searchsorted(keys, every)
    if _has_kernels(device, maps):
        from pdssm_compiler.runtime import product_kernels

        first, end, map_ = (bounds.new_empty(count) for _ in range(3))
        last, wide = bounds.new_empty(maps), 1 << (maps - 1).bit_length()
        together = max(1, _NUMBERS // wide)
        with as_current(device):
            product_kernels.cut[(-(-count // together),)](
                bounds, first, end, map_, last, count, maps, length, together, wide
            )
        return Blocks(order, first, end, map_, last, length)
    starts, ends = bounds[:-1], bounds[1:]
    of_map = (ends - starts + length - 1) // length
    last = of_map.cumsum(0)
    number = torch.arange(count, device=device)
    map_ = torch.searchsorted(last, number, right=True).clamp(max=maps - 1)
    first = starts[map_] + (number - (last - of_map)[map_]) * length
    return Blocks(order, first, ends[map_], map_, last, length)


def gather(
    blocks: Blocks,
    some: slice,
    sides: Sequence[torch.Tensor],
    factors: Sequence[torch.Tensor],
    scratch: torch.Tensor | None,
) -> None:
    """Write the rows of some blocks of two factors, with zeros behind those of a block.

    Args:
        blocks: all.
        some: which.
        sides: ``[R, n, parts]``, contiguous.
        factors: ``[G, parts, length, n]`` of each, for some blocks at least.
        scratch: of :func:`scratch_for`.
    """
    first = blocks.first[some]
    count, length = len(first), blocks.length
    if scratch is None:
        from pdssm_compiler.runtime import product_kernels

        _, n, parts = sides[0].shape
        lanes = min(256 // parts, 1 << (n - 1).bit_length())
        grid = (count, -(-length // _ROWS), -(-n // lanes))
        sizes = (some.start, length, n, parts, _ROWS, lanes)
        with as_current(first.device):
            product_kernels.gather[grid](
                *sides, blocks.order, blocks.first, blocks.end, *factors, *sizes
            )
        return
    places = torch.arange(length, device=first.device)
    sorted_ = first[:, None] + places  # [G, length]
    empty = (sorted_ >= blocks.end[some, None])[..., None, None]
    rows = blocks.order[sorted_.clamp(max=len(blocks.order) - 1)].flatten()
    for side, factor in zip(sides, factors, strict=True):
        torch.index_select(side, 0, rows, out=scratch[:count].flatten(0, 1))
        scratch[:count].masked_fill_(empty, 0)
        # Re(conj(l) r) is the inner product of the parts, so they are added up like rows.
        factor[:count].copy_(scratch[:count].movedim(-1, 1))


def scratch_for(blocks: Blocks, count: int, side: torch.Tensor) -> torch.Tensor | None:
    """What :func:`gather` needs for so many blocks; the same for all, as new memory takes a CPU
    longer than what is done in it.
    """
    if _has_kernels(side.device, len(blocks.last)):
        return None
    return side.new_empty((count, blocks.length, *side.shape[1:]))


def add_up(total: torch.Tensor, product: torch.Tensor, blocks: Blocks, some: slice) -> None:
    """Add what was made of some blocks to what is of their maps, in one order.

    Args:
        total: contiguous ``[maps, …]``.
        product: contiguous ``[G, …]``, of as many blocks as some are.
        blocks: all.
        some: which.
    """
    maps, numbers = len(total), total[0].numel()
    if not _has_kernels(total.device, maps):
        add_at(total, blocks.map[some], product)
        return
    from pdssm_compiler.runtime import product_kernels

    lanes = min(_NUMBERS, 1 << (numbers - 1).bit_length())
    with as_current(total.device):
        product_kernels.add_up[(maps, -(-numbers // lanes))](
            product, blocks.last, total, some.start, len(product), numbers, lanes
        )


def _narrowest(most: int) -> torch.dtype:
    """The narrowest signed integers that have a number."""
    return next(
        (each for each in (torch.int8, torch.int16) if most <= torch.iinfo(each).max), torch.int32
    )


def _has_kernels(device: torch.device, maps: int) -> bool:
    return triton_runs(device) and maps <= _MOST_MAPS
