"""Random well-typed bodies: a pool of values, grown by one op of the table at a time.

Every value in the pool has a bound on its magnitude, and is scaled back when the bound grows, so
a program of a few tokens neither overflows nor loses its digits; ``log``, ``sqrt`` and
``reciprocal`` see only numbers of at least 1. :data:`PRODUCERS` has one rule for each op.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from hypothesis import strategies as st

from pdssm_compiler.ir import ProgramBuilder
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.ops import apply
from pdssm_compiler.ir.types import (
    MAP_CLASSES,
    Index,
    Map,
    Scalar,
    Table,
    Vector,
    element_of,
    is_complex,
    is_number,
)
from pdssm_compiler.ir.value import Value

# Dyadic, so that they are the same numbers in float32; -0.0 must survive every pass.
CONSTANTS = (1.0, 0.5, -0.75, 2.0, 0.0, -0.0, -1.0, 0.125)
LARGEST = 8.0


class Body:
    """Values to build on, by a draw of Hypothesis."""

    def __init__(
        self,
        draw: Callable[[st.SearchStrategy], Any],
        build: ProgramBuilder,
        state_size: int,
        bits: int,
        map_classes: tuple[str, ...] = MAP_CLASSES,
    ) -> None:
        self.draw, self.build, self.n, self.bits = draw, build, state_size, bits
        self.map_classes = map_classes
        self.bounds: dict[Value, float] = {}
        self.maps: list[Value] = []
        self.tables: list[tuple[Value, Value]] = []
        self.flags: list[Value] = []
        self.used: set[Value] = set()

    @property
    def inverse_size(self) -> float:
        """The largest power of two below ``1/N``: what makes a sum of ``N`` as small as one."""
        return 2.0 ** -math.ceil(math.log2(self.n))

    def choose(self, options: Any) -> Any:
        """One of the options."""
        return self.draw(st.sampled_from(options))

    def element(self, complex_: bool) -> str:
        """The real or the complex element of this body's precision."""
        return element_of(self.bits, complex_=complex_)

    def type(self) -> Scalar | Vector:
        """A number type, any of the four."""
        shape = self.choose((Vector, Scalar))
        return shape(self.element(self.draw(st.booleans())))

    def put(self, value: Value, bound: float) -> Value:
        """Add a number to the pool, scaled back if it may be large."""
        self.used.update(value.args)
        if bound > LARGEST:
            value, bound = self.scaled(value, bound, 2.0), 2.0
        self.bounds[value] = max(bound, self.bounds.get(value, 0.0))
        return value

    def put_map(self, value: Value) -> Value:
        """Add a map to the pool."""
        self.used.update(value.args)
        if value not in self.maps:
            self.maps.append(value)
        return value

    def scaled(self, value: Value, bound: float, limit: float) -> Value:
        """The value times the power of two that brings a bound below a limit."""
        if bound <= limit:
            return value
        return b.mul(value, 2.0 ** -math.ceil(math.log2(bound / limit)))

    def within(self, value: Value, limit: float) -> Value:
        """A value of the pool, scaled to a limit."""
        return self.scaled(value, self.bounds[value], limit)

    def pick(self, type_: Scalar | Vector) -> Value:
        """A number of a type: one from the pool, or a new one if there is none."""
        known = [value for value in self.bounds if value.type == type_]
        if known:
            return self.choose(known)
        if is_complex(type_):
            part = self.pick(type(type_)(self.element(False)))
            return self.put(apply("complex", part, part), 2 * self.bounds[part])
        if isinstance(type_, Vector):
            scalar = self.pick(Scalar(type_.element))
            return self.put(b.broadcast(scalar), self.bounds[scalar])
        return PRODUCERS["constant"](self)

    def pick_real(self) -> Value:
        """A real scalar or vector."""
        return self.pick(self.choose((Vector, Scalar))(self.element(False)))

    def pick_map(self, *, invertible: bool = False) -> Value:
        """A map, from the pool or a new one."""
        known = [m for m in self.maps if not invertible or m.type != Map("general")]
        return self.choose(known) if known else PRODUCERS["iota"](self)

    def declare_maps(self, source: str) -> None:
        """Inputs that hold maps: a dictionary and a selection, or a map for each role."""
        class_ = self.choose(self.map_classes)
        if source == "table":
            number, size = len(self.tables), self.draw(st.integers(1, 4))
            storage = self.choose(("i32", "u8", "i64"))
            table = self.build.input(f"table{number}", Table(size, class_), "head", storage)
            index = self.build.input(f"index{number}", Index(size), "token", storage)
            self.tables.append((table, index))
        else:
            name = f"{source}_map{len(self.maps)}"
            self.put_map(self.build.input(name, Map(class_), source))

    def flag(self) -> Value:
        """An index below 2, the same one each time."""
        if not self.flags:
            storage = self.choose(("u8", "i32"))
            self.flags.append(self.build.input("flag", Index(2), "token", storage))
        return self.flags[0]

    def grow(self, ops: list[str]) -> None:
        """Add one value by each op."""
        for op in ops:
            PRODUCERS[op](self)

    def sinks(self) -> list[Value]:
        """Computed values that no other value uses yet; any number if there is none."""
        made = [v for v in (*self.bounds, *self.maps) if v not in self.used and not v.is_leaf]
        return made or [value for value in self.bounds if is_number(value.type)]


