"""The bodies of cuda-chunks: what a warp runs of a chunk, and the memory that they share."""

from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from pdssm_compiler.ir.passes import hoist
from pdssm_compiler.ir.passes.chunks import InChunks, in_chunks
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import Index, Table, precision
from pdssm_compiler.schedules.emit.arithmetic import part_names
from pdssm_compiler.schedules.emit.cuda_kernel import whole_team
from pdssm_compiler.schedules.emit.lane_body import LANES
from pdssm_compiler.schedules.emit.shared_memory import SharedBuffer, SharedMemory
from pdssm_compiler.schedules.emit.tvm_early import EarlyLanes
from pdssm_compiler.schedules.emit.tvm_lanes import TvmLanes
from pdssm_compiler.schedules.emit.tvm_summaries import AppendLanes, ApplyLanes, JoinLanes
from pdssm_compiler.schedules.signature import Argument, Signature
from pdssm_compiler.schedules.source import Writer

# Summaries that are read together.
_TOGETHER = 4


class Shape(Protocol):
    """How chunks are run: the template's config."""

    @property
    def tile(self) -> int:
        """Tokens whose inputs are in registers together."""

    @property
    def tiles(self) -> int:
        """Tiles of a chunk."""

    @property
    def tokens(self) -> int:
        """Tokens of a chunk."""

    @property
    def teams(self) -> int:
        """Teams of a block."""

    @property
    def rows(self) -> int:
        """Rows that a warp holds side by side."""

    @property
    def early(self) -> int:
        """1 if what a token needs no carry for is computed once, for fold and scan."""

    @property
    def clusters(self) -> int:
        """1 if the blocks that share a row are a cluster."""


class Windows(NamedTuple):
    """What joins the summaries of a window's chunks.

    Attributes:
        join: joins those that other teams have left in memory.
        append: joins the team's own to them.
    """

    join: JoinLanes
    append: AppendLanes


class ChunkBodies:
    """What a warp runs, and where it leaves what others read.

    Attributes:
        whole: the program, whose inputs are fetched.
        early: what is computed of a token before it is folded, and left beside its inputs; None
            where fold and scan compute it each.
        scan: the program, or what ``early`` leaves of it.
        windows: None where blocks are clusters.
    """

    def __init__(self, program: Program, writer: Writer, config: Shape) -> None:
        hoisted = hoist(program) if config.early else None
        late = program if hoisted is None else hoisted.late
        parts: InChunks = in_chunks(late)
        of_chunks = frozenset(parts.summaries)
        # Maps that others scatter by are sorted where they are made.
        scattered = [v.args[1] for v in parts.combine.body if v.op == "scatter_add"]
        self.sorted = frozenset(map_.name for map_ in scattered)
        self.team = whole_team(program)
        self.warps = self.team * config.teams
        shape: dict[str, int] = {"team": self.team, "teams": config.teams, "rows": config.rows}
        chunks: dict[str, Any] = {
            **shape,
            "tile": config.tile,
            "ring": config.tiles * config.teams,
            "warps": self.warps,
            "copying": self.team * LANES,
            "stays": True,
        }
        # Each team adds to sums of its own.
        sums = frozenset(total.name for total in program.sum_outputs)
        self.scan = TvmLanes(late, writer, signature=Signature(late, sums), **chunks)
        self.whole, self.early = self.scan, None
        made: list[SharedBuffer] = []
        if hoisted is not None:
            self.whole = TvmLanes(program, writer, signature=Signature(program, sums), **chunks)
            self.early = EarlyLanes(hoisted.early, writer, **chunks)
            made = list(self.scan.ring_of(hoisted.names))
        self.fold = TvmLanes(
            parts.fold,
            writer,
            prefix="fold_",
            signature=Signature(parts.fold, of_chunks, self.sorted, reports=False),
            **chunks,
        )
        # Only the carry it leaves is wanted.
        carry = replace(parts.carry, token_outputs=())
        self.apply = ApplyLanes(carry, writer, **shape)
        self.windows: Windows | None = None
        if not config.clusters:
            join = JoinLanes(parts.combine, writer, tile=_TOGETHER, **shape)
            self.windows = Windows(join, AppendLanes(parts.combine, writer, **shape))
        self.all: tuple[TvmLanes, ...] = (
            self.scan,
            self.fold,
            self.apply,
            *(self.windows or ()),
        )
        (before,) = late.carries
        self.carry = before
        self.summaries = tuple(a for a in self.fold.signature.arguments if a.role == "chunk")
        # 32 bits of a real and a mark in each of its words.
        reals = len(part_names("", before.type))
        words = Table(reals * precision(before.type) // 32, "general")
        self.words = words.size * self.scan.width
        self.passed = Argument("passed", words, "i64", "chunk", True)
        self.folded = Argument("folded", Index(2), "i32", "chunk", True)
        for body in self.all[1:]:
            body.axes["C"] = "number"
        self.scan.axes["C"] = "own[0]"
        self.shared = self._shared(made)
        for body in (*self.all, self.whole, *([self.early] if self.early else [])):
            body.team_bytes = self.shared.team_bytes

    @property
    def scratch(self) -> tuple[Argument, ...]:
        """Tensors that warps leave for one another: a place a chunk for its summary; the carry
        behind each window; a flag a chunk, for its summary. The last two start at zero. Teams of
        a cluster leave nothing.
        """
        return (*self.summaries, self.passed, self.folded) if self.windows else ()

    def _shared(self, made: list[SharedBuffer]) -> SharedMemory:
        """Shared memory of a block. A team runs one body at a time.

        Args:
            made: the ring of what is computed early.
        """
        lasting = [buffer for body in self.all for buffer in body.lasting_buffers()]
        # The carry that the team before has left for this one.
        lasting.append(("handed", "uint64", self.words))
        turns = [tuple(body.passing_buffers()) for body in self.all]
        turns.append(tuple(self.scan.table_buffers()))
        if self.sorted:
            turns.append(tuple(self.scan.sort_buffers()))
        block = (*self.whole.row_buffers(), *made)
        return SharedMemory(block, tuple(lasting), tuple(turns), self.scan.teams)
