"""The builder: what it converts, and what it refuses."""

import pytest

from pdssm_compiler.ir import IRError, ProgramBuilder, VerificationError
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.ops import apply
from pdssm_compiler.ir.program import Input
from pdssm_compiler.ir.types import Scalar, Vector

X, Z = Input("x", Vector("f64")).value, Input("z", Vector("c128")).value
S = Input("s", Scalar("f64")).value


def test_binary_broadcasts_scalars_on_either_side() -> None:
    assert b.mul(X, S) is apply("mul", X, apply("broadcast", S))
    assert b.sub(S, X) is apply("sub", apply("broadcast", S), X)


def test_binary_takes_numbers_in_the_values_precision() -> None:
    half = apply("constant", value=0.5, element="f64")
    assert b.add(X, 0.5) is apply("add", X, apply("broadcast", half))
    assert b.sub(0.5, S) is apply("sub", half, S)
    assert b.mul(Z, 0.5) is apply("mul", Z, apply("broadcast", half))
    with pytest.raises(IRError, match="add needs at least one value; got two numbers"):
        b.add(1.0, 2.0)


def test_conj_and_real_of_a_real_value_are_the_value() -> None:
    assert b.conj(X) is X
    assert b.real(X) is X
    assert b.conj(Z) is apply("conj", Z)
    assert b.real(Z) is apply("real", Z)


def test_polar_is_spelled_with_real_functions() -> None:
    parts = apply("mul", X, apply("cos", X)), apply("mul", X, apply("sin", X))
    assert b.polar(X, X) is apply("complex", *parts)


def test_build_needs_every_next() -> None:
    build = ProgramBuilder(2)
    build.input("x", Vector("f64"))
    build.carry("state", Vector("f64"))
    build.final("last", "state")
    with pytest.raises(IRError, match=r"carry %state has no next value; call next\('state'"):
        build.build()


def test_next_and_final_name_a_carry() -> None:
    build = ProgramBuilder(2)
    with pytest.raises(IRError, match="%x is not a carry"):
        build.next("x", X)
    with pytest.raises(IRError, match="%x is not a carry"):
        build.final("last", "x")


def test_carry_is_declared_once() -> None:
    build = ProgramBuilder(2)
    build.carry("state", Vector("f64"))
    with pytest.raises(IRError, match="carry %state is declared twice"):
        build.carry("state", Vector("f64"), "one")


def test_carry_starts_from_an_input() -> None:
    with pytest.raises(IRError, match="carry %state can start from a row input, not from neg"):
        ProgramBuilder(2).carry("state", Vector("f64"), b.neg(X))


def test_build_verifies() -> None:
    build = ProgramBuilder(0)
    build.emit("y", build.input("x", Vector("f64")))
    with pytest.raises(VerificationError, match="the state size must be at least 1, not 0"):
        build.build()
