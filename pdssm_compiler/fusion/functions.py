"""What can be traced: a rule for each function of torch that has a meaning in the IR.

The parameters of a rule are those of torch's function that it takes.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any

import torch

from pdssm_compiler.fusion.symbols import (
    FUNCTIONS,
    Rule,
    Symbol,
    TraceError,
    is_column,
    shape_of,
    value_of,
)
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.errors import shown
from pdssm_compiler.ir.types import Scalar, is_complex, precision
from pdssm_compiler.ir.value import Value

Binary = Callable[[Value, Value], Value]


def traced(*names: str) -> Callable[[Rule], Rule]:
    """Put a rule into the table, by each of torch's names for it."""

    def define(rule: Rule) -> Rule:
        for name in names:
            assert name not in FUNCTIONS, name
            FUNCTIONS[name] = rule
        return rule

    return define


def _tensor(name: str, argument: Any) -> Symbol:
    if not isinstance(argument, Symbol):
        raise TraceError(f"{name} takes a tensor of the expression, got {shown(argument)}")
    return argument


def number(name: str, argument: Any, bits: int) -> Value:
    """A number from outside, as a constant.

    Raises:
        TraceError: it is no number.
    """
    if not isinstance(argument, numbers.Complex) or isinstance(argument, bool):
        raise TraceError(
            f"{name} is made of tensors of the expression and numbers, not of {shown(argument)}"
        )
    if isinstance(argument, numbers.Real):
        return b.constant(_held(name, argument, bits), bits)
    z = complex(argument)
    return b.complex_(
        b.constant(_held(name, z.real, bits), bits), b.constant(_held(name, z.imag, bits), bits)
    )


def _held(name: str, given: Any, bits: int) -> float:
    """A finite number that the precision holds, an infinity, or NaN."""
    most = torch.finfo(torch.float32 if bits == 32 else torch.float64).max
    if most < abs(given) < math.inf:
        raise TraceError(
            f"{name} with a number beyond float{bits}, whose largest is {most:.3g}; "
            f"write math.inf where that is meant"
        )
    return float(given)


def _together(name: str, function: Binary, left: Any, right: Any) -> Symbol:
    """A function of two, whose shapes torch would bring together as they are meant."""
    symbols = [argument for argument in (left, right) if isinstance(argument, Symbol)]
    if not symbols:
        raise TraceError(f"{name} takes a tensor of the expression, got two numbers")
    bits = precision(value_of(symbols[0]).type)
    shapes = {shape_of(symbol) for symbol in symbols}
    if "[...]" in shapes and len(shapes) > 1:
        other = (shapes - {"[...]"}).pop()
        raise TraceError(
            f"{name} of tensors {other} and [...]: torch would line up their last axes, which are "
            f"not the same; write [..., None] after the second"
        )
    values = [
        value_of(argument) if isinstance(argument, Symbol) else number(name, argument, bits)
        for argument in (left, right)
    ]
    return Symbol(function(*values), any(is_column(symbol) for symbol in symbols))


def _mapped(function: Callable[[Value], Value], symbol: Symbol) -> Symbol:
    return Symbol(function(value_of(symbol)), is_column(symbol))


@traced("add")
def add(input: Any, other: Any) -> Symbol:
    """The sum."""
    return _together("add", b.add, input, other)


@traced("sub", "subtract")
def sub(input: Any, other: Any) -> Symbol:
    """The difference."""
    return _together("sub", b.sub, input, other)


@traced("mul", "multiply")
def mul(input: Any, other: Any) -> Symbol:
    """The product."""
    return _together("mul", b.mul, input, other)


@traced("div", "divide", "true_divide")
def div(input: Any, other: Any) -> Symbol:
    """The quotient, a product with the reciprocal."""
    if not isinstance(other, Symbol):
        number("div", other, 64)
        if other == 0:
            raise TraceError("div by the number 0")
        return mul(input, 1 / other)
    return mul(input, reciprocal(other))


@traced("reciprocal")
def reciprocal(input: Any) -> Symbol:
    """One divided by each number."""
    return _mapped(_reciprocal, _tensor("reciprocal", input))


def _reciprocal(value: Value) -> Value:
    if not is_complex(value.type):
        return b.function("reciprocal", value)
    square = b.add(b.mul(b.real(value), b.real(value)), b.mul(b.imag(value), b.imag(value)))
    return b.mul(b.conj(value), b.function("reciprocal", square))


