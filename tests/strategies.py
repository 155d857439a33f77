"""Hypothesis strategies that every package of tests shares.

``programs`` draws scan programs with any op in their body, ``affine_programs`` those whose step is
affine in the carry (what ``summarise`` takes), ``pd_specs`` the specs of PD scans, ``seeds`` and
``sizes`` what :func:`arrays_for` needs to make inputs for a program.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from hypothesis import note
from hypothesis import strategies as st

from pdssm_compiler.ir import Program, ProgramBuilder
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.programs import PdScan
from pdssm_compiler.ir.types import (
    MAP_CLASSES,
    Coefficients,
    Index,
    Matrices,
    Scalar,
    Table,
    Vector,
    is_complex,
    is_number,
)
from pdssm_compiler.ir.value import Value
from tests.random_bodies import PRODUCERS, Body

Draw = Any
# Every carry stays below this, whatever the number of tokens.
CARRY_BOUND = 2.0
NUMBER_ROLES = ("token", "head", "row")
MAP_SOURCES = ("table", "token", "row", "head")


class Sizes(NamedTuple):
    """``B``, ``T`` and ``H``."""

    batch: int
    length: int
    heads: int


def seeds() -> st.SearchStrategy[int]:
    """Seeds of :func:`arrays_for`."""
    return st.integers(0, 2**32 - 1)


def sizes(max_length: int = 5, min_length: int = 0) -> st.SearchStrategy[Sizes]:
    """Small batches of short sequences, T = 0 and T = 1 among them."""
    return st.builds(
        Sizes, st.integers(1, 2), st.integers(min_length, max_length), st.integers(1, 2)
    )


def arrays_for(
    program: Program, sizes_: Sizes, seed: int, exclude: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Random inputs, the same for the same seed: float64, complex128 or int64.

    Numbers have a magnitude of at most 1, indices are in range, maps keep what their class
    promises, and derived inputs are left out, as are those in ``exclude``.
    """
    rng = np.random.default_rng(seed)
    batch, length, heads = sizes_
    leading = {"head": (heads,), "row": (batch, heads)}
    arrays: dict[str, np.ndarray] = {}
    for input_ in program.inputs:
        if input_.inverse_of is None and input_.name not in exclude:
            rows = leading.get(input_.role, (batch, length, heads))
            arrays[input_.name] = _array(rng, input_.type, rows, program.state_size)
    return arrays


def _array(rng: np.random.Generator, type_: Any, rows: tuple[int, ...], n: int) -> np.ndarray:
    if isinstance(type_, Index):
        return rng.integers(0, min(type_.bound, 2**40), rows)
    if isinstance(type_, Coefficients):
        return rng.dirichlet(np.ones(type_.size), rows)
    if isinstance(type_, Matrices):
        return rng.uniform(-1, 1, (*rows, type_.size, n, n))
    if is_number(type_):
        shape = (*rows, n) if isinstance(type_, Vector) else rows
        if not is_complex(type_):
            return rng.uniform(-1, 1, shape)
        radius = np.sqrt(rng.uniform(0, 1, shape))
        return radius * np.exp(2j * np.pi * rng.uniform(0, 1, shape))
    shape = (*rows, type_.size, n) if isinstance(type_, Table) else (*rows, n)
    if type_.map_class == "general":
        return rng.integers(0, n, shape)
    identity = np.broadcast_to(np.arange(n), shape)
    return rng.permuted(identity, axis=-1) if type_.map_class == "permutation" else identity


@st.composite
def programs(
    draw: Draw,
    state_size: int | None = None,
    precision: Literal[32, 64] = 64,
    *,
    max_ops: int = 12,
    max_carries: int = 2,
    max_outputs: int = 4,
    starts: Sequence[str] = ("zero", "input"),
    directions: Sequence[str] = ("forward", "backward"),
    map_classes: tuple[str, ...] = MAP_CLASSES,
) -> Program:
    """Programs with one or two number carries and a random body drawn from every op.

    Args:
        draw: Hypothesis'.
        state_size: ``N``; None draws 1 to 6.
        precision: 32 (``f32``, ``c64``) or 64 (``f64``, ``c128``).
        max_ops: how many ops are drawn; each may add a few more to keep values in their domains.
        max_carries: at most this many carries.
        max_outputs: at most this many token outputs.
        starts: how carries start: ``zero``, ``one``, ``input``.
        directions: ``forward``, ``backward``.
        map_classes: the classes of the map inputs.
    """
    n = draw(st.integers(1, 6)) if state_size is None else state_size
    build = ProgramBuilder(n, draw(st.sampled_from(directions)))
    body = Body(draw, build, n, precision, map_classes)
    _declare_inputs(body)
    carries: dict[str, Value] = {}
    for name in ("alpha", "beta")[: draw(st.integers(1, max_carries))]:
        shape = body.choose((Vector, Vector, Scalar))
        carries[name] = _declare_carry(
            body, name, shape(body.element(draw(st.booleans()))), body.choose(starts)
        )
    _grow(body, max_ops)
    for name, carry in carries.items():
        build.next(name, _next(body, carry))
        if draw(st.booleans()):
            build.final(f"final_{name}", name)
    # Most of what no other value uses is written out, so that few of the drawn ops are dead.
    for number, value in enumerate(draw(st.permutations(body.sinks()))[:max_outputs]):
        build.emit(f"y{number}", value)
    _sum(body)
    return _noted(build.build())


