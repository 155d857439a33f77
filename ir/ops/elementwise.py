"""Arithmetic, element by element, on scalars and vectors.

Binary ops take two scalars or two vectors of one precision; a complex and a real argument give a
complex result. ``scale`` is ``mul`` but for its first argument's zeros, which make zeros of
infinities and NaNs too. Transcendental functions are real: complex ones are spelled with them (see
:mod:`pdssm_compiler.ir.builder`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pdssm_compiler.ir.errors import IRError
from pdssm_compiler.ir.ops.table import Cotangents, Op, apply, define
from pdssm_compiler.ir.types import (
    Scalar,
    Type,
    is_complex,
    is_number,
    precision,
    real_of,
    with_complex,
)
from pdssm_compiler.ir.value import Value


def conjugate(value: Value) -> Value:
    """The conjugate; a real value is its own."""
    return apply("conj", value) if is_complex(value.type) else value


def _promote(types: Sequence[Type], _: dict[str, Any]) -> Type:
    left, right = types
    if not (is_number(left) and is_number(right)):
        raise IRError("needs numbers")
    if type(left) is not type(right):
        raise IRError("one argument is a scalar and the other a vector; broadcast the scalar")
    if precision(left) != precision(right):
        raise IRError("the arguments differ in precision")
    return with_complex(left, is_complex(left) or is_complex(right))


def _same(types: Sequence[Type], _: dict[str, Any]) -> Type:
    if not is_number(types[0]):
        raise IRError("needs a number")
    return types[0]


def _complex_to_same(types: Sequence[Type], _: dict[str, Any]) -> Type:
    if not is_complex(types[0]):
        raise IRError("needs a complex number")
    return types[0]


def _complex_to_real(types: Sequence[Type], attributes: dict[str, Any]) -> Type:
    return real_of(_complex_to_same(types, attributes))


def _real_to_same(types: Sequence[Type], _: dict[str, Any]) -> Type:
    if not is_number(types[0]) or is_complex(types[0]):
        raise IRError("needs a real number")
    return types[0]


def _reals_to_complex(types: Sequence[Type], attributes: dict[str, Any]) -> Type:
    if any(not is_number(type_) or is_complex(type_) for type_ in types):
        raise IRError("needs two real numbers")
    return with_complex(_promote(types, attributes), True)


def _binary(
    name: str,
    evaluate: Callable[[np.ndarray, np.ndarray], np.ndarray],
    adjoint: Callable[[Value, Value], Cotangents],
) -> None:
    define(Op(name, 2, _promote, lambda n, a, x, y: evaluate(x, y), adjoint))


_binary("add", lambda x, y: x + y, lambda g, v: (g, g))
_binary("sub", lambda x, y: x - y, lambda g, v: (g, apply("neg", g)))
_binary(
    "mul",
    lambda x, y: x * y,
    lambda g, v: (
        apply("mul", g, conjugate(v.args[1])),
        apply("mul", g, conjugate(v.args[0])),
    ),
)


def _scale(factor: np.ndarray, x: np.ndarray) -> np.ndarray:
    drops = np.asarray(factor) == 0
    return np.where(drops, 0.0, factor) * np.where(drops, 0.0, x)


_binary(
    "scale",
    _scale,
    lambda g, v: (
        apply("mul", g, conjugate(v.args[1])),
        apply("scale", conjugate(v.args[0]), g),
    ),
)
define(Op("neg", 1, _same, lambda n, a, x: -x, lambda g, v: (apply("neg", g),)))
define(Op("conj", 1, _complex_to_same, lambda n, a, x: x.conj(), lambda g, v: (conjugate(g),)))
define(Op("real", 1, _complex_to_real, lambda n, a, x: x.real, lambda g, v: (g,)))
define(
    Op(
        "imag",
        1,
        _complex_to_real,
        lambda n, a, x: x.imag,
        # The gradient of Im z is i times the real cotangent.
        lambda g, v: (apply("complex", _like(g, 0.0), g),),
    )
)
define(
    Op(
        "complex",
        2,
        _reals_to_complex,
        lambda n, a, re, im: re + 1j * im,
        lambda g, v: (apply("real", g), apply("imag", g)),
    )
)


def _constant_type(_: Sequence[Type], attributes: dict[str, Any]) -> Type:
    if attributes["element"] not in ("f32", "f64"):
        raise IRError(f"a constant is f32 or f64, not {attributes['element']!r}")
    if not isinstance(attributes["value"], float):
        raise IRError(f"a constant's value is a float, not {attributes['value']!r}")
    return Scalar(attributes["element"])


define(
    Op(
        "constant",
        0,
        _constant_type,
        lambda n, a: np.asarray(a["value"]),
        lambda g, v: (),
        attributes=("value", "element"),
    )
)


# Those defined by :func:`_real_function`, by name.
_REAL_FUNCTIONS: set[str] = set()


def _real_function(
    name: str,
    evaluate: Callable[[np.ndarray], np.ndarray],
    derivative: Callable[[Value], Value],
) -> None:
    """A real function; ``derivative`` maps the value ``f(x)`` to ``f'(x)``."""
    _REAL_FUNCTIONS.add(name)
    define(
        Op(
            name,
            1,
            _real_to_same,
            lambda n, a, x: evaluate(x),
            lambda g, v: (apply("mul", g, derivative(v)),),
        )
    )


def _like(value: Value, number: float) -> Value:
    """A constant of the value's type."""
    element = "f32" if precision(value.type) == 32 else "f64"
    constant = apply("constant", value=number, element=element)
    return constant if isinstance(value.type, Scalar) else apply("broadcast", constant)


def _square(value: Value) -> Value:
    return apply("mul", value, value)


def _stable_sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(x)))


_real_function("exp", np.exp, lambda v: v)
_real_function("log", np.log, lambda v: apply("reciprocal", v.args[0]))
_real_function("sin", np.sin, lambda v: apply("cos", v.args[0]))
_real_function("cos", np.cos, lambda v: apply("neg", apply("sin", v.args[0])))
_real_function("tanh", np.tanh, lambda v: apply("sub", _like(v, 1.0), _square(v)))
_real_function(
    "sigmoid", _stable_sigmoid, lambda v: apply("mul", v, apply("sub", _like(v, 1.0), v))
)
_real_function("softplus", lambda x: np.logaddexp(0.0, x), lambda v: apply("sigmoid", v.args[0]))
_real_function("sqrt", np.sqrt, lambda v: apply("mul", _like(v, 0.5), apply("reciprocal", v)))
_real_function("reciprocal", lambda x: 1.0 / x, lambda v: apply("neg", _square(v)))

# The real functions: ops of several instructions an element.
FUNCTIONS = frozenset(_REAL_FUNCTIONS)