@traced("neg", "negative")
def neg(input: Any) -> Symbol:
    """The number with the other sign."""
    return _mapped(b.neg, _tensor("neg", input))


@traced("square")
def square(input: Any) -> Symbol:
    """The number times itself."""
    return mul(_tensor("square", input), input)


@traced("pow")
def pow(input: Any, exponent: Any) -> Symbol:
    """A power: whole numbers, 0.5 and -0.5."""
    base = _tensor("pow", input)
    power = float(exponent) if _is_power(exponent) else 0.0
    if abs(power) == 0.5:
        return sqrt(base) if power > 0 else rsqrt(base)
    if power == 0.0 or not power.is_integer():
        raise TraceError(
            f"pow with the exponent {shown(exponent)}: whole numbers but 0, 0.5 and -0.5 are "
            f"traced; write others as exp(p * log(x))"
        )
    found = _whole_power(base, abs(int(power)))
    return found if power > 0 else reciprocal(found)


def _is_power(exponent: Any) -> bool:
    """Whether a power can be whole and is none that would take pages of products."""
    return isinstance(exponent, numbers.Real) and abs(exponent) <= 2**32  # type: ignore[operator]


def _whole_power(base: Symbol, exponent: int) -> Symbol:
    """By squares, so that it takes about as many products as the exponent has bits."""
    half = base if exponent < 4 else _whole_power(base, exponent // 2)
    if exponent == 1:
        return base
    even = square(half)
    return mul(even, base) if exponent % 2 else even


@traced("exp")
def exp(input: Any) -> Symbol:
    """The exponential, of real and of complex numbers."""
    return _mapped(_exp, _tensor("exp", input))


def _exp(value: Value) -> Value:
    if not is_complex(value.type):
        return b.function("exp", value)
    return b.polar(b.function("exp", b.real(value)), b.imag(value))


def _real(name: str, argument: Any) -> Symbol:
    """An argument of a function that the IR has for real numbers alone."""
    symbol = _tensor(name, argument)
    if is_complex(value_of(symbol).type):
        raise TraceError(
            f"{name} of a complex tensor cannot be traced, of a real one it can; write it with "
            f".real and .imag"
        )
    return symbol


def _of_reals(name: str, *aliases: str) -> None:
    """A function that is an op."""

    def rule(input: Any) -> Symbol:
        return _mapped(lambda value: b.function(name, value), _real(name, input))

    traced(name, *aliases)(rule)


for _op in ("log", "sin", "cos", "tanh", "sqrt"):
    _of_reals(_op)
_of_reals("sigmoid", "expit", "special_expit")
sqrt = FUNCTIONS["sqrt"]
sigmoid = FUNCTIONS["sigmoid"]
tanh = FUNCTIONS["tanh"]


@traced("softplus")
def softplus(input: Any, beta: float = 1, threshold: float = 20) -> Symbol:
    """``log(1 + exp(x))``, also where torch takes ``x`` for it."""
    if beta != 1:
        raise TraceError(f"softplus with beta={shown(beta)}: it is traced with beta=1")
    if threshold != 20:
        raise TraceError(
            f"softplus with threshold={shown(threshold)}: it is traced with torch's own, 20"
        )
    return _mapped(lambda value: b.function("softplus", value), _real("softplus", input))


@traced("logsigmoid", "log_sigmoid")
def logsigmoid(input: Any) -> Symbol:
    """The logarithm of the sigmoid."""
    return neg(softplus(neg(_real("logsigmoid", input))))


@traced("rsqrt")
def rsqrt(input: Any) -> Symbol:
    """One divided by the square root."""
    return reciprocal(sqrt(_real("rsqrt", input)))


@traced("silu")
def silu(input: Any, inplace: bool = False) -> Symbol:
    """``x`` times its sigmoid."""
    if inplace is not False:
        raise TraceError("silu in place: it is traced with inplace=False")
    return mul(_real("silu", input), sigmoid(input))


@traced("gelu")
def gelu(input: Any, approximate: str = "none") -> Symbol:
    """The approximation by tanh."""
    x = _real("gelu", input)
    if approximate != "tanh":
        raise TraceError(
            "gelu is traced with approximate='tanh' alone: the IR has no error function"
        )
    inner = mul(x, add(mul(square(x), 0.7978845608028654 * 0.044715), 0.7978845608028654))
    return mul(mul(x, 0.5), add(tanh(inner), 1.0))


@traced("real")
def real(input: Any) -> Symbol:
    """The real part; a real number is its own."""
    return _mapped(b.real, _tensor("real", input))


@traced("imag")
def imag(input: Any) -> Symbol:
    """The imaginary part."""
    symbol = _tensor("imag", input)
    if not is_complex(value_of(symbol).type):
        raise TraceError("imag of a real tensor; torch has none either")
    return _mapped(b.imag, symbol)


@traced("conj", "conj_physical")
def conj(input: Any) -> Symbol:
    """The conjugate."""
    return _mapped(b.conj, _tensor("conj", input))


@traced("complex")
def complex_(real: Any, imag: Any) -> Symbol:
    """A complex number from its parts."""
    return _of_parts("complex", b.complex_, real, imag)


@traced("polar")
def polar(abs: Any, angle: Any) -> Symbol:
    """A complex number from its magnitude and its phase."""
    return _of_parts("polar", b.polar, abs, angle)


def _of_parts(name: str, function: Binary, first: Any, second: Any) -> Symbol:
    for argument in (first, second):
        _real(name, argument)

    def made(left: Value, right: Value) -> Value:
        if type(left.type) is not type(right.type):
            left, right = (
                b.broadcast(part) if isinstance(part.type, Scalar) else part
                for part in (left, right)
            )
        return function(left, right)

    return _together(name, made, first, second)


@traced("sum")
def sum(input: Any, dim: int | None = None, keepdim: bool = False) -> Symbol:
    """The sum over the N numbers of a token, ``dim=-1``."""
    symbol = _tensor("sum", input)
    only = dim[0] if isinstance(dim, tuple | list) and len(dim) == 1 else dim
    if only != -1 or shape_of(symbol) != "[..., N]":
        raise TraceError(
            f"sum over dim={shown(dim)} of a tensor {shape_of(symbol)}: the sum over the last "
            f"axis of [..., N] is traced, .sum(-1); tokens and heads are computed side by side"
        )
    return Symbol(b.total(value_of(symbol)), bool(keepdim))


@traced("unsqueeze")
def unsqueeze(input: Any, dim: int) -> Symbol:
    """A number a token as ``[..., 1]``, which goes with ``[..., N]``."""
    symbol = _tensor("unsqueeze", input)
    if dim != -1 or shape_of(symbol) != "[...]":
        raise TraceError(
            f"a new axis is traced as the last one of [...], .unsqueeze(-1) or [..., None]; here "
            f"it is {shown(dim)} of {shape_of(symbol)}"
        )
    return Symbol(value_of(symbol), True)


@traced("squeeze")
def squeeze(input: Any, dim: int) -> Symbol:
    """``[..., 1]`` as ``[...]``."""
    symbol = _tensor("squeeze", input)
    if dim != -1 or shape_of(symbol) != "[..., 1]":
        raise TraceError(
            f"squeeze is traced for the last axis of [..., 1], .squeeze(-1); here it is "
            f"{shown(dim)} of {shape_of(symbol)}"
        )
    return Symbol(value_of(symbol))


def _full(name: str, argument: Any, fill: float) -> Symbol:
    symbol = _real(name, argument)
    type_ = value_of(symbol).type
    constant = b.constant(fill, precision(type_))
    filled = constant if isinstance(type_, Scalar) else b.broadcast(constant)
    return Symbol(filled, is_column(symbol))


@traced("ones_like")
def ones_like(input: Any) -> Symbol:
    """Ones."""
    return _full("ones_like", input, 1.0)


@traced("zeros_like")
def zeros_like(input: Any) -> Symbol:
    """Zeros."""
    return _full("zeros_like", input, 0.0)


def _widened(name: str, bits: int) -> None:
    """A conversion to what everything is computed in."""

    def rule(input: Any) -> Symbol:
        symbol = _real(name, input)
        if precision(value_of(symbol).type) != bits:
            raise TraceError(
                f"{name}() changes the precision, and an expression has one, that of the scan; "
                f"leave it out"
            )
        return symbol

    traced(name)(rule)


_widened("float", 32)
_widened("double", 64)

__all__ = ["FUNCTIONS", "number"]
