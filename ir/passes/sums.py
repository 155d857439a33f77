"""carried_sums: from sums over the tokens to carries that add them up.

before → after: ``sum %y = v`` → a carry that starts from zero, whose next value is itself plus
``v``, and the final output ``y``. A sum by an index stays as it is: no carry holds ``K`` values.
reason: code that runs a row's tokens in order keeps a sum like any other carry.
"""

from collections.abc import Collection
from dataclasses import replace

from pdssm_compiler.ir.ops import apply
from pdssm_compiler.ir.program import Carry, FinalOutput, Program, SumOutput, carry_leaf
from pdssm_compiler.ir.verify import verify


def carried_sums(program: Program, but: Collection[str] = ()) -> Program:
    """Sums that are by no index, as carries; those named in ``but`` stay as they are."""
    if all(_stays(total, but) for total in program.sum_outputs):
        return program
    taken = {i.name for i in program.inputs} | {carry.name for carry in program.carries}
    carries: list[Carry] = []
    finals: list[FinalOutput] = []
    kept: list[SumOutput] = []
    for total in program.sum_outputs:
        if _stays(total, but):
            kept.append(total)
            continue
        name = f"sum_{total.name}"
        while name in taken:
            name += "_"
        taken.add(name)
        type_ = total.value.type
        following = apply("add", carry_leaf(name, type_), total.value)
        carries.append(Carry(name, type_, "zero", following))
        finals.append(FinalOutput(total.name, name, total.storage))
    carried = replace(
        program,
        carries=(*program.carries, *carries),
        final_outputs=(*program.final_outputs, *finals),
        sum_outputs=tuple(kept),
    )
    verify(carried)
    return carried


def _stays(total: SumOutput, but: Collection[str]) -> bool:
    return total.index is not None or total.name in but
