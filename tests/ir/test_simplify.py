"""``simplify``: each rule, and the answer it must not change."""

import pytest
from hypothesis import given

from pdssm_compiler.ir import Program, ProgramBuilder, interpret
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.ops import apply
from pdssm_compiler.ir.passes import adjoint, simplify, summarise
from pdssm_compiler.ir.program import Input, zero_like
from pdssm_compiler.ir.types import Map, Scalar, Vector
from pdssm_compiler.ir.value import Value
from tests.ir.agreement import assert_close
from tests.strategies import (
    Sizes,
    affine_programs,
    arrays_for,
    programs,
    seeds,
    sizes,
)

X, Y = (Input(name, Vector("f64")).value for name in "xy")
Z, W = (Input(name, Vector("c128")).value for name in "zw")
S = Input("s", Scalar("f64")).value
P, Q = Input("p", Map("permutation")).value, Input("q", Map("general")).value
ZERO, ZEROS = zero_like(Vector("f64")), zero_like(Vector("c128"))
ONE = b.broadcast(b.constant(1.0, 64))
REAL = apply("complex", X, ZERO)
IMAGINARY = apply("complex", ZERO, X)
I = apply("complex", b.constant(0.0, 64), b.constant(1.0, 64))  # noqa: E741

RULES: dict[str, tuple[Value, Value]] = {
    "x + 0": (b.add(X, 0.0), X),
    "0 + x": (b.add(ZERO, X), X),
    "z + 0": (b.add(Z, ZEROS), Z),
    "z + real 0": (b.add(Z, ZERO), Z),
    "x + complex 0 is complex": (b.add(X, ZEROS), REAL),
    "complex 0 + x is complex": (b.add(ZEROS, X), REAL),
    "x + (-y)": (b.add(X, b.neg(Y)), b.sub(X, Y)),
    "x - 0": (b.sub(X, 0.0), X),
    "x - complex 0 is complex": (b.sub(X, ZEROS), REAL),
    "0 - x stays": (b.sub(ZERO, X), b.sub(ZERO, X)),
    "x 1": (b.mul(X, 1.0), X),
    "1 z": (b.mul(ONE, Z), Z),
    "s 1": (b.mul(S, 1.0), S),
    "z complex(x, 0)": (b.mul(Z, REAL), b.mul(Z, X)),
    "complex(x, 0) z": (b.mul(REAL, Z), b.mul(Z, X)),
    "z complex(1, 0)": (b.mul(Z, apply("complex", ONE, ZERO)), Z),
    "y complex(x, 0) is complex": (b.mul(Y, REAL), b.mul(Y, REAL)),
    "complex(0, x) y": (b.mul(IMAGINARY, Y), apply("complex", ZERO, b.mul(X, Y))),
    "y complex(0, x)": (b.mul(Y, IMAGINARY), apply("complex", ZERO, b.mul(X, Y))),
    "complex(0, x) complex(y, x)": (
        b.mul(IMAGINARY, apply("complex", Y, X)),
        apply("complex", b.neg(b.mul(X, X)), b.mul(X, Y)),
    ),
    "complex(0, x) z stays": (b.mul(IMAGINARY, Z), b.mul(IMAGINARY, Z)),
    "complex + complex": (
        b.add(apply("complex", X, Y), apply("complex", Y, Y)),
        apply("complex", b.add(X, Y), b.add(Y, Y)),
    ),
    "complex - complex": (
        b.sub(apply("complex", X, Y), apply("complex", Y, X)),
        apply("complex", b.sub(X, Y), b.sub(Y, X)),
    ),
    "x - complex": (
        b.sub(X, apply("complex", Y, Y)),
        apply("complex", b.sub(X, Y), b.sub(ZERO, Y)),
    ),
    "complex + z stays": (
        b.add(apply("complex", X, Y), Z),
        b.add(apply("complex", X, Y), Z),
    ),
    "broadcast complex": (
        b.mul(b.broadcast(apply("complex", S, S)), Z),
        b.mul(apply("complex", b.broadcast(S), b.broadcast(S)), Z),
    ),
    "imaginary exponent": (b.real(b.add(X, b.mul(Y, I))), X),
    "x 2 stays": (b.mul(X, 2.0), b.mul(X, 2.0)),
    "neg neg": (b.neg(b.neg(X)), X),
    "conj conj": (b.conj(b.conj(Z)), Z),
    "invert invert": (b.gather(X, b.invert(b.invert(P))), b.gather(X, P)),
    "real complex": (b.real(apply("complex", X, Y)), X),
    "imag complex": (b.imag(apply("complex", X, Y)), Y),
    "conj complex": (b.conj(apply("complex", X, Y)), apply("complex", X, b.neg(Y))),
    "real conj": (b.real(b.conj(Z)), b.real(Z)),
    "imag conj": (b.imag(b.conj(Z)), b.neg(b.imag(Z))),
    "complex real imag": (apply("complex", b.real(Z), b.imag(Z)), Z),
    "parts of two": (
        apply("complex", b.real(Z), b.imag(W)),
        apply("complex", b.real(Z), b.imag(W)),
    ),
    "parts exchanged": (
        apply("complex", b.imag(Z), b.real(Z)),
        apply("complex", b.imag(Z), b.real(Z)),
    ),
    "gather iota": (b.gather(X, b.iota()), X),
    "scatter iota": (b.scatter_add(X, b.iota()), X),
    "compose iota": (b.compose(Q, b.iota()), Q),
    "iota compose": (b.compose(b.iota(), P), P),
    "invert iota": (b.compose(b.invert(b.iota()), b.iota()), b.iota()),
    "chain": (b.neg(b.add(b.neg(b.mul(X, 1.0)), b.gather(ZERO, b.iota()))), X),
}


def program_of(value: Value) -> Program:
    build = ProgramBuilder(4)
    for leaf in (X, Y, Z, W, S, P, Q):
        build.input(leaf.name, leaf.type)
    build.emit("out", value)
    return build.build()


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule: str) -> None:
    before, after = RULES[rule]
    program = program_of(before)
    simplified = simplify(program)
    assert simplified.token_outputs[0].value is after
    arrays = arrays_for(program, Sizes(2, 3, 2), seed=2)
    assert_close(interpret(simplified, arrays), interpret(program, arrays))


@given(programs(starts=("zero", "one", "input")), sizes(), seeds())
def test_random_programs_keep_their_answer(program: Program, shape: Sizes, seed: int) -> None:
    arrays = arrays_for(program, shape, seed)
    simplified = simplify(program)
    assert_close(interpret(simplified, arrays), interpret(program, arrays))
    assert simplify(simplified) == simplified


@given(affine_programs())
def test_what_passes_derive_is_simple(program: Program) -> None:
    summary = summarise(program)
    for part in (adjoint(program).program, summary.fold, summary.combine):
        assert simplify(part) == part
