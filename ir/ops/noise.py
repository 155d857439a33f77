"""Noise of a matrix: numbers that nobody keeps, for they are drawn again wherever they are read.

Philox (4x32, 10 rounds) makes them of a seed and of their place: the token's number, and the
entry's. So a forward and its backward, on whatever device and in whatever order, have the same
integers; what is computed of them, two logarithms, may differ by a rounding.

Source: Salmon et al., *Parallel random numbers: as easy as 1, 2, 3* (SC 2011).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pdssm_compiler.ir.errors import IRError
from pdssm_compiler.ir.ops.table import Op, define
from pdssm_compiler.ir.types import Index, Matrix, Scalar, Type, precision

ROUNDS = 10
# What multiplies the counters, and what is added to the keys.
FACTORS = (0xD2511F53, 0xCD9E8D57)
STEPS = (0x9E3779B9, 0xBB67AE85)
# Draws of a call of Philox.
TOGETHER = 4
_WORD = np.uint64(0xFFFFFFFF)


def philox(counter: Sequence[np.ndarray], key: np.ndarray) -> list[np.ndarray]:
    """Four words of 32 bits from four, and a key of 64 bits, all as uint64."""
    words = [np.asarray(word, np.uint64) & _WORD for word in counter]
    keys = [np.asarray(key, np.uint64) & _WORD, np.asarray(key, np.uint64) >> np.uint64(32)]
    a, b = (np.uint64(factor) for factor in FACTORS)
    for _ in range(ROUNDS):
        of_a, of_b = a * words[0], b * words[2]
        words = [
            (of_b >> np.uint64(32)) ^ words[1] ^ keys[0],
            of_b & _WORD,
            (of_a >> np.uint64(32)) ^ words[3] ^ keys[1],
            of_a & _WORD,
        ]
        keys = [(k + np.uint64(step)) & _WORD for k, step in zip(keys, STEPS, strict=True)]
    return words


def gumbel_noise(n: int, orientation: str, seed: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Standard Gumbel numbers ``[..., N, N]``.

    With ``(a, b) = (i, j)``, or ``(j, i)`` by rows, an entry has word ``a mod 4`` of the counter
    ``(⌊a / 4⌋ N + b, draw, draw / 2³², 0)``, ``x``; ``u = (⌊x / 2⁹⌋ + ½) / 2²³`` and the number is
    ``-log(-log u)``.
    """
    first, second = np.arange(n)[:, None], np.arange(n)
    if orientation == "row":
        first, second = second, first
    draw = np.asarray(draw, np.uint64)[..., None, None]
    place = np.broadcast_to((first // TOGETHER) * n + second, (*draw.shape[:-2], n, n))
    zero = np.zeros_like(place)
    key = np.asarray(seed, np.uint64)[..., None, None]
    words = philox((place, draw, draw >> np.uint64(32), zero), key)
    word = np.choose(np.broadcast_to(first % TOGETHER, words[0].shape), words)
    uniform = ((word >> np.uint64(9)).astype(np.float64) + 0.5) * 2.0**-23
    return -np.log(-np.log(uniform))


def _gumbel_type(types: Sequence[Type], attributes: dict[str, Any]) -> Type:
    for position, (type_, kind) in enumerate(
        zip(types, (Matrix, Scalar, Index, Index), strict=True)
    ):
        if not isinstance(type_, kind):
            raise IRError(f"argument {position} must be a {kind.__name__.lower()}, not {type_}")
    if precision(types[0]) != precision(types[1]):
        raise IRError("the arguments differ in precision")
    if attributes["orientation"] not in ("column", "row"):
        raise IRError(f"the orientation is column or row, not {attributes['orientation']!r}")
    return types[0]


def _gumbel(
    n: int,
    a: dict[str, Any],
    matrix: np.ndarray,
    scale: np.ndarray,
    seed: np.ndarray,
    draw: np.ndarray,
) -> np.ndarray:
    noise = gumbel_noise(n, a["orientation"], seed, draw)
    return matrix + np.asarray(scale)[..., None, None] * noise


define(
    Op(
        "gumbel",
        4,
        _gumbel_type,
        _gumbel,
        lambda g, v: (g, None, None, None),
        elementwise=False,
        attributes=("orientation",),
    )
)