Producer = Callable[[Body], Value]


def _binary(op: str, bound: Callable[[float, float], float], body: Body) -> Value:
    left_type = body.type()
    left = body.pick(left_type)
    right = body.pick(type(left_type)(body.element(body.draw(st.booleans()))))
    return body.put(apply(op, left, right), bound(body.bounds[left], body.bounds[right]))


def _complex(body: Body) -> Value:
    re = body.pick_real()
    im = body.pick(re.type)
    return body.put(apply("complex", re, im), body.bounds[re] + body.bounds[im])


def _part(op: str, body: Body) -> Value:
    z = body.pick(body.choose((Vector, Scalar))(body.element(True)))
    return body.put(apply(op, z), body.bounds[z])


def _negated(body: Body) -> Value:
    value = body.pick(body.type())
    return body.put(b.neg(value), body.bounds[value])


def _exp(body: Body) -> Value:
    x = body.pick_real()
    small = x if body.bounds[x] <= 1.0 else body.put(apply("tanh", x), 1.0)
    return body.put(apply("exp", small), math.e)


def _bounded(op: str, body: Body) -> Value:
    return body.put(apply(op, body.pick_real()), 1.0)


def _softplus(body: Body) -> Value:
    x = body.pick_real()
    return body.put(apply("softplus", x), body.bounds[x] + 1.0)


def _of_positive(op: str, body: Body) -> Value:
    """An op of a number that is at least 1."""
    x = body.pick_real()
    if body.draw(st.booleans()):
        positive, bound = b.add(apply("softplus", x), 1.0), body.bounds[x] + 2.0
    else:
        positive, bound = b.add(apply("sigmoid", x), 1.5), 2.5
    body.used.add(x)
    return body.put(apply(op, positive), 1.0 if op == "reciprocal" else bound)


def _constant(body: Body) -> Value:
    return body.put(b.constant(body.choose(CONSTANTS), body.bits), 2.0)


def _broadcast(body: Body) -> Value:
    scalar = body.pick(Scalar(body.element(body.draw(st.booleans()))))
    return body.put(b.broadcast(scalar), body.bounds[scalar])


def _sum(body: Body) -> Value:
    vector = body.pick(Vector(body.element(body.draw(st.booleans()))))
    return body.put(b.total(vector), body.n * body.bounds[vector])


def _moved(op: str, body: Body) -> Value:
    vector = body.pick(Vector(body.element(body.draw(st.booleans()))))
    bound = body.bounds[vector] * (body.n if op == "scatter_add" else 1)
    return body.put(apply(op, vector, body.pick_map()), bound)


def _select(body: Body) -> Value:
    if not body.tables:
        body.declare_maps("table")
    return body.put_map(b.select(*body.choose(body.tables)))


def _keep(body: Body) -> Value:
    vector = body.pick(Vector(body.element(body.draw(st.booleans()))))
    return body.put(b.keep(vector, body.flag()), body.bounds[vector])


PRODUCERS: dict[str, Producer] = {
    "add": partial(_binary, "add", lambda x, y: x + y),
    "sub": partial(_binary, "sub", lambda x, y: x + y),
    "mul": partial(_binary, "mul", lambda x, y: x * y),
    "scale": partial(_binary, "scale", lambda x, y: x * y),
    "neg": _negated,
    "conj": partial(_part, "conj"),
    "real": partial(_part, "real"),
    "imag": partial(_part, "imag"),
    "complex": _complex,
    "constant": _constant,
    "exp": _exp,
    "log": partial(_of_positive, "log"),
    "sqrt": partial(_of_positive, "sqrt"),
    "reciprocal": partial(_of_positive, "reciprocal"),
    "sin": partial(_bounded, "sin"),
    "cos": partial(_bounded, "cos"),
    "tanh": partial(_bounded, "tanh"),
    "sigmoid": partial(_bounded, "sigmoid"),
    "softplus": _softplus,
    "broadcast": _broadcast,
    "sum": _sum,
    "gather": partial(_moved, "gather"),
    "scatter_add": partial(_moved, "scatter_add"),
    "select": _select,
    "compose": lambda body: body.put_map(b.compose(body.pick_map(), body.pick_map())),
    "invert": lambda body: body.put_map(b.invert(body.pick_map(invertible=True))),
    "iota": lambda body: body.put_map(b.iota()),
    "keep": _keep,
}
