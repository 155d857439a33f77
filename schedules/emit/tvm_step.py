"""Bodies that run tokens of a row, on the lanes of a team of warps, with nothing prepared.

Everything is read where it is when it is needed: for one token, a ring or prepared tables would
take longer than the token.
"""

from collections.abc import Callable

from pdssm_compiler.ir.passes import computed_inverses
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import Index
from pdssm_compiler.ir.value import Value
from pdssm_compiler.schedules.emit.lane_body import MOST_STATES
from pdssm_compiler.schedules.emit.tvm import TvmBody
from pdssm_compiler.schedules.emit.tvm_lanes import TvmLanes
from pdssm_compiler.schedules.signature import Argument, Signature
from pdssm_compiler.schedules.source import Writer

# The bits of the infinity of each storage of logits.
_INFINITY = {"f16": "31744", "bf16": "32640"}


class StepLanes(TvmLanes):
    """See the module's text; ``rows`` of a block, numbered by what text calls ``team``."""

    def __init__(self, program: Program, writer: Writer, *, rows: int, team: int) -> None:
        super().__init__(
            computed_inverses(program),
            writer,
            # What is reported is numbered as the runtime knows the program.
            signature=Signature(program),
            tile=1,
            ring=0,
            sets=0,
            warps=rows * team,
            team=team,
            teams=rows,
            copies=2 if program.state_size <= MOST_STATES else 1,
            tables=0,
        )
        self.held = None

    @property
    def streamed(self) -> list[Argument]:
        return []

    @property
    def indices(self) -> list[Value]:
        return []

    def _is_streamed(self, argument: Argument) -> bool:
        return False

    def _index(self, value: Value) -> None:
        argument = self._argument(value.name)
        if not argument.logits:
            TvmBody._index(self, value)
            return
        # As wide as an index that is read, so that what is out of range is reported alike.
        first = self._tensor(argument, ["b", "t", "h"], ["0"])
        bound, infinity = value.type.bound, _INFINITY[argument.storage]  # type: ignore[union-attr]
        given = (f"T.address_of({first})", str(bound), infinity, "lane")
        found = self._called("lane_largest", *given, dtype="int32")
        self._local(f"{value.name}_chosen", "int32", 1)
        self.writer.line(f"{value.name}_chosen[0] = {found}")
        self._checked_index(value, f"{value.name}_chosen[0]")

    def _checked_in(self, stage: int) -> list[tuple[str, str, Callable[[], str]]]:
        """Entries of tables are checked where they are used."""
        found = super()._checked_in(stage)
        for value in self.selects:
            table, index = value.args
            if stage == self.stages.computed[value] and self._is_from_outside(table.name):

                def raw(name: str = table.name, index: Value = index) -> str:
                    (k,) = self.known[index]
                    place = self._tensor(self._argument(name), ["h"], [k, "j"])
                    wide = f"T.Cast('uint64', {place})"
                    return f"T.Cast('uint32', T.min({wide}, T.uint64(4294967295)))"

                found.append((table.name, "range", raw))
        return found

    def _is_from_outside(self, name: str) -> bool:
        """A table of inverses is the table itself here."""
        return True

    def _reported_at(self, subject: str) -> str:
        """Of a map of a table that is inverted here: its number, then the head."""
        if self.program.input(subject).inverse_of is None:
            return super()._reported_at(subject)
        index = next(v.args[1] for v in self.selects if v.args[0].name == subject)
        (k,) = self.known[index]
        return f"T.Cast('int64', {k}) * H + h"

    def needs_worst(self) -> bool:
        """Whether anything is checked."""
        read = any(isinstance(value.type, Index) for value in self.program.body)
        return read or bool(self.signature.checks)
