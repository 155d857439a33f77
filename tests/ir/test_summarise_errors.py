"""What ``summarise`` refuses, and which op it names."""

from collections.abc import Callable

import pytest

from pdssm_compiler.ir import PassError, Program, ProgramBuilder
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.ops import apply
from pdssm_compiler.ir.passes import summarise
from pdssm_compiler.ir.types import Map, Scalar, Type, Vector
from pdssm_compiler.ir.value import Value

Step = Callable[[Value, Value, Value, Value], Value]
COMPLEX = Vector("c64")


def program_of(step: Step, type_: Type = COMPLEX) -> Program:
    """A program whose carry ``x`` becomes ``step(x, d, p, q)``."""
    build = ProgramBuilder(4)
    d = build.input("d", type_)
    p, q = build.input("p", Map()), build.input("q", Map())
    x = build.carry("x", type_)
    build.next("x", step(x, d, p, q))
    build.final("last", "x")
    return build.build()


NOT_AFFINE: dict[str, tuple[Step, str]] = {
    "conj": (lambda x, d, p, q: b.conj(x), "the step is not affine in the carry: conj of the"),
    "real part": (
        lambda x, d, p, q: apply("complex", b.real(x), b.imag(d)),
        "the step is not affine in the carry: real of the carry",
    ),
    "sum": (
        lambda x, d, p, q: b.mul(d, b.total(x)),
        "the step is not affine in the carry: sum of the carry",
    ),
    "square": (
        lambda x, d, p, q: b.mul(x, b.add(x, d)),
        "the step is not affine in the carry: a product of two terms with it",
    ),
    "both ways": (
        lambda x, d, p, q: b.scatter_add(b.gather(x, p), q),
        "the step moves the carry both by scatter_add and by gather",
    ),
    "two maps": (
        lambda x, d, p, q: b.add(b.gather(x, p), b.gather(x, q)),
        "add of two terms that move the carry by different maps",
    ),
    "moved and unmoved": (
        lambda x, d, p, q: b.sub(x, b.scatter_add(x, p)),
        "sub of two terms that move the carry by different maps",
    ),
    "constant": (
        lambda x, d, p, q: d,
        "the carry's next value does not depend on the carry",
    ),
}


@pytest.mark.parametrize("case", NOT_AFFINE)
def test_step_that_is_not_affine(case: str) -> None:
    step, message = NOT_AFFINE[case]
    with pytest.raises(PassError, match=message):
        summarise(program_of(step))


def test_real_function_of_the_carry() -> None:
    tanh = program_of(lambda x, d, p, q: b.function("tanh", x), Vector("f32"))
    with pytest.raises(PassError, match="not affine in the carry: tanh of the carry"):
        summarise(tanh)


def test_two_carries() -> None:
    build = ProgramBuilder(4)
    u = build.input("u", Vector("f32"))
    for name in ("alpha", "beta"):
        build.next(name, b.add(build.carry(name, Vector("f32")), u))
        build.final(f"last_{name}", name)
    with pytest.raises(PassError, match=r"exactly one carry, a vector; .* has %alpha, %beta"):
        summarise(build.build())


def test_no_carry() -> None:
    build = ProgramBuilder(4)
    build.emit("y", build.input("u", Vector("f32")))
    with pytest.raises(PassError, match="exactly one carry, a vector; this program has none"):
        summarise(build.build())


@pytest.mark.parametrize("type_", [Scalar("f32"), Map()])
def test_carry_that_is_no_vector(type_: Type) -> None:
    build = ProgramBuilder(4)
    u = build.input("u", type_)
    x = build.carry("x", type_, "identity" if isinstance(type_, Map) else "zero")
    build.next("x", b.compose(u, x) if isinstance(type_, Map) else b.add(u, x))
    build.final("last", "x")
    if isinstance(type_, Map):
        build.input("token", Scalar("f32"))
    with pytest.raises(PassError, match="exactly one carry, a vector; this program has %x"):
        summarise(build.build())
