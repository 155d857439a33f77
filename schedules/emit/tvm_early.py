"""A body that computes ahead what a token needs no carry for, on the lanes of a warp.

It reads a token's inputs in the slot of the ring that they came to, and leaves what it makes of
them beside them, where the warps that run the token take it for inputs.
"""

from typing import Any

from pdssm_compiler.ir.program import Program
from pdssm_compiler.schedules.emit.arithmetic import Parts
from pdssm_compiler.schedules.emit.tvm_lanes import TvmLanes
from pdssm_compiler.schedules.signature import Argument, Signature
from pdssm_compiler.schedules.source import Writer


class EarlyLanes(TvmLanes):
    """See the module's text; what it leaves are the token outputs of a program without carries."""

    def __init__(self, program: Program, writer: Writer, **row: Any) -> None:
        signature = Signature(program, reports=False)
        super().__init__(program, writer, sets=0, prefix="early_", signature=signature, **row)
        self.held = None

    def _store(self, argument: Argument, leading: list[str], j: str, parts: Parts) -> None:
        place = self._ring_place(argument, j)
        for number, part in enumerate(parts):
            to = self._part(place, number) if argument.complex else place
            self.writer.line(f"{to} = {part}")
