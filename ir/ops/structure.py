"""Ops that move numbers between places: scalar and vector, map and row.

``gather`` and ``scatter_add`` by one map are each other's adjoint, as are ``broadcast`` and
``sum``: this is what lets the backward program be derived by transposition.

A map stands for a one-hot matrix ``P`` with ``P[map[j], j] = 1``: ``scatter_add`` multiplies by
it, ``gather`` by its transpose, ``compose`` multiplies two, ``invert`` transposes one. Its entries
have gradients, ``Re(conj(g[i]) x[j])`` for ``y = P x``: the ``active`` rules give the ones', and
``factors`` the two vectors, which are enough for all of them.

``keep`` gives a vector as it is, or zeros, by an index below 2: the product with the entry 1 of
the index's one-hot form, were it not that a product with zero keeps infinities and NaNs.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pdssm_compiler.ir.errors import IRError
from pdssm_compiler.ir.ops.elementwise import conjugate
from pdssm_compiler.ir.ops.table import Op, apply, define
from pdssm_compiler.ir.types import Index, Map, Scalar, Table, Type, Vector, is_complex
from pdssm_compiler.ir.value import Value


def _expect(types: Sequence[Type], *kinds: type) -> None:
    for position, (type_, kind) in enumerate(zip(types, kinds, strict=True)):
        if not isinstance(type_, kind):
            raise IRError(f"argument {position} must be a {kind.__name__.lower()}, not {type_}")


def _broadcast_type(types: Sequence[Type], _: dict[str, Any]) -> Type:
    _expect(types, Scalar)
    return Vector(types[0].element)  # type: ignore[union-attr]


def _sum_type(types: Sequence[Type], _: dict[str, Any]) -> Type:
    _expect(types, Vector)
    return Scalar(types[0].element)  # type: ignore[union-attr]


define(
    Op(
        "broadcast",
        1,
        _broadcast_type,
        lambda n, a, x: np.repeat(np.asarray(x)[..., None], n, axis=-1),
        lambda g, v: (apply("sum", g),),
    )
)
define(
    Op(
        "sum",
        1,
        _sum_type,
        lambda n, a, x: x.sum(axis=-1),
        lambda g, v: (apply("broadcast", g),),
        elementwise=False,
    )
)


def _select_type(types: Sequence[Type], _: dict[str, Any]) -> Type:
    _expect(types, Table, Index)
    table, index = types
    assert isinstance(table, Table)
    assert isinstance(index, Index)
    if table.size != index.bound:
        raise IRError(f"an index below {index.bound} selects from a table of {table.size}")
    return Map(table.map_class)


def _select(_n: int, _a: dict[str, Any], table: np.ndarray, index: np.ndarray) -> np.ndarray:
    rows = np.broadcast_shapes(table.shape[:-2], index.shape)
    table = np.broadcast_to(table, rows + table.shape[-2:])
    index = np.broadcast_to(index, rows)[..., None, None]
    return np.take_along_axis(table, index, axis=-2)[..., 0, :]


def _moved_type(types: Sequence[Type], _: dict[str, Any]) -> Type:
    _expect(types, Vector, Map)
    return types[0]


def _gather(_n: int, _a: dict[str, Any], x: np.ndarray, p: np.ndarray) -> np.ndarray:
    x, p = np.broadcast_arrays(x, p)
    return np.take_along_axis(x, p, axis=-1)


def _scatter_add(n: int, _a: dict[str, Any], x: np.ndarray, p: np.ndarray) -> np.ndarray:
    x, p = np.broadcast_arrays(x, p)
    out = np.zeros((x.size // n if n else 0, n), dtype=x.dtype)
    row = np.arange(out.shape[0])[:, None]
    np.add.at(out, (row, p.reshape(out.shape)), x.reshape(out.shape))
    return out.reshape(x.shape)


def _compose_type(types: Sequence[Type], _: dict[str, Any]) -> Type:
    _expect(types, Map, Map)
    classes = {type_.map_class for type_ in types if isinstance(type_, Map)}
    if "general" in classes:
        return Map("general")
    return Map("permutation" if "permutation" in classes else "identity")


def _invert_type(types: Sequence[Type], _: dict[str, Any]) -> Type:
    _expect(types, Map)
    assert isinstance(types[0], Map)
    if types[0].map_class == "general":
        raise IRError("a general map has no inverse; promise a permutation")
    return types[0]


def _invert(n: int, _a: dict[str, Any], p: np.ndarray) -> np.ndarray:
    # The largest source wins, so that a broken promise still has one answer everywhere.
    hits = p[..., None, :] == np.arange(n)[:, None]
    return np.where(hits, np.arange(n), 0).max(axis=-1, initial=0)


def _products(cotangent: Value, x: Value) -> Value:
    """``Re(conj(cotangent) x)``, element by element.

    Of a product ``x = u v`` it is ``Re(conj(cotangent conj(v)) u)``: what stands in the inner
    brackets reaches ``u``, so an adjoint computes it anyway.
    """
    if x.op == "mul":
        cotangent, x = apply("mul", cotangent, conjugate(x.args[1])), x.args[0]
    product = apply("mul", conjugate(cotangent), x)
    return apply("real", product) if is_complex(product.type) else product


define(
    Op(
        "select",
        2,
        _select_type,
        _select,
        lambda g, v: (None, None),
        lambda g, v: (g, apply("sum", g)),
        elementwise=False,
    )
)
define(
    Op(
        "gather",
        2,
        _moved_type,
        _gather,
        lambda g, v: (apply("scatter_add", g, v.args[1]), None),
        lambda g, v: (None, _products(g, v)),
        # y = Pᵀ x.
        lambda g, v: (v.args[0], g),
        elementwise=False,
    )
)
define(
    Op(
        "scatter_add",
        2,
        _moved_type,
        _scatter_add,
        lambda g, v: (apply("gather", g, v.args[1]), None),
        lambda g, v: (None, _products(apply("gather", g, v.args[1]), v.args[0])),
        lambda g, v: (g, v.args[0]),
        elementwise=False,
    )
)
define(
    Op(
        "compose",
        2,
        _compose_type,
        lambda n, a, p, q: _gather(n, a, p, q),
        lambda g, v: (None, None),
        lambda g, v: (apply("scatter_add", g, v.args[1]), g),
        elementwise=False,
    )
)
define(
    Op(
        "invert",
        1,
        _invert_type,
        _invert,
        lambda g, v: (None,),
        lambda g, v: (apply("gather", g, v.args[0]),),
        elementwise=False,
    )
)


def _keep_type(types: Sequence[Type], _: dict[str, Any]) -> Type:
    _expect(types, Vector, Index)
    index = types[1]
    assert isinstance(index, Index)
    if index.bound != 2:
        raise IRError(f"needs an index below 2, yes or no, not below {index.bound}")
    return types[0]


define(
    Op(
        "keep",
        2,
        _keep_type,
        lambda n, a, x, k: np.where(np.asarray(k)[..., None] == 1, x, 0.0),
        lambda g, v: (apply("keep", g, v.args[1]), None),
        lambda g, v: (None, apply("sum", _products(g, v))),
    )
)
define(
    Op(
        "iota",
        0,
        lambda types, a: Map("identity"),
        lambda n, a: np.arange(n),
        lambda g, v: (),
    )
)
