"""``hoist``: what helpers compute first, and what is left, give what the program gives."""

import numpy as np
import pytest
from hypothesis import given

from pdssm_compiler.ir import Program, ProgramBuilder, interpret
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.ops import apply
from pdssm_compiler.ir.ops.elementwise import FUNCTIONS
from pdssm_compiler.ir.passes import adjoint, hoist
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.ir.types import Vector
from pdssm_compiler.schedules.emit.tvm import DIALECT
from tests.expressions import CASES
from tests.expressions import programs as fused
from tests.ir.agreement import assert_close
from tests.strategies import Sizes, arrays_for, programs, seeds

SIZES = Sizes(2, 7, 3)


def in_two(program: Program, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of the two, one after the other."""
    hoisted = hoist(program)
    assert hoisted is not None
    assert not hoisted.early.carries
    early = interpret(hoisted.early, {i.name: arrays[i.name] for i in hoisted.early.inputs})
    assert tuple(sorted(early)) == tuple(sorted(hoisted.names))
    given_ = {**arrays, **early}
    return interpret(hoisted.late, {i.name: given_[i.name] for i in hoisted.late.inputs})


@given(programs(), seeds())
def test_any_program(program: Program, seed: int) -> None:
    derived = adjoint(program)
    for each in (derived.forward, derived.program):
        if hoist(each) is not None:
            arrays = arrays_for(each, SIZES, seed)
            want, got = interpret(each, arrays), in_two(each, arrays)
            assert want.keys() == got.keys()
            assert_close(got, want)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fused_scans(case: object) -> None:
    """What is left has no function of a token's own inputs."""
    for program in fused(case):
        hoisted = hoist(program)
        if hoisted is not None:
            assert hoist(hoisted.late) is None
            arrays = arrays_for(program, SIZES, 3)
            assert_close(in_two(program, arrays), interpret(program, arrays))


def test_a_diagonal_from_logits_is_handed_over_whole() -> None:
    """One complex number, where its three functions would be three real ones."""
    build = ProgramBuilder(4)
    carry = build.carry("state", Vector("c64"))
    size = apply("sigmoid", build.input("magnitude", Vector("f32")))
    phase = apply("sigmoid", build.input("phase", Vector("f32")))
    diagonal = b.complex_(b.mul(size, apply("cos", phase)), b.mul(size, apply("sin", phase)))
    following = b.add(b.mul(diagonal, carry), build.input("drive", Vector("c64")))
    build.next("state", following)
    build.emit("states", following)
    hoisted = hoist(build.build())
    assert hoisted is not None
    assert [out.value for out in hoisted.early.token_outputs] == [diagonal]
    assert [i.name for i in hoisted.early.inputs] == ["magnitude", "phase"]
    assert [i.name for i in hoisted.late.inputs] == ["drive", "early_0"]


def test_nothing_to_hand_over() -> None:
    program = pd_scan(PdScan(4, 3))
    assert hoist(program) is None
    assert hoist(adjoint(program, surrogate="active").program) is None


def test_every_function_is_known() -> None:
    assert set(DIALECT.functions) == FUNCTIONS
