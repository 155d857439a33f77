"""Bodies that run a few tokens of a row, on the lanes of a warp, with nothing prepared.

Everything is read where it is when it is needed: for one token, a ring or prepared tables would
take longer than the token.
"""

from collections.abc import Callable

from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import Index
from pdssm_compiler.ir.value import Value
from pdssm_compiler.schedules.emit.arithmetic import Parts
from pdssm_compiler.schedules.emit.tvm import TvmBody
from pdssm_compiler.schedules.emit.tvm_lanes import TvmLanes
from pdssm_compiler.schedules.signature import Argument, needs_range_check
from pdssm_compiler.schedules.source import Writer


class StepLanes(TvmLanes):
    """See the module's text; ``warps`` rows a block, ``team`` numbers them."""

    def __init__(self, program: Program, writer: Writer, *, warps: int) -> None:
        super().__init__(program, writer, tile=1, ring=0, warps=warps, teams=warps)
        self.held = None

    @property
    def streamed(self) -> list[Argument]:
        return []

    @property
    def indices(self) -> list[Value]:
        return []

    @property
    def _tables(self) -> dict[str, bool]:
        return {}

    def _exchanged(self) -> set[Value]:
        moved = {v.args[0] for v in self.program.body if v.op in ("gather", "compose")}
        return {value for value in moved if not self._everywhere(value)}

    def _collects_any(self) -> list[Value]:
        return [value for value in self.program.body if value.op == "scatter_add"]

    def _collect(self, value: Value, j: str) -> None:
        self.known[value] = self._array_places(value, j)

    def _is_streamed(self, argument: Argument) -> bool:
        return False

    def _index(self, value: Value) -> None:
        TvmBody._index(self, value)

    def _at(self, value: Value, i: str) -> Parts:
        return TvmBody._at(self, value, i) if value.op == "select" else super()._at(value, i)

    def _checked_in(self, stage: int) -> list[tuple[str, str, Callable[[], str]]]:
        """Entries of tables are checked where they are used."""
        found = super()._checked_in(stage)
        for value in self.selects:
            table, index = value.args
            if stage == self.stages.computed[value] and needs_range_check(
                self.program.input(table.name)
            ):

                def raw(name: str = table.name, index: Value = index) -> str:
                    (k,) = self.known[index]
                    place = self._tensor(self._argument(name), ["h"], [k, "j"])
                    wide = f"T.Cast('uint64', {place})"
                    return f"T.Cast('uint32', T.min({wide}, T.uint64(4294967295)))"

                found.append((table.name, "range", raw))
        return found

    def needs_worst(self) -> bool:
        """Whether anything is checked."""
        read = any(isinstance(value.type, Index) for value in self.program.body)
        return read or bool(self.signature.checks)
