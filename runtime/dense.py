"""Gradients of every entry of hard choices: two torch operators.

With ``P_k`` the one-hot matrix of map ``k`` of a head, ``k_t`` the map of token ``t``, and the
factors ``l_t`` and ``r_t`` that the dense surrogate's backward program writes
(:mod:`pdssm_compiler.ir.passes.factors`), ``∂P_t[i, j] = Re(conj(l_t[i]) r_t[j])``, and

- ``map_products(Tensor left, Tensor right, Tensor selection, int size) -> Tensor`` gives
  ``Σ_{t: k_t = k} ∂P_t`` for every map, ``[H, K, N, N]``: matrix products over the tokens of each,
- ``map_scores(Tensor left, Tensor right, Tensor dictionary) -> Tensor`` gives
  ``Σ_j ∂P_t[p_k[j], j]`` for every token and map, ``[B, T, H, K]``: ``K`` gathers a token, by
  kernels of :func:`~pdssm_compiler.ir.programs.map_scores`.

Besides their results they need memory of a fixed size, and the order of the tokens. Nothing is
read on the host, and each sum is made in one order, so it is the same bit by bit every time.

Source: Flash PD-SSM (arXiv 2605.19150), straight through a softmax over the dictionary.
"""

from functools import lru_cache
from typing import Any

import torch

from pdssm_compiler.ir.programs import map_scores as scores_program
from pdssm_compiler.ir.types import Element
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.blocks import Blocks, add_up, cut, gather, scratch_for
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.operators import on_every_device
from pdssm_compiler.runtime.plan import caller_inputs, program_of, run
from pdssm_compiler.runtime.sums import widest

_library = torch.library.Library("pdssm_compiler", "FRAGMENT")
for _definition in (
    "map_products(Tensor left, Tensor right, Tensor selection, int size) -> Tensor",
    "map_scores(Tensor left, Tensor right, Tensor dictionary) -> Tensor",
):
    _library.define(_definition, tags=(torch.Tag.pt2_compliant_tag,))

map_products = torch.ops.pdssm_compiler.map_products.default
map_scores = torch.ops.pdssm_compiler.map_scores.default

# Numbers of each factor that are multiplied together: few enough for a CPU's caches, enough to
# keep a GPU busy, with scratch of 200 MiB at most.
_AT_ONCE_ON_CPU = 2**18
_AT_ONCE = 2**23
# Rows of a block: of fewer, adding up its product would take as long as making it; more than these
# make it no faster.
_SHORTEST_BLOCK, _LONGEST_BLOCK = 32, 1024
# Maps that a kernel holds against a token before it reads the next.
_MAPS_AT_ONCE = 8
# Tokens of a row of map_scores, the longest first: each row reads the maps anew, and so many rows
# keep a device busy. As was measured on an H200, docs/gpu-log.md.
_TOKENS_OF_ROW = (256, 64, 16)
_ROWS = 4096

_ELEMENTS: dict[torch.dtype, Element] = {
    torch.float32: "f32",
    torch.float64: "f64",
    torch.complex64: "c64",
    torch.complex128: "c128",
}