@st.composite
def affine_programs(
    draw: Draw,
    state_size: int | None = None,
    precision: Literal[32, 64] = 64,
    *,
    max_ops: int = 6,
    starts: Sequence[str] = ("zero", "input"),
    map_classes: tuple[str, ...] = MAP_CLASSES,
) -> Program:
    """Programs whose step is affine in their one carry, a vector, with one map and one diagonal.

    Factors, offsets and maps are random bodies over the inputs; the maps move the carry by gather
    or by scatter_add, never both. Outputs: ``states``, a read-out ``y``, and ``last``.
    """
    n = draw(st.integers(1, 6)) if state_size is None else state_size
    build = ProgramBuilder(n, draw(st.sampled_from(("forward", "backward"))))
    body = Body(draw, build, n, precision, map_classes)
    _declare_inputs(body)
    _grow(body, max_ops)
    type_ = Vector(body.element(draw(st.booleans())))
    start = draw(st.sampled_from(starts))
    start = build.input("start", type_, "row") if start == "input" else start
    state = build.carry("state", type_, start)
    move = draw(st.sampled_from((b.gather, b.scatter_add)))
    steps = st.sampled_from(("move", "scale", "subtract", "move", "add", "negate", "fan", "drop"))
    value = b.mul(_factor(body, type_), state)
    for step in draw(st.lists(steps, min_size=2, max_size=5)):
        if step == "move":
            value = b.mul(move(value, body.pick_map()), body.inverse_size)
        elif step == "scale":
            value = b.mul(value, _factor(body, type_))
        elif step == "add":
            value = b.add(value, _factor(body, type_))
        elif step == "subtract":
            value = b.sub(_factor(body, type_), value)
        elif step == "negate":
            value = b.neg(value)
        elif step == "drop":
            value = b.scale(_factor(body, type_), b.keep(value, body.flag()))
        else:
            parts = b.mul(_factor(body, type_), value), b.mul(value, _factor(body, type_))
            value = b.mul(b.add(*parts), 0.5)
    build.next("state", value)
    build.emit("states", value)
    # Nothing asks a read-out to be affine.
    build.emit("y", b.function("tanh", b.real(b.mul(value, _factor(body, type_)))))
    build.final("last", "state")
    _sum(body)
    return _noted(build.build())


def pd_specs(
    max_state_size: int = 9,
    elements: Sequence[str] = ("c64", "c128"),
    map_sources: Sequence[str] = ("dictionary", "token", "none"),
    map_classes: Sequence[str] = MAP_CLASSES,
) -> st.SearchStrategy[PdScan]:
    """Specs of PD scans of every kind, with ``N`` up to ``max_state_size``."""

    def of_source(source: str) -> st.SearchStrategy[PdScan]:
        dictionary = st.integers(1, 5) if source == "dictionary" else st.none()
        return st.builds(
            PdScan,
            state_size=st.integers(1, max_state_size),
            dictionary_size=dictionary,
            element=st.sampled_from(elements),
            map_source=st.just(source),
            map_class=st.sampled_from(map_classes),
            orientation=st.sampled_from(("column", "row")),
            initial_state=st.booleans(),
            final_state=st.booleans(),
            reverse=st.booleans(),
            packed=st.booleans(),
        )

    return st.sampled_from(map_sources).flatmap(of_source)


def _noted(program: Program) -> Program:
    """The program, its text shown beside a failing example."""
    note(program.text)
    return program


def _grow(body: Body, max_ops: int) -> None:
    ops = st.lists(st.sampled_from(sorted(PRODUCERS)), min_size=max_ops // 3, max_size=max_ops)
    body.grow(body.draw(ops))


def _declare_inputs(body: Body) -> None:
    """A token vector, then numbers and maps of any role."""
    body.put(body.build.input("x", Vector(body.element(False))), 1.0)
    for number in range(body.draw(st.integers(0, 3))):
        role = body.choose(NUMBER_ROLES)
        body.put(body.build.input(f"{role}{number}", body.type(), role), 1.0)
    for source in body.draw(st.lists(st.sampled_from(MAP_SOURCES), max_size=2)):
        body.declare_maps(source)


def _declare_carry(body: Body, name: str, type_: Scalar | Vector, start: str) -> Value:
    from_ = body.build.input(f"{name}_0", type_, "row") if start == "input" else start
    return body.put(body.build.carry(name, type_, from_), CARRY_BOUND)


def _next(body: Body, carry: Value) -> Value:
    """A value of the carry's type and bound: the carry moved and gated, plus something."""
    other = body.within(body.pick(carry.type), CARRY_BOUND / 2)
    if body.draw(st.booleans()):
        return other
    moved = carry
    if isinstance(carry.type, Vector) and body.draw(st.booleans()):
        moved = b.gather(carry, body.pick_map())
    elif isinstance(carry.type, Vector) and body.draw(st.booleans()):
        moved = b.mul(b.scatter_add(carry, body.pick_map()), body.inverse_size)
    gate = b.function("tanh", body.pick(type(carry.type)(body.element(False))))
    return b.add(b.mul(b.mul(gate, moved), 0.5), other)


def _sum(body: Body) -> None:
    """Sums over the tokens, some by an index."""
    numbers = [value for value in body.bounds if is_number(value.type)]
    indices = [index for _, index in body.tables]
    for number in range(body.draw(st.integers(0, 2))):
        body.build.sum(f"total{number}", body.choose(numbers), body.choose([None, *indices]))


def _factor(body: Body, type_: Vector) -> Value:
    """A number of magnitude at most 1 that a carry of a type can be multiplied by or added to."""
    complex_ = is_complex(type_) and body.draw(st.booleans())
    shape = body.choose((Vector, Scalar))
    factor = body.within(body.pick(shape(body.element(complex_))), 1.0)
    return b.broadcast(factor) if shape is Scalar else factor
