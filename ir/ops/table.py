"""The op table: what each op means, in one place.

An op's entry names its type rule, its meaning (the interpreter's) and its adjoint, which is built
from ops of the same table. Emitters hold one rule for each name in :data:`OPS`; the test suite
asserts that none is missing and that the set is closed under the adjoint.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pdssm_compiler.ir.errors import IRError
from pdssm_compiler.ir.types import Type
from pdssm_compiler.ir.value import Attributes, Value, intern

# Cotangents of the arguments, in order; None where nothing flows (maps and indices).
Cotangents = tuple[Value | None, ...]


@dataclass(frozen=True)
class Op:
    """One op.

    Attributes:
        name: what the text form calls it.
        arity: how many values it takes.
        infer: type rule, from the argument types and the attributes; raises IRError.
        evaluate: NumPy meaning. Arrays carry leading row axes: scalars ``[..., ]``, vectors and
            maps ``[..., N]``, indices ``[...]``, tables ``[..., K, N]``; numbers are float64 or
            complex128. Called as ``evaluate(state_size, attributes, *arrays)``.
        adjoint: cotangents of the arguments from the cotangent of the result, by PyTorch's
            convention for complex numbers. Called as ``adjoint(cotangent, value)``.
        active: what reaches the maps, tables and indices among the arguments: the gradient of the
            entries of their one-hot forms that were used. A map's is a real vector, element ``j``
            that of the one in column ``j``; an index's is a real scalar; a table's is that of the
            map taken from it. None if there are none among the arguments. Called as ``adjoint``.
        factors: of an op that multiplies a vector by a map's one-hot matrix ``P``, or by its
            transpose, vectors ``l`` and ``r`` such that entry ``[i, j]`` of ``P`` has the gradient
            ``Re(conj(l[i]) r[j])``, whether it is one or zero. Called as ``adjoint``.
        dense: of an op that chooses a map, the cotangents of its arguments by the dense surrogate.
            Called as ``dense(factors, chosen, temperature, value)``: the two vectors whose
            product the cotangent of the map's matrix is (as of ``factors``), the map that was
            chosen, the temperature, and the value.
        elementwise: whether element ``j`` of the result needs only element ``j`` of the arguments.
        attributes: the names of its attributes, in the order the text form prints them.
    """

    name: str
    arity: int
    infer: Callable[[Sequence[Type], dict[str, Any]], Type]
    evaluate: Callable[..., np.ndarray]
    adjoint: Callable[[Value, Value], Cotangents]
    active: Callable[[Value, Value], Cotangents] | None = None
    factors: Callable[[Value, Value], tuple[Value, Value]] | None = None
    dense: Callable[[tuple[Value, Value], Value, Value, Value], Cotangents] | None = None
    elementwise: bool = True
    attributes: tuple[str, ...] = ()


OPS: dict[str, Op] = {}


def define(op: Op) -> None:
    """Put an op in the table."""
    assert op.name not in OPS, op.name
    OPS[op.name] = op


def apply(name: str, *args: Value, **attributes: Any) -> Value:
    """The value of an op on arguments, type-checked and interned.

    Raises:
        IRError: unknown op, wrong number of arguments, or the type rule forbids them.
    """
    op = OPS.get(name)
    if op is None:
        raise IRError(f"unknown op {name!r}; known: {', '.join(sorted(OPS))}")
    if len(args) != op.arity:
        raise IRError(f"{name} takes {op.arity} arguments, got {len(args)}")
    if set(attributes) != set(op.attributes):
        raise IRError(f"{name} takes attributes {op.attributes}, got {tuple(attributes)}")
    ordered: Attributes = tuple((key, attributes[key]) for key in op.attributes)
    try:
        type_ = op.infer([arg.type for arg in args], attributes)
    except IRError as error:
        types = ", ".join(str(arg.type) for arg in args)
        raise IRError(f"{name}({types}): {error}") from None
    return intern(name, args, ordered, type_)