def _real(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real() if dtype.is_complex else dtype


def _map_products(
    left: torch.Tensor, right: torch.Tensor, selection: torch.Tensor, size: int
) -> torch.Tensor:
    """See the module's text.

    Args:
        left: real or complex ``[B, T, H, N]``.
        right: likewise.
        selection: integer ``[B, T, H]``; what is out of range is clamped.
        size: ``K``.
    """
    batch, length, heads, n = left.shape
    rows = batch * length * heads
    real = _real(left.dtype)
    # Memory takes longer than float64 on the matrix units of large GPUs.
    wide = widest(real, left.device)
    total = torch.zeros((heads * size, n, n), dtype=wide, device=left.device)
    if rows > 0:
        # Of all heads' maps, ``[B, T, H]``.
        map_of_row = selection.to(torch.int32).clamp(0, size - 1)
        if heads > 1:
            map_of_row = map_of_row + torch.arange(0, heads * size, size, device=left.device)
        # A quarter of a map's share, so that little is empty.
        share = rows // (4 * heads * size)
        block = max(_SHORTEST_BLOCK, min(share, _LONGEST_BLOCK))
        blocks = cut(map_of_row.flatten(), heads * size, block)
        sides = [_parts(factor).reshape(rows, n, -1).contiguous() for factor in (left, right)]
        with torch.autocast(left.device.type, enabled=False):
            _add_products(total, sides, blocks)
    return total.to(real).view(heads, size, n, n)


def _parts(factor: torch.Tensor) -> torch.Tensor:
    """Real and imaginary parts, on an axis of their own."""
    if factor.is_complex():
        return torch.view_as_real(factor.resolve_conj())
    return factor.resolve_neg()[..., None]


def _add_products(total: torch.Tensor, sides: list[torch.Tensor], blocks: Blocks) -> None:
    """Add each block's product to its map's, some blocks at a time."""
    _, n, parts = sides[0].shape
    length, on_cpu = blocks.length, total.device.type == "cpu"
    numbers = _AT_ONCE_ON_CPU if on_cpu else _AT_ONCE
    step = min(max(1, numbers // (n * max(n, length * parts))), len(blocks.first))
    # Scratch, the same for all: on a CPU new memory takes longer than what is done in it.
    scratch = scratch_for(blocks, step, sides[0])
    factors = [total.new_empty((step, parts, length, n)) for _ in sides]
    product = total.new_empty((step, n, n))
    for start in range(0, len(blocks.first), step):
        some = slice(start, min(start + step, len(blocks.first)))
        count = some.stop - start
        gather(blocks, some, sides, factors, scratch)
        left, right = (factor[:count].flatten(1, 2) for factor in factors)
        torch.bmm(left.mT, right, out=product[:count])
        add_up(total, product[:count], blocks, some)


def _fake_map_products(
    left: torch.Tensor, right: torch.Tensor, selection: torch.Tensor, size: int
) -> torch.Tensor:
    n = left.shape[3]
    return left.new_empty((left.shape[2], size, n, n), dtype=_real(left.dtype))


@lru_cache(maxsize=4096)
def _scores_text(state_size: int, maps: int, element: Element) -> str:
    return scores_program(state_size, maps, element).text


def _map_scores(left: torch.Tensor, right: torch.Tensor, dictionary: torch.Tensor) -> torch.Tensor:
    """See the module's text.

    Args:
        left: real or complex ``[B, T, H, N]``.
        right: likewise.
        dictionary: integer ``[H, K, N]``; what is out of range is clamped.
    """
    batch, length, heads, n = left.shape
    tokens, size = batch * length, dictionary.shape[1]
    found = left.new_empty((tokens, heads, size), dtype=_real(left.dtype))
    # What is wrong with a map was reported by the scan.
    maps = dictionary.to(torch.int32).clamp(0, n - 1)
    factors = (left.reshape(tokens, heads, n), right.reshape(tokens, heads, n))
    for begin, end, row in _rows_of(tokens, heads):
        if begin < end and heads > 0:
            rows = [each[begin:end].unflatten(0, (-1, row)) for each in (*factors, found)]
            _score(rows[0], rows[1], rows[2], maps)
    return found.view(batch, length, heads, size)


def _rows_of(tokens: int, heads: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """How tokens are cut into rows, as first token, last, and tokens of a row.

    No token needs another, so there are rows enough to keep the device busy, of few lengths:
    schedules depend on it. What is left over is rows of one token.
    """
    row = next((n for n in _TOKENS_OF_ROW if tokens * heads >= n * _ROWS), _TOKENS_OF_ROW[-1])
    whole = tokens // row * row
    return (0, whole, row), (whole, tokens, 1)


def scores_of(state_size: int, size: int, dtype: torch.dtype, sizes: Sizes) -> tuple[str, Sizes]:
    """The program that ``map_scores`` runs most tokens by, and its sizes.

    Args:
        state_size: ``N``.
        size: ``K``.
        dtype: of the factors.
        sizes: of the scan.
    """
    rows = _rows_of(sizes.batch * sizes.length, sizes.heads)
    begin, end, row = rows[0] if rows[0][1] else rows[1]
    text = _scores_text(state_size, min(size, _MAPS_AT_ONCE), _ELEMENTS[dtype])
    return text, Sizes((end - begin) // row, row, sizes.heads)


def _score(
    left: torch.Tensor, right: torch.Tensor, found: torch.Tensor, maps: torch.Tensor
) -> None:
    """Write the scores of rows of tokens, some maps at a time."""
    n, size = left.shape[-1], maps.shape[1]
    together = min(size, _MAPS_AT_ONCE)
    text = _scores_text(n, together, _ELEMENTS[left.dtype])
    names = [input_.name for input_ in caller_inputs(program_of(text))]
    given = {"left": left, "right": right}
    for first in range(0, size, together):
        # The last ones may be some that were there already: one kernel for all.
        first = min(first, size - together)
        for number in range(together):
            given[f"map_{number}"] = maps[:, first + number]
        out = found[..., first : first + together].unbind(-1)
        run(text, [given[name] for name in names], out=out)


def _fake_map_scores(
    left: torch.Tensor, right: torch.Tensor, dictionary: torch.Tensor
) -> torch.Tensor:
    return left.new_empty((*left.shape[:3], dictionary.shape[1]), dtype=_real(left.dtype))


def _refuse_second(ctx: Any, *grads: torch.Tensor) -> None:
    raise ArgumentError(
        "the gradient of hard choices by their dense surrogate has no gradient of its own; "
        "differentiate flash_pd_scan or mixture_pd_scan of pdssm_compiler.reference instead"
    )


for _name, _kernel, _fake in (
    ("map_products", _map_products, _fake_map_products),
    ("map_scores", _map_scores, _fake_map_scores),
):
    on_every_device(_library, _name, _kernel)
    torch.library.register_fake(f"pdssm_compiler::{_name}", _fake)
    torch.library.register_autograd(f"pdssm_compiler::{_name}", _refuse_second)

__all__ = ["map_products", "map_scores", "scores_of"]
