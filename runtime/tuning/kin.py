"""Programs that a log of another program speaks for as well.

What integers are stored as, and what happens before the first token and after the last one,
changes nothing of which schedule is fast. So a scan whose maps are int64, or which starts from a
state, takes what was measured for int32 without states at its ends.
"""

from dataclasses import replace
from functools import lru_cache

from pdssm_compiler.ir.program import Carry, Input, Program
from pdssm_compiler.ir.types import is_numeric


@lru_cache(maxsize=1024)
def kin(program: Program) -> tuple[tuple[Program, str], ...]:
    """The programs whose logs speak for a specialised one if its own has nothing, the most alike
    first, each with what tells it from the program.
    """
    found = {program.fingerprint: ("", program)}
    for told, other in (
        ("with int32 maps", _as_int32(program)),
        ("without states at its ends", _without_ends(program)),
        ("with int32 maps and without states at its ends", _as_int32(_without_ends(program))),
    ):
        found.setdefault(other.fingerprint, (told, other))
    return tuple((other, told) for told, other in found.values() if told)


def _as_int32(program: Program) -> Program:
    inputs = [i if is_numeric(i.type) else replace(i, storage="i32") for i in program.inputs]
    return replace(program, inputs=tuple(inputs))


def _without_ends(program: Program) -> Program:
    """The program from zero, without final outputs where it has others."""
    ends = {carry.start_input for carry in program.carries} - {None}
    ends |= {i.boundary for i in program.inputs} - {None}
    carries: list[Carry] = [
        replace(carry, start="zero") if carry.start_input is not None else carry
        for carry in program.carries
    ]
    inputs: list[Input] = [replace(i, boundary=None) for i in program.inputs if i.name not in ends]
    finals = () if program.token_outputs else program.final_outputs
    return replace(program, inputs=tuple(inputs), carries=tuple(carries), final_outputs=finals)
