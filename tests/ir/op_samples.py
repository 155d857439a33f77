"""Argument types for every op, with the result type each must give."""

from dataclasses import dataclass, field
from typing import Any

from pdssm_compiler.ir import Program, ProgramBuilder
from pdssm_compiler.ir.ops import OPS, apply
from pdssm_compiler.ir.ops.matrices import MATRIX_OPS
from pdssm_compiler.ir.types import Index, Map, Scalar, Table, Type, Vector
from pdssm_compiler.ir.value import Value

R, C = "f64", "c128"
GENERAL, PERMUTATION, IDENTITY = Map("general"), Map("permutation"), Map("identity")


@dataclass(frozen=True)
class Sample:
    """An op on arguments of some types."""

    op: str
    args: tuple[Type, ...]
    result: Type
    attributes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.op}({', '.join(map(str, self.args))})"


def _samples() -> list[Sample]:
    found: list[Sample] = []
    for shape in (Scalar, Vector):
        real, complex_ = shape(R), shape(C)
        for op in ("add", "sub", "mul", "scale"):
            found.append(Sample(op, (real, real), real))
            found += [
                Sample(op, args, complex_)
                for args in ((real, complex_), (complex_, real), (complex_, complex_))
            ]
        found += [Sample("neg", (real,), real), Sample("neg", (complex_,), complex_)]
        found.append(Sample("conj", (complex_,), complex_))
        found += [Sample(op, (complex_,), real) for op in ("real", "imag")]
        found.append(Sample("complex", (real, real), complex_))
        found += [
            Sample(op, (real,), real)
            for op in ("exp", "log", "sin", "cos", "tanh", "sigmoid", "softplus", "sqrt")
        ]
        found.append(Sample("reciprocal", (real,), real))
    for element in (R, C):
        scalar, vector = Scalar(element), Vector(element)
        found += [Sample("broadcast", (scalar,), vector), Sample("sum", (vector,), scalar)]
        found.append(Sample("keep", (vector, Index(2)), vector))
        found += [
            Sample(op, (vector, map_), vector)
            for op in ("gather", "scatter_add")
            for map_ in (GENERAL, PERMUTATION, IDENTITY)
        ]
    for map_ in (GENERAL, PERMUTATION, IDENTITY):
        found.append(Sample("select", (Table(3, map_.map_class), Index(3)), map_))
        found += [Sample("compose", pair, GENERAL) for pair in ((map_, GENERAL), (GENERAL, map_))]
    for pair in ((PERMUTATION, PERMUTATION), (PERMUTATION, IDENTITY), (IDENTITY, PERMUTATION)):
        found.append(Sample("compose", pair, PERMUTATION))
    found.append(Sample("compose", (IDENTITY, IDENTITY), IDENTITY))
    found += [Sample("invert", (map_,), map_) for map_ in (PERMUTATION, IDENTITY)]
    found.append(Sample("iota", (), IDENTITY))
    found.append(Sample("constant", (), Scalar(R), {"value": -1.5, "element": R}))
    return found


SAMPLES = _samples()


def build(sample: Sample, state_size: int = 5) -> tuple[Program, Value]:
    """The program that emits the op of its inputs ``a0, a1`` as ``y``, and the op's value."""
    builder = ProgramBuilder(state_size)
    builder.input("tokens", Scalar(R))
    args = [
        builder.input(f"a{i}", type_, "head" if isinstance(type_, Table) else "token")
        for i, type_ in enumerate(sample.args)
    ]
    value = apply(sample.op, *args, **sample.attributes)
    builder.emit("y", value)
    return builder.build(), value


def covers_the_table() -> bool:
    """Whether there is a sample of every op; those over matrices have a test of their own."""
    return {sample.op for sample in SAMPLES} == set(OPS) - MATRIX_OPS
