"""Triton kernels of products by map: rows cut into blocks of one map, gathered, and added up.

Importing this file imports Triton; :mod:`pdssm_compiler.runtime.blocks` does where it launches.
Each does in one launch what takes ten small operations of torch, of which a launch is most.
"""

# Triton's language has no types for a checker.
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["count", "maps", "length"])
def cut(
    bounds,
    first,
    end,
    map_,
    last,
    count,
    maps,
    length,
    BLOCKS: tl.constexpr,
    MAPS: tl.constexpr,
):
    """Blocks of sorted rows, of which those of map ``k`` are from ``bounds[k]`` to the next."""
    g = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    k = tl.arange(0, MAPS)
    there = k < maps
    starts = tl.load(bounds + k, there, 0)
    of_map = (tl.load(bounds + k + 1, there, 0) - starts + (length - 1)) // length
    ends = tl.cumsum(of_map, 0)
    passed = (ends[None, :] <= g[:, None]) & there[None, :]
    found = tl.minimum(tl.sum(passed.to(tl.int32), 1), maps - 1)
    before = tl.sum(tl.where(k[None, :] < found[:, None], of_map[None, :], 0), 1)
    inside = g < count
    at = tl.load(bounds + found, inside, 0) + (g - before) * length
    tl.store(first + g, at, inside)
    tl.store(end + g, tl.load(bounds + found + 1, inside, 0), inside)
    tl.store(map_ + g, found, inside)
    if tl.program_id(0) == 0:
        tl.store(last + k, ends, there)


@triton.jit(do_not_specialize=["block", "length"])
def gather(
    left,
    right,
    order,
    first,
    end,
    of_left,
    of_right,
    block,
    length,
    n,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Blocks of two factors ``[R, n, PARTS]`` as ``[G, PARTS, length, n]``; zeros where a block
    has no rows.
    """
    # The first of these blocks is number ``block``.
    g = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    at = tl.load(first + block + g) + place
    there = (place < length) & (at < tl.load(end + block + g))
    row = tl.load(order + at, there, 0)
    _spread(left, of_left, row, there, place, g, length, n, PARTS, ROWS, LANES)
    _spread(right, of_right, row, there, place, g, length, n, PARTS, ROWS, LANES)


@triton.jit
def _spread(
    side,
    factor,
    row,
    there,
    place,
    g,
    length,
    n,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Rows of one factor, of which the third axis of programs has ``LANES`` elements each. A
    thread reads both parts of an element, and what it writes of each lies together.
    """
    c = tl.program_id(2) * LANES * PARTS + tl.arange(0, LANES * PARTS)
    known = there[:, None] & (c < n * PARTS)[None, :]
    found = tl.load(side + row[:, None] * (n * PARTS) + c[None, :], known, 0.0)
    found = found.to(factor.dtype.element_ty)
    j = tl.program_id(2) * LANES + tl.arange(0, LANES)
    inside = (place < length)[:, None] & (j < n)[None, :]
    to = factor + (g * PARTS * length + place)[:, None] * n + j[None, :]
    if PARTS == 2:
        re, im = tl.split(tl.reshape(found, [ROWS, LANES, 2]))
        tl.store(to, re, inside)
        tl.store(to + length * n, im, inside)
    else:
        tl.store(to, found, inside)


@triton.jit(do_not_specialize=["block", "count"])
def add_up(
    product,
    last,
    total,
    block,
    count,
    numbers,
    LANES: tl.constexpr,
):
    """Add products ``[G, numbers]`` to those of their maps, in their order."""
    k = tl.program_id(0)
    lane = tl.program_id(1) * LANES + tl.arange(0, LANES)
    inside = lane < numbers
    before = tl.load(last + k - 1, k > 0, 0)
    begin = tl.maximum(before, block)
    end = tl.minimum(tl.load(last + k), block + count)
    if begin < end:
        into = total + k.to(tl.int64) * numbers + lane
        found = tl.load(into, inside, 0.0)
        for g in range(begin, end):
            found += tl.load(product + (g - block) * numbers + lane, inside, 0.0)
        tl.store(into, found, inside)
