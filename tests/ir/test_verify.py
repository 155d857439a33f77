"""The verifier: one breach a test, and what it says about it."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from pdssm_compiler.ir import Program, ProgramBuilder, VerificationError, verify
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.program import (
    Carry,
    Check,
    FinalOutput,
    Input,
    SumOutput,
    TokenOutput,
    carry_leaf,
)
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.ir.types import Index, Map, Scalar, Table, Type, Vector
from pdssm_compiler.ir.value import intern

BASE = pd_scan(PdScan(4, 3, initial_state=True, final_state=True))
C64 = Vector("c64")
DRIVE = BASE.input("drive").value
STATE = BASE.carry("state")
ROW = Input("row", C64, "row")


def with_inputs(*inputs: Input) -> Program:
    return replace(BASE, inputs=(*BASE.inputs, *inputs))


def with_input_changed(name: str, **changes: object) -> Program:
    changed = (replace(i, **changes) if i.name == name else i for i in BASE.inputs)
    return replace(BASE, inputs=tuple(changed))


def with_outputs(*outputs: TokenOutput) -> Program:
    return replace(BASE, token_outputs=(*BASE.token_outputs, *outputs))


def with_finals(*finals: FinalOutput) -> Program:
    return replace(BASE, final_outputs=(*BASE.final_outputs, *finals))


def with_state(**changes: object) -> Program:
    return replace(BASE, carries=(replace(STATE, **changes),))


def with_carry(type_: Type, start: str, next_type: Type | None = None) -> Program:
    """A second carry, whose next value is an input of a type (or itself)."""
    source = Input("m", type_ if next_type is None else next_type)
    carry = Carry("other", type_, start, source.value)
    return replace(BASE, inputs=(*BASE.inputs, source), carries=(STATE, carry))


BREACHES: dict[str, tuple[Callable[[], Program], str]] = {
    # _sizes
    "state size": (
        lambda: replace(BASE, state_size=0),
        "the state size must be at least 1, not 0",
    ),
    "chunk length": (
        lambda: replace(BASE, chunk_length=0),
        "the chunk length must be at least 1, not 0",
    ),
    "direction": (
        lambda: replace(BASE, direction="sideways"),
        "the direction is forward or backward, not 'sideways'",
    ),
    "index bound": (
        lambda: with_inputs(Input("k", Index(0))),
        "%k: an index needs a bound of at least 1, not 0",
    ),
    "table size": (
        lambda: with_inputs(Input("t", Table(0), "head")),
        "%t: a table needs at least 1 map, not 0",
    ),
    # _names
    "input twice": (
        lambda: with_inputs(Input("drive", C64)),
        "%drive is declared twice",
    ),
    "input and carry": (
        lambda: with_inputs(Input("state", C64)),
        "%state is declared twice",
    ),
    "outputs twice": (
        lambda: with_finals(FinalOutput("states", "state", "c64")),
        "%states is declared twice",
    ),
    "name": (
        lambda: with_inputs(Input("2x", C64)),
        "'2x' is not a name (letters, digits and _, not starting with a digit)",
    ),
    "output name": (
        lambda: with_outputs(TokenOutput("the state", DRIVE)),
        "'the state' is not a name (letters, digits and _, not starting with a digit)",
    ),
    # _storages
    "number as index": (
        lambda: with_input_changed("drive", storage="i32"),
        "%drive: vec<c64> cannot be stored as i32",
    ),
    "complex as real": (
        lambda: with_outputs(TokenOutput("y", DRIVE, "f32")),
        "%y: vec<c64> cannot be stored as f32",
    ),
    "real as complex": (
        lambda: with_inputs(Input("r", Scalar("f32"), storage="c64")),
        "%r: f32 cannot be stored as c64",
    ),
    "index as number": (
        lambda: with_input_changed("selection", storage="f32"),
        "%selection: index<3> cannot be stored as f32",
    ),
    "unknown storage": (
        lambda: with_finals(FinalOutput("last", "state", "c256")),
        "%last: vec<c64> cannot be stored as c256",
    ),
    "final of no carry": (
        lambda: with_finals(FinalOutput("last", "drive", "c64")),
        "%last ends %drive, which is not a carry",
    ),
    # _roles
    "role": (
        lambda: with_inputs(Input("r", C64, "batch")),
        "%r has the unknown role 'batch'",
    ),
    "token table": (
        lambda: with_inputs(Input("t", Table(3), "token")),
        "%t is a table, and a table belongs to a head, not to a token",
    ),
    "lagged map": (
        lambda: with_inputs(Input("p", Map(), "lagged")),
        "%p is lagged, and only numbers are saved for an adjoint",
    ),
    "boundary of a token input": (
        lambda: with_input_changed("drive", boundary="initial_state"),
        "%drive has a boundary, which only a lagged input has",
    ),
    "boundary of another type": (
        lambda: with_inputs(Input("s", Vector("f32"), "lagged", boundary="initial_state")),
        "%s: its boundary %initial_state is not a row input of type vec<f32>",
    ),
    "boundary of another role": (
        lambda: with_inputs(Input("s", C64, "lagged", boundary="drive")),
        "%s: its boundary %drive is not a row input of type vec<c64>",
    ),
    "no boundary": (
        lambda: with_inputs(Input("s", C64, "lagged", boundary="nowhere")),
        "%s: its boundary %nowhere is not a row input of type vec<c64>",
    ),
    "inverse of no table": (
        lambda: with_inputs(Input("t", Table(3), "head", inverse_of="drive")),
        "%t: its source %drive is not a table of type table<3, general>",
    ),
    "inverse of another table": (
        lambda: with_inputs(Input("t", Table(2), "head", inverse_of="dictionary")),
        "%t: its source %dictionary is not a table of type table<2, general>",
    ),
    "no token input": (
        lambda: Program(4, (ROW,), (), (TokenOutput("y", ROW.value),)),
        "no token input, so the number of tokens is unknown",
    ),
    # _carries
    "carried index": (
        lambda: with_carry(Index(3), "zero"),
        "%other: a carry holds numbers or a map, not index<3>",
    ),
    "next type": (
        lambda: with_state(next=b.real(STATE.next)),
        "%state is vec<c64> and its next value vec<f32>",
    ),
    "stronger promise": (
        lambda: with_carry(Map("permutation"), "identity", Map("general")),
        "%other is map<permutation> and its next value map<general>",
    ),
    "start is no input": (
        lambda: with_state(start="%nowhere"),
        "%state starts from %nowhere, which is not a row input of vec<c64>",
    ),
    "start is a token input": (
        lambda: replace(with_inputs(Input("t", C64)), carries=(replace(STATE, start="%t"),)),
        "%state starts from %t, which is not a row input of vec<c64>",
    ),
    "one start for two": (
        lambda: replace(BASE, carries=(STATE, Carry("other", C64, "%initial_state", STATE.next))),
        "%initial_state starts two carries",
    ),
    "start": (
        lambda: with_state(start="two"),
        "%state starts from 'two'; use zero, one, identity or a row input",
    ),
    "number from identity": (
        lambda: with_state(start="identity"),
        "%state is vec<c64> and cannot start from identity",
    ),
    "map from zero": (
        lambda: with_carry(Map(), "zero"),
        "%other is map<general> and cannot start from zero",
    ),
    # _body
    "op": (
        lambda: with_outputs(TokenOutput("y", intern("warp", (), (), C64))),
        "unknown op 'warp'",
    ),
    "undeclared input": (
        lambda: with_outputs(TokenOutput("y", Input("z", C64).value)),
        "the body reads %z : vec<c64>, which is not declared so",
    ),
    "input of another type": (
        lambda: with_outputs(TokenOutput("y", Input("drive", Vector("f32")).value)),
        "the body reads %drive : vec<f32>, which is not declared so",
    ),
    "undeclared carry": (
        lambda: with_outputs(TokenOutput("y", carry_leaf("drive", C64))),
        "the body reads %drive : vec<c64>, which is not declared so",
    ),
    "read start": (
        lambda: with_outputs(TokenOutput("y", BASE.input("initial_state").value)),
        "the body reads %initial_state, which only starts a carry",
    ),
    "emitted index": (
        lambda: with_outputs(TokenOutput("y", BASE.input("selection").value)),
        "%y: cannot emit index<3>",
    ),
    "emitted table": (
        lambda: with_outputs(TokenOutput("y", BASE.input("dictionary").value)),
        "%y: cannot emit table<3, general>",
    ),
    "sum of an index": (
        lambda: replace(BASE, sum_outputs=(SumOutput("y", BASE.input("selection").value),)),
        "%y: cannot sum index<3>",
    ),
    "sum by a number": (
        lambda: replace(BASE, sum_outputs=(SumOutput("y", DRIVE, DRIVE),)),
        "%y: a sum is by an index, not by vec<c64>",
    ),
    "sum by an undeclared index": (
        lambda: replace(BASE, sum_outputs=(SumOutput("y", DRIVE, Input("k", Index(2)).value),)),
        "the body reads %k : index<2>, which is not declared so",
    ),
    "sum named like an output": (
        lambda: replace(BASE, sum_outputs=(SumOutput("states", DRIVE),)),
        "%states is declared twice",
    ),
    "check of a number": (
        lambda: replace(BASE, checks=(Check("dictionary", "permutation", DRIVE),)),
        "a check needs a map, not vec<c64>",
    ),
    "check for nothing": (
        lambda: replace(BASE, checks=(Check("p", "permutation", b.iota()),)),
        "a check is for %p, which is not an input",
    ),
    "promise": (
        lambda: replace(BASE, checks=(Check("dictionary", "a bijection", b.iota()),)),
        "a check's promise 'a bijection' is not a name",
    ),
    "nothing": (
        lambda: replace(BASE, token_outputs=(), final_outputs=()),
        "the program has no output and no check",
    ),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_breach(breach: str) -> None:
    build, message = BREACHES[breach]
    with pytest.raises(VerificationError) as caught:
        verify(build())
    assert str(caught.value) == message


def test_all_breaches_are_listed() -> None:
    with pytest.raises(VerificationError) as caught:
        verify(replace(BASE, state_size=0, direction="up", chunk_length=-1))
    assert str(caught.value) == (
        "the state size must be at least 1, not 0; the chunk length must be at least 1, not -1; "
        "the direction is forward or backward, not 'up'"
    )


def test_a_promise_may_be_weakened_by_carrying_on() -> None:
    verify(with_carry(Map("general"), "identity", Map("permutation")))


def test_a_sum_is_enough_of_a_result() -> None:
    build = ProgramBuilder(4)
    build.sum("y", build.input("x", C64))
    verify(build.build())


def test_a_check_is_enough_of_a_result() -> None:
    build = ProgramBuilder(4)
    build.check("p", "identity", build.input("p", Map()))
    verify(build.build())
