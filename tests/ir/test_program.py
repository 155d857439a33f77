"""Programs: equal computations are equal programs with equal fingerprints."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdssm_compiler.ir import Program, ProgramBuilder, parse_program
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.program import Input, SumOutput, TokenOutput, zero_like
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.ir.types import Map, Scalar, Vector
from tests.strategies import programs

BASE = pd_scan(PdScan(4, 3, initial_state=True, final_state=True))


def shuffled(text: str, random: st.DataObject) -> str:
    """The same text with its declarations, and its body as far as it may, in another order."""
    header, *lines = text.splitlines()
    body = [line for line in lines if line.startswith("  %")]
    ends = [line for line in lines if line.startswith(("  next", "  emit", "  sum", "  check"))]
    declared = [line for line in lines if line.startswith(("input", "carry"))]
    finals = [line for line in lines if line.startswith("final")]
    ordered: list[str] = []
    defined: set[str] = set()
    while body:
        ready = [line for line in body if not _operands(line) - defined]
        line = random.draw(st.sampled_from(ready))
        body.remove(line)
        ordered.append(line)
        defined.add(line.split()[0])
    parts = [random.draw(st.permutations(part)) for part in (declared, ends, finals)]
    return "\n".join([header, *parts[0], "body {", *ordered, *parts[1], "}", *parts[2]])


def _operands(line: str) -> set[str]:
    """Names of the computed values a body line reads."""
    words = line.partition("=")[2].replace(",", " ").split()
    return {word for word in words if word[0] == "%" and word[1].isdigit()}


@given(programs(), st.data())
def test_building_order_leaves_no_trace(program: Program, data: st.DataObject) -> None:
    other = parse_program(shuffled(program.text, data))
    assert other == program
    assert hash(other) == hash(program)
    assert other.text == program.text
    assert other.fingerprint == program.fingerprint


def test_order_of_declaration_and_of_unused_work_leaves_no_trace() -> None:
    def build(names: str, *, waste: bool) -> Program:
        build = ProgramBuilder(3)
        x, y = (build.input(name, Vector("f32")) for name in names)
        x, y = (x, y) if names == "xy" else (y, x)
        if waste:
            b.function("exp", b.mul(x, y))
        build.emit("sum", b.add(x, y))
        return build.build()

    assert build("xy", waste=False) == build("yx", waste=True)


def _with_output(value_of_zero: float) -> Program:
    output = TokenOutput("extra", b.broadcast(b.constant(value_of_zero)))
    return replace(BASE, token_outputs=(*BASE.token_outputs, output))


DIFFERENT = {
    "size": replace(BASE, state_size=5),
    "direction": replace(BASE, direction="backward"),
    "chunk": replace(BASE, chunk_length=16),
    "other chunk": replace(BASE, chunk_length=17),
    "class": pd_scan(PdScan(4, 3, map_class="permutation", initial_state=True, final_state=True)),
    "dictionary": pd_scan(PdScan(4, 2, initial_state=True, final_state=True)),
    "orientation": pd_scan(PdScan(4, 3, orientation="row", initial_state=True, final_state=True)),
    "input storage": replace(
        BASE,
        inputs=tuple(replace(i, storage="c32") if i.name == "drive" else i for i in BASE.inputs),
    ),
    "output storage": replace(
        BASE, token_outputs=tuple(replace(o, storage="c32") for o in BASE.token_outputs)
    ),
    "final storage": replace(
        BASE, final_outputs=tuple(replace(f, storage="c32") for f in BASE.final_outputs)
    ),
    "no final": replace(BASE, final_outputs=()),
    "sum": replace(BASE, sum_outputs=(SumOutput("sum", BASE.input("drive").value),)),
    "sum by an index": replace(
        BASE,
        sum_outputs=(SumOutput("sum", BASE.input("drive").value, BASE.input("selection").value),),
    ),
    "start": pd_scan(PdScan(4, 3, final_state=True)),
    "one": replace(BASE, carries=tuple(replace(c, start="one") for c in BASE.carries)),
    "zero": _with_output(0.0),
    "minus zero": _with_output(-0.0),
    "base": BASE,
}


def test_different_programs_have_different_fingerprints() -> None:
    for part in ("text", "fingerprint"):
        assert len({getattr(program, part) for program in DIFFERENT.values()}) == len(DIFFERENT)
    assert len(set(DIFFERENT.values())) == len(DIFFERENT)


def test_fingerprint_is_the_hash_of_the_text() -> None:
    assert len(BASE.fingerprint) == 64
    assert parse_program(BASE.text).fingerprint == BASE.fingerprint
    assert str(BASE) == BASE.text


def test_input_and_carry_by_name() -> None:
    assert BASE.input("drive").type == Vector("c64")
    assert BASE.carry("state").start_input == "initial_state"
    with pytest.raises(KeyError):
        BASE.input("state")
    with pytest.raises(KeyError):
        BASE.carry("drive")


def test_storage_follows_the_type_unless_said() -> None:
    assert Input("x", Scalar("f64")).storage == "f64"
    assert Input("p", Map()).storage == "i32"
    assert Input("x", Scalar("f32"), storage="bf16").storage == "bf16"


@pytest.mark.parametrize("type_", [Scalar("f32"), Vector("f64"), Scalar("c128"), Vector("c64")])
def test_zero_like(type_: Scalar | Vector) -> None:
    zero = zero_like(type_)
    assert zero.type == type_
    assert zero is zero_like(type_)
