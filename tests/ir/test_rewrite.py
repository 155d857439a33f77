"""``rewrite`` and its parts: rebuilding a program around new values."""

import pytest
from hypothesis import given

from pdssm_compiler.ir import Program, ProgramBuilder
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.passes.adjoint import adjoint
from pdssm_compiler.ir.passes.rewrite import prune, rewrite, substitute
from pdssm_compiler.ir.passes.specialise import specialise
from pdssm_compiler.ir.program import Input
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.ir.types import Vector
from pdssm_compiler.ir.value import Value
from tests.strategies import programs

VECTOR = Vector("f64")


@given(programs())
def test_rewrite_by_no_rule_only_prunes(program: Program) -> None:
    assert rewrite(program, ()) == prune(program)


def test_rewrite_goes_on_until_no_rule_applies() -> None:
    build = ProgramBuilder(2)
    value = build.input("x", VECTOR)
    for _ in range(6):
        value = b.function("exp", value)
    build.emit("y", value)

    def log_of_exp(found: Value) -> Value | None:
        return b.function("log", found.args[0]) if found.op == "exp" else None

    def shorten(found: Value) -> Value | None:
        nested = found.op == "log" and found.args[0].op == "log"
        return found.args[0].args[0] if nested else None

    result = rewrite(build.build(), (log_of_exp, shorten))
    assert [value.op for value in result.body] == ["input"]


def test_substitute_replaces_leaves_and_keeps_what_has_none() -> None:
    x, y, z = (Input(name, VECTOR).value for name in "xyz")
    root, other = b.neg(b.mul(x, y)), b.neg(y)
    new = substitute([root, other], {x: z})
    assert new[root] is b.neg(b.mul(z, y))
    assert new[other] is other


def test_prune_drops_what_no_result_needs() -> None:
    build = ProgramBuilder(2)
    x = build.input("x", VECTOR)
    build.input("idle", VECTOR)
    start = build.input("start", VECTOR, "row")
    alive, fed = build.carry("alive", VECTOR), build.carry("fed", VECTOR)
    dead, looped = build.carry("dead", VECTOR, start), build.carry("looped", VECTOR)
    build.next("alive", b.add(fed, x))
    build.next("fed", b.add(alive, x))
    build.next("dead", b.add(b.add(dead, looped), alive))
    build.next("looped", b.add(dead, looped))
    build.final("last", "alive")
    pruned = prune(build.build())
    assert [carry.name for carry in pruned.carries] == ["alive", "fed"]
    assert [input_.name for input_ in pruned.inputs] == ["x"]


def test_prune_keeps_a_token_input_for_the_number_of_tokens() -> None:
    build = ProgramBuilder(2)
    build.input("x", VECTOR)
    build.input("z", VECTOR)
    row = build.input("row", VECTOR, "row")
    build.emit("y", row)
    assert [input_.name for input_ in prune(build.build()).inputs] == ["row", "x"]


@pytest.mark.parametrize("kept", ["dictionary", "initial_state"])
def test_prune_keeps_what_inputs_need_in_turn(kept: str) -> None:
    program = pd_scan(PdScan(3, 2, map_class="permutation", initial_state=True))
    if kept == "dictionary":
        program = specialise(program)
        assert program.input("dictionary_inverse").inverse_of == kept
    else:
        program = adjoint(program).program
        assert program.input("saved_state").boundary == kept
    assert kept in [input_.name for input_ in prune(program).inputs]
    assert prune(program) == program
