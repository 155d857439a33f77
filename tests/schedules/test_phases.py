"""Phases: every value in exactly one, and none later than what reads it there."""

from hypothesis import given

from pdssm_compiler.ir import Program, ProgramBuilder
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.types import Vector
from pdssm_compiler.ir.value import topological
from pdssm_compiler.schedules.emit.phases import phases_of
from tests.strategies import programs


@given(programs())
def test_a_body_is_sorted_into_phases(program: Program) -> None:
    phases = phases_of(program)
    order = [phases.fixed, phases.ahead, phases.turn, phases.behind]
    assert sorted(map(id, program.body)) == sorted(id(value) for part in order for value in part)
    phase = {value: number for number, part in enumerate(order) for value in part}
    for value, number in phase.items():
        assert all(phase[arg] <= number for arg in value.args)
    needed = set(topological(carry.next for carry in program.carries))
    assert all(value in needed or value.op == "carry" for value in phases.turn)
    leaves = {value for value in phases.fixed if value.op == "input"}
    assert all(program.input(leaf.name).role in ("head", "row") for leaf in leaves)


def test_only_what_takes_turns_is_in_a_turn() -> None:
    build = ProgramBuilder(4)
    vector = Vector("f32")
    x, gain = build.input("x", vector), build.input("gain", vector, "head")
    state = build.carry("state", vector)
    scaled, slope = b.mul(x, gain), b.function("exp", gain)
    after = b.add(b.mul(scaled, state), x)
    build.next("state", after)
    read_out = b.function("tanh", after)
    build.emit("y", read_out)
    build.emit("z", slope)
    phases = phases_of(build.build())
    assert set(phases.fixed) == {gain, slope}
    assert set(phases.ahead) == {x, scaled}
    assert set(phases.turn) == {state, b.mul(scaled, state), after}
    assert phases.behind == (read_out,)
    assert set(phases.read(phases.turn, (after,))) == {scaled, x}
