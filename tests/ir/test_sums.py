"""``carried_sums``: sums by no index as carries."""

from dataclasses import replace

from hypothesis import given

from pdssm_compiler.ir import Program, ProgramBuilder, interpret
from pdssm_compiler.ir.passes import carried_sums
from pdssm_compiler.ir.types import Index, Vector
from tests.ir.agreement import assert_close
from tests.strategies import Sizes, arrays_for, programs, seeds, sizes


@given(programs(), sizes(), seeds())
def test_random_programs(program: Program, shape: Sizes, seed: int) -> None:
    carried = carried_sums(program)
    assert all(total.index is not None for total in carried.sum_outputs)
    arrays = arrays_for(program, shape, seed)
    assert_close(interpret(carried, arrays), interpret(program, arrays))


def test_what_becomes_of_sums() -> None:
    build = ProgramBuilder(2)
    x, k = build.input("x", Vector("f64")), build.input("k", Index(3))
    other = build.carry("sum_y", Vector("f64"))
    build.next("sum_y", other)
    build.sum("y", x)
    build.sum("z", x, k)
    program = carried_sums(build.build())
    assert [(f.name, f.carry) for f in program.final_outputs] == [("y", "sum_y_")]
    assert program.carry("sum_y_").start == "zero"
    assert [s.name for s in program.sum_outputs] == ["z"]


@given(programs())
def test_a_program_without_such_sums_stays_as_it_is(program: Program) -> None:
    by_an_index = [total for total in program.sum_outputs if total.index is not None]
    kept = replace(program, sum_outputs=tuple(by_an_index))
    assert carried_sums(kept) is kept
