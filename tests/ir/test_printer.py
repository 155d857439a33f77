"""The printer: the text form reads back to the same program."""

from hypothesis import given

from pdssm_compiler.ir import Program, ProgramBuilder, parse_program, print_program
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.passes import adjoint, specialise, summarise
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.ir.types import Index, Map, Vector
from tests.strategies import affine_programs, pd_specs, programs


def assert_round_trip(program: Program) -> None:
    text = print_program(program)
    again = parse_program(text)
    assert again == program
    assert print_program(again) == text


@given(programs(starts=("zero", "one", "input")))
def test_round_trip_of_random_programs(program: Program) -> None:
    assert_round_trip(program)


@given(programs(precision=32))
def test_round_trip_of_adjoints(program: Program) -> None:
    derived = adjoint(program)
    assert_round_trip(derived.forward)
    assert_round_trip(derived.program)


@given(affine_programs())
def test_round_trip_of_summaries(program: Program) -> None:
    summary = summarise(program)
    for part in (summary.fold, summary.combine, summary.apply):
        assert_round_trip(part)


@given(pd_specs())
def test_round_trip_of_specialised_pd_scans(spec: PdScan) -> None:
    assert_round_trip(pd_scan(spec))
    assert_round_trip(specialise(pd_scan(spec)))


def test_every_clause_is_printed() -> None:
    build = ProgramBuilder(4, "backward", chunk_length=8)
    x = build.input("x", Vector("c64"), storage="cb32")
    p = build.input("p", Map("permutation"), "row", "u8")
    start = build.input("start", Vector("c64"), "row")
    state = build.carry("state", Vector("c64"), start)
    moved = b.gather(b.mul(state, -0.0), p)
    build.next("state", b.add(moved, x))
    build.emit("y", moved, "c32")
    build.final("last", "state", "c128")
    build.sum("total", x)
    build.sum("by_kind", b.real(moved), build.input("kind", Index(3), storage="u8"))
    build.check("p", "permutation", b.compose(p, b.invert(p)))
    program = build.build()
    assert_round_trip(program)
    assert print_program(program) == (
        "scan N=4 backward chunk=8\n"
        "input %kind : token index<3> as u8\n"
        "input %p : row map<permutation> as u8\n"
        "input %start : row vec<c64>\n"
        "input %x : token vec<c64> as cb32\n"
        "carry %state : vec<c64> = %start\n"
        "body {\n"
        "  %0 = constant value=-0.0, element='f32' : f32\n"
        "  %1 = broadcast %0 : vec<f32>\n"
        "  %2 = mul %state, %1 : vec<c64>\n"
        "  %3 = gather %2, %p : vec<c64>\n"
        "  %4 = add %3, %x : vec<c64>\n"
        "  %5 = real %3 : vec<f32>\n"
        "  %6 = invert %p : map<permutation>\n"
        "  %7 = compose %p, %6 : map<permutation>\n"
        "  check %7 for %p permutation\n"
        "  next %state = %4\n"
        "  emit %y = %3 as c32\n"
        "  sum %by_kind = %5 by %kind\n"
        "  sum %total = %x\n"
        "}\n"
        "final %last = %state as c128\n"
    )
