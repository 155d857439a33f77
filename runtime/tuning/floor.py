"""The fewest bytes a call can move."""

from collections.abc import Sequence

import torch

from pdssm_compiler.ir.types import Type, Vector, is_number
from pdssm_compiler.runtime.binding import allocate, check
from pdssm_compiler.runtime.ops import slots_of
from pdssm_compiler.runtime.plan import caller_inputs, program_of
from pdssm_compiler.schedules.signature import Signature


def floor_bytes(text: str, tensors: Sequence[torch.Tensor]) -> int:
    """Each vector of numbers that a program is given, once, and each that it leaves, once. Maps,
    selections and what stands beside them (the active surrogate's scores and sums) are not
    counted.
    """
    program = program_of(text)
    slots, outputs = slots_of(text)
    sizes = check(slots, tensors)
    signature = Signature(program)
    # Sums come last, and are no floor's.
    written = (*signature.token_outputs, *signature.final_outputs)
    on_paper = [allocate(slot, sizes, torch.device("meta")) for slot in outputs]
    moved: list[tuple[Type, torch.Tensor]] = [
        *((i.type, t) for i, t in zip(caller_inputs(program), tensors, strict=True)),
        *((a.type, t) for a, t in zip(written, on_paper, strict=False)),
    ]
    return sum(t.nbytes for type_, t in moved if isinstance(type_, Vector) and is_number(type_))
