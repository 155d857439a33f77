"""Ops over matrices: a map that a mixture of matrices chooses, and what its gradient needs.

A matrix is ``N × N`` numbers a token. None is ever stored: what a program reads are coefficients a
token and matrices a head, what it writes are maps, coefficients, and sums over the tokens.

``mix`` adds up in the precision of its matrices, by definition: float32 is accumulated over
``k = 0 … K-1`` in that order with fused multiply-adds. In another order near-ties would choose
another map.

With ``ρ = softmax(M / τ)`` by column (or by row) and ``G`` the cotangent of the one-hot matrix
that ``argmax`` of ``M`` stands for, ``straight_through`` is what reaches ``M``:
``ρ (G - Σ ρ G) / τ``. ``inner`` and ``weigh`` are the two halves of the adjoint of ``mix``.

Source: arXiv 2509.22284 (PD-SSM).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pdssm_compiler.ir.errors import IRError
from pdssm_compiler.ir.ops.table import Cotangents, Op, apply, define
from pdssm_compiler.ir.types import (
    Coefficients,
    Map,
    Matrices,
    Matrix,
    Scalar,
    Type,
    Vector,
    element_of,
    precision,
)
from pdssm_compiler.ir.value import Value

ORIENTATIONS = ("column", "row")
# The axis of a matrix along which an orientation chooses.
CHOSEN_ALONG = {"column": -2, "row": -1}


def _expect(types: Sequence[Type], *kinds: type) -> None:
    """Arguments of these kinds, all of one precision."""
    for position, (type_, kind) in enumerate(zip(types, kinds, strict=True)):
        if not isinstance(type_, kind):
            raise IRError(f"argument {position} must be a {kind.__name__.lower()}, not {type_}")
    numbers = [type_ for type_ in types if not isinstance(type_, Map)]
    if len({precision(type_) for type_ in numbers}) > 1:
        raise IRError("the arguments differ in precision")


def _check_orientation(attributes: dict[str, Any]) -> None:
    if attributes["orientation"] not in ORIENTATIONS:
        raise IRError(f"the orientation is column or row, not {attributes['orientation']!r}")


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """``a b + c`` of float32 numbers, rounded once, as float32.

    Their product is exact in float64. The sum is rounded there to odd, which keeps what the
    rounding to float32 has to know of what was lost.
    """
    product = np.multiply(a, b, dtype=np.float64)
    wide = c.astype(np.float64)
    total = product + wide
    # What was lost (Knuth): 0 where the sum is exact, not a number beside infinities.
    with np.errstate(invalid="ignore"):
        back = total - product
        lost = (product - (total - back)) + (wide - back)
    even = (total.view(np.int64) & 1) == 0
    up = np.nextafter(total, np.where(lost > 0, np.inf, -np.inf))
    odd = np.where(even & (lost != 0) & np.isfinite(total) & np.isfinite(lost), up, total)
    with np.errstate(over="ignore"):
        return odd.astype(np.float32)


def _mix(_n: int, a: dict[str, Any], matrices: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    factors = np.moveaxis(np.asarray(coefficients), -1, 0)[..., None, None]
    tables = np.moveaxis(matrices, -3, 0)
    if a["element"] == "f64":
        return sum(factor * table for factor, table in zip(factors, tables, strict=True))
    shape = np.broadcast_shapes(factors.shape[1:], tables.shape[1:])
    total = np.zeros(shape, np.float32)
    for factor, table in zip(factors, tables, strict=True):
        total = fused(
            np.broadcast_to(factor.astype(np.float32), shape),
            np.broadcast_to(table.astype(np.float32), shape),
            total,
        )
    return total.astype(np.float64)


def _mix_type(types: Sequence[Type], attributes: dict[str, Any]) -> Type:
    _expect(types, Matrices, Coefficients)
    matrices, coefficients = types
    assert isinstance(matrices, Matrices)
    assert isinstance(coefficients, Coefficients)
    if matrices.size != coefficients.size:
        raise IRError(f"{coefficients.size} coefficients weigh {matrices.size} matrices")
    if attributes["element"] != matrices.element:
        raise IRError(f"adds up in {matrices.element}, not in {attributes['element']!r}")
    return Matrix(matrices.element)


define(
    Op(
        "mix",
        2,
        _mix_type,
        _mix,
        lambda g, v: (apply("weigh", g, v.args[1]), apply("inner", v.args[0], g)),
        elementwise=False,
        attributes=("element",),
    )
)


def _argmax_type(types: Sequence[Type], attributes: dict[str, Any]) -> Type:
    _expect(types, Matrix)
    _check_orientation(attributes)
    return Map()


def _argmax(_n: int, a: dict[str, Any], matrix: np.ndarray) -> np.ndarray:
    axis = CHOSEN_ALONG[a["orientation"]]
    found = matrix.argmax(axis)
    return np.where(np.isnan(matrix).any(axis), -1, found)


def _argmax_dense(
    factors: tuple[Value, Value], chosen: Value, temperature: Value, value: Value
) -> Cotangents:
    # A map stands for the matrix with ones at [p[j], j]: of a row's, that is the transposed.
    orientation = value.attribute("orientation")
    left, right = factors if orientation == "column" else reversed(factors)
    reached = apply("outer", left, right)
    (matrix,) = value.args
    return (
        apply("straight_through", matrix, chosen, reached, temperature, orientation=orientation),
    )


define(
    Op(
        "argmax",
        1,
        _argmax_type,
        _argmax,
        lambda g, v: (None,),
        dense=_argmax_dense,
        elementwise=False,
        attributes=("orientation",),
    )
)


def _no_second(cotangent: Value, value: Value) -> Cotangents:
    raise IRError(
        f"{value.op} is part of a gradient, and has none of its own: a hard choice is "
        f"differentiated once"
    )


def _outer_type(types: Sequence[Type], _: dict[str, Any]) -> Type:
    _expect(types, Vector, Vector)
    return Matrix(element_of(precision(types[0]), complex_=False))


define(
    Op(
        "outer",
        2,
        _outer_type,
        # Re(conj(l[i]) r[j])
        lambda n, a, x, y: (np.conj(x)[..., :, None] * y[..., None, :]).real,
        _no_second,
        elementwise=False,
    )
)


def _straight_through_type(types: Sequence[Type], attributes: dict[str, Any]) -> Type:
    _expect(types, Matrix, Map, Matrix, Scalar)
    _check_orientation(attributes)
    return types[0]


def _straight_through(
    _n: int,
    a: dict[str, Any],
    matrix: np.ndarray,
    _largest: np.ndarray,
    reached: np.ndarray,
    temperature: np.ndarray,
) -> np.ndarray:
    axis = CHOSEN_ALONG[a["orientation"]]
    scaled = matrix / np.asarray(temperature)[..., None, None]
    soft = np.exp(scaled - scaled.max(axis, keepdims=True))
    soft /= soft.sum(axis, keepdims=True)
    centred = reached - (soft * reached).sum(axis, keepdims=True)
    return soft * centred / np.asarray(temperature)[..., None, None]


define(
    Op(
        "straight_through",
        4,
        _straight_through_type,
        _straight_through,
        _no_second,
        elementwise=False,
        attributes=("orientation",),
    )
)


def _inner_type(types: Sequence[Type], _: dict[str, Any]) -> Type:
    _expect(types, Matrices, Matrix)
    assert isinstance(types[0], Matrices)
    return Coefficients(types[0].size, types[0].element)


define(
    Op(
        "inner",
        2,
        _inner_type,
        lambda n, a, matrices, matrix: (matrices * matrix[..., None, :, :]).sum((-2, -1)),
        _no_second,
        elementwise=False,
    )
)


def _weigh_type(types: Sequence[Type], _: dict[str, Any]) -> Type:
    _expect(types, Matrix, Coefficients)
    assert isinstance(types[1], Coefficients)
    return Matrices(types[1].size, types[1].element)


define(
    Op(
        "weigh",
        2,
        _weigh_type,
        lambda n, a, matrix, c: np.asarray(c)[..., None, None] * matrix[..., None, :, :],
        _no_second,
        elementwise=False,
    )
)

# The ops over matrices: those that templates over matrices have rules for, and others have not.
MATRIX_OPS = frozenset({"mix", "argmax", "outer", "straight_through", "inner", "weigh", "gumbel"})
