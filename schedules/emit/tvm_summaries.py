"""Bodies whose tokens are summaries of chunks, on the lanes of a team of warps.

One joins summaries that other teams have left in memory, one joins the team's own behind them; one
applies a summary that the team holds in registers to the carry before it.
"""

from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import Type
from pdssm_compiler.ir.value import Value
from pdssm_compiler.schedules.emit.arithmetic import Parts, part_names
from pdssm_compiler.schedules.emit.tvm_lanes import TvmLanes
from pdssm_compiler.schedules.signature import Argument, Signature, sorted_form
from pdssm_compiler.schedules.source import Writer


class JoinLanes(TvmLanes):
    """Joins summaries in global memory, ``tile`` of them read into registers together.

    Attributes:
        chunk: what generated text calls the chunk whose summary is summary ``u`` of the tile.
    """

    sums_runs_by = "lane_sum_runs_called"

    def __init__(
        self, program: Program, writer: Writer, *, tile: int, team: int, teams: int, rows: int = 1
    ) -> None:
        self.chunk = "chunk"
        super().__init__(
            program,
            writer,
            tile=tile,
            ring=0,
            team=team,
            teams=teams,
            rows=rows,
            prefix="joined_",
            signature=Signature(program, reports=False),
        )

    @property
    def _forms(self) -> dict[Value, tuple[Argument, Argument]]:
        """The sorted forms of the maps that something is scattered by."""
        return {
            value.args[1]: sorted_form(self._argument(value.args[1].name))
            for value in self.program.body
            if value.op == "scatter_add"
        }

    @property
    def streamed(self) -> list[Argument]:
        forms = [part for form in self._forms.values() for part in form]
        return [*super().streamed, *forms]

    @property
    def sorted_maps(self) -> dict[Value, Parts]:
        return {
            map_: self.from_row(*(f"{self._held_name(part.name, self.held)}[u]" for part in form))
            for map_, form in self._forms.items()
        }

    def _place(self, argument: Argument, j: str, t: str = "t") -> str:
        if self.held is not None and j == "j":
            return super()._place(argument, j, t)
        name, parts = argument.name, 2 if argument.complex else 1
        row = f"b * {name}_sB + {self.chunk} * {name}_sC + h * {name}_sH"
        return f"{name}[{row} + T.Cast('int64', {self.within(j)}) * {parts}]"


class HeldLanes(TvmLanes):
    """Takes one summary, which the carries of another body hold.

    Attributes:
        source: the prefix of that other body's names.
    """

    def __init__(
        self,
        program: Program,
        writer: Writer,
        *,
        prefix: str,
        source: str,
        team: int,
        teams: int,
        rows: int = 1,
    ) -> None:
        self.source = source
        super().__init__(
            program,
            writer,
            tile=1,
            ring=0,
            team=team,
            teams=teams,
            rows=rows,
            prefix=prefix,
            signature=Signature(program, reports=False),
        )

    @property
    def sorted_maps(self) -> dict[Value, Parts]:
        """Every summary's map is sorted where the summary is made."""
        places = tuple(f"{self.source}map_{part}[0]" for part in ("order", "last"))
        return {v.args[1]: places for v in self.program.body if v.op == "scatter_add"}

    def _load(self, name: str, j: str, type_: Type) -> Parts:
        summary = f"{self.source}summary_{name.removeprefix('chunk_')}"
        return tuple(f"{part}[e]" for part in part_names(summary, type_))


class ApplyLanes(HeldLanes):
    """Applies a summary to the kernel's own carry."""

    def __init__(
        self, program: Program, writer: Writer, *, team: int, teams: int, rows: int = 1
    ) -> None:
        super().__init__(
            program, writer, prefix="applied_", source="", team=team, teams=teams, rows=rows
        )

    def _carry_places(self, carry: Value, j: str) -> Parts:
        names = part_names(carry.name, carry.type)
        return tuple(f"{name}[{self._own_index(carry.type)}]" for name in names)


class AppendLanes(HeldLanes):
    """Joins the chunk's own summary to another one, in place."""

    sums_runs_by = "lane_sum_runs_called"

    def __init__(
        self, program: Program, writer: Writer, *, team: int, teams: int, rows: int = 1
    ) -> None:
        super().__init__(
            program, writer, prefix="whole_", source="fold_", team=team, teams=teams, rows=rows
        )
