"""Elementwise ops as expressions: the rules that every emitter shares.

A number in generated code is one name (real) or two (real and imaginary part); a rule turns the
names of the arguments into the expressions of the result's parts. What differs between backends is
how a function and a literal are spelled: a :class:`Dialect`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pdssm_compiler.ir.bounds import largest
from pdssm_compiler.ir.types import Type, is_complex, precision
from pdssm_compiler.ir.value import Value

Parts = tuple[str, ...]


@dataclass(frozen=True)
class Dialect:
    """How a backend spells things.

    Attributes:
        functions: for each real function, a format string of its argument ``{x}`` and of the dtype
            ``{dtype}`` of what it gives.
        literal: a real constant from its value and its precision in bits.
        choose: ``{x}`` where ``{condition}`` holds, and zero of ``{dtype}`` elsewhere, which is no
            product: ``x`` may be no number.
        kept: the condition that an index ``{k}`` is not 0, for every element.
        either: the condition that ``{a}`` or ``{b}`` is not 0.
        within: of functions that take less where their argument is at most so large, by how large
            it may be and by how they are spelled then.
    """

    functions: dict[str, str]
    literal: Callable[[float, int], str]
    choose: str
    kept: str
    either: str
    within: dict[str, tuple[float, str]] = field(default_factory=dict)

    def function(self, value: Value) -> str:
        """The format string of a function's value."""
        most, shorter = self.within.get(value.op, (-1.0, ""))
        return shorter if largest(value.args[0]) <= most else self.functions[value.op]


def part_names(name: str, type_: Type) -> Parts:
    """The names of a value's parts."""
    return (f"{name}_re", f"{name}_im") if is_complex(type_) else (name,)


def _add(a: Parts, b: Parts) -> Parts:
    return _signed("+", a, b)


def _sub(a: Parts, b: Parts) -> Parts:
    return _signed("-", a, b)


def _signed(sign: str, a: Parts, b: Parts) -> Parts:
    first = f"{a[0]} {sign} {b[0]}"
    if len(a) == len(b) == 1:
        return (first,)
    if len(b) == 1:
        return (first, a[1])
    if len(a) == 1:
        return (first, b[1] if sign == "+" else f"-{b[1]}")
    return (first, f"{a[1]} {sign} {b[1]}")


def _mul(a: Parts, b: Parts) -> Parts:
    if len(a) == len(b) == 1:
        return (f"{a[0]} * {b[0]}",)
    if len(b) == 1:
        return (f"{a[0]} * {b[0]}", f"{a[1]} * {b[0]}")
    if len(a) == 1:
        return (f"{a[0]} * {b[0]}", f"{a[0]} * {b[1]}")
    return (
        f"{a[0]} * {b[0]} - {a[1]} * {b[1]}",
        f"{a[0]} * {b[1]} + {a[1]} * {b[0]}",
    )


_RULES: dict[str, Callable[..., Parts]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "neg": lambda a: tuple(f"-{part}" for part in a),
    "conj": lambda a: (a[0], f"-{a[1]}"),
    "real": lambda a: (a[0],),
    "imag": lambda a: (a[1],),
    "complex": lambda re, im: (re[0], im[0]),
}

FUNCTIONS = ("exp", "log", "sin", "cos", "tanh", "sigmoid", "softplus", "sqrt", "reciprocal")

# Every op these rules cover; an emitter adds its own for the rest.
ARITHMETIC_OPS = frozenset(_RULES) | frozenset(FUNCTIONS) | {"constant", "keep", "scale"}


def arithmetic(value: Value, args: Sequence[Parts], dialect: Dialect) -> Parts:
    """The expressions of an elementwise op's result.

    Args:
        value: the value to compute; its op is one of :data:`ARITHMETIC_OPS`.
        args: the parts of each argument, each a name or a literal.
        dialect: the backend's spelling.
    """
    if value.op == "constant":
        bits = 32 if value.attribute("element") == "f32" else 64
        return (dialect.literal(value.attribute("value"), bits),)
    if value.op in FUNCTIONS:
        dtype = f"float{precision(value.type)}"
        return (dialect.function(value).format(x=args[0][0], dtype=dtype),)
    if value.op == "keep":
        condition = dialect.kept.format(k=args[1][0])
        return _chosen(value, args[0], condition, dialect)
    if value.op == "scale":
        factor = args[0]
        condition = f"{factor[0]} != 0"
        if len(factor) == 2:
            condition = dialect.either.format(a=factor[0], b=factor[1])
        return _chosen(value, _mul(*args), condition, dialect)
    parts = _RULES[value.op](*args)
    assert len(parts) == (2 if is_complex(value.type) else 1), value.op
    return parts


def _chosen(value: Value, parts: Parts, condition: str, dialect: Dialect) -> Parts:
    dtype = f"float{precision(value.type)}"
    return tuple(dialect.choose.format(condition=condition, x=x, dtype=dtype) for x in parts)
