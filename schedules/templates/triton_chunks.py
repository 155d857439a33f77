"""triton-chunks: rows cut into chunks that run side by side, for few long rows.

Three functions, one after the other. ``fold`` makes each chunk's summary, one program a chunk and
block of rows. ``carry`` goes through the summaries of its rows in order and leaves the carry
before each chunk. ``scan`` is the program itself, one program a chunk and block of rows, from that
carry on. Tokens are read twice, so where rows alone fill the device triton-rows is faster. Tables
whose maps may collide are sorted before (``sort_…``).

A chunk has sums over its own tokens, and a function after the three (``total_…``) adds them up in
the order of the chunks: no two programs add to one place, so sums repeat bit by bit. What a chunk
writes for it is a small part of what it reads.

How long a chunk is, is decided at each launch: see :class:`Chunking`.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pdssm_compiler.ir.errors import PassError
from pdssm_compiler.ir.passes.chunks import InChunks, in_chunks
from pdssm_compiler.ir.program import Program
from pdssm_compiler.schedules.chunking import Chunking
from pdssm_compiler.schedules.emit.names import in_text_names
from pdssm_compiler.schedules.emit.triton import TritonBody
from pdssm_compiler.schedules.emit.triton_kernel import (
    maps_to_sort,
    tables_to_sort,
    write_function,
    write_header,
    write_sorts,
    write_totals,
)
from pdssm_compiler.schedules.signature import Signature
from pdssm_compiler.schedules.source import KernelSource, Phase, Writer
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Config, Problem, Template
from pdssm_compiler.schedules.templates.triton_tiles import (
    block_of,
    compiler_options,
    limit,
    preferred_shapes,
    rows_of_a_warp,
    shapes,
    tile_work,
)
from pdssm_compiler.schedules.work import Work

# Warps on each processor that hide one another's waiting for memory.
_WARPS = 12
# With this many on each processor, rows alone keep the memory busy.
_ENOUGH_WARPS = 4
# Three launches for fewer tokens than this take longer than running them in order.
_FEWEST_TOKENS = 1024
# Of programs, and of the tokens of a chunk: launches count in 64 bits, with room for products.
_MOST = 2**31 - 1
# A chunk's summary is as large as a few tokens, so chunks are longer than that.
_LEAST_CHUNK = 32


def _least_chunk(program: Program) -> int:
    """So that a chunk's sums by an index, a vector for each of its values, are small beside the
    vectors of its tokens.
    """
    return max([_LEAST_CHUNK, *(total.groups or 1 for total in program.sum_outputs)])


@dataclass(frozen=True)
class TritonChunksConfig(Config):
    """How chunks are run.

    Attributes:
        rows: rows of one program; a power of two.
        num_warps: warps of one program.
        unroll: tokens whose inputs are loaded together.
        programs: programs that a launch aims at; a launch makes chunks as short as that takes.
        least_chunk: tokens of a chunk, at least.
    """

    rows: int
    num_warps: int
    unroll: int
    programs: int
    least_chunk: int = _LEAST_CHUNK


class TritonChunks(Template[TritonChunksConfig]):
    """The template; see the module's text."""

    name = "triton-chunks"
    backend = "triton"
    kinds = ("cuda", "hip")
    config_type = TritonChunksConfig

    def suits(self, program: Program, target: Target, problem: Problem) -> bool:
        if problem.rows is None or problem.length is None:
            return False
        warps = -(-problem.rows // rows_of_a_warp(program, target))
        return warps < _ENOUGH_WARPS * target.processors and problem.length >= _FEWEST_TOKENS

    def space(self, program: Program, target: Target) -> Iterator[TritonChunksConfig]:
        for rows, num_warps, unroll in shapes(program, target):
            for warps in (4, 8, 12, 16):
                programs = max(1, warps * target.processors // num_warps)
                yield TritonChunksConfig(rows, num_warps, unroll, programs, _least_chunk(program))

    def heuristic(self, program: Program, target: Target, problem: Problem) -> TritonChunksConfig:
        for rows, num_warps, unroll in preferred_shapes(program, target):
            programs = max(1, _WARPS * target.processors // num_warps)
            least = _least_chunk(program)
            config = TritonChunksConfig(rows, num_warps, unroll, programs, least)
            if self.feasible(program, target, config) is None:
                return config
        # What feasible refuses, with its reason.
        return config

    def feasible(self, program: Program, target: Target, config: TritonChunksConfig) -> str | None:
        if target.kind not in self.kinds:
            return f"{self.name} is for GPUs, not for {target}"
        for name in ("programs", "least_chunk"):
            value = getattr(config, name)
            if not 1 <= value <= _MOST:
                return f"{name} is from 1 to {_MOST}, not {value}"
        try:
            signatures = _signatures(in_chunks(in_text_names(program)))
        except PassError as error:
            return f"chunks have no summary: {error}"
        for signature in signatures:
            refused = limit(signature, target, config.rows, config.num_warps, config.unroll)
            if refused:
                return refused
        return None

    def work(
        self, program: Program, target: Target, config: TritonChunksConfig, rows: int, length: int
    ) -> Work:
        tile = tile_work(program, target, config.rows, config.num_warps, config.unroll)
        blocks = -(-rows // config.rows)
        chunking = Chunking(
            config.programs, config.least_chunk, config.unroll, program.chunk_length
        )
        span = chunking.length(blocks, length)
        chunks = chunking.chunks(span, length)
        launches = 3 + len(tables_to_sort(program)) + len(program.sum_outputs)
        # Tokens are read to be folded, and once more to be run.
        tokens = min(span, length)
        return tile.of(blocks * chunks, tokens, launches, runs=2, passes=chunks)

    def lower(self, program: Program, target: Target, config: TritonChunksConfig) -> KernelSource:
        program = in_text_names(program)
        parts = in_chunks(program)
        fold, carry, scan = _signatures(parts)
        writer = Writer()
        bodies = [
            TritonBody(fold, writer, split=True),
            TritonBody(carry, writer),
            TritonBody(scan, writer, split=True),
        ]
        title = f"{self.name} {config}\n{program.text}"
        write_header(writer, title, config.rows, block_of(program), bodies)
        sorts, tables = write_sorts(bodies[2])
        for entry, body in zip(("fold", "carry", "scan"), bodies, strict=True):
            writer.line()
            writer.comment(body.program.text)
            write_function(entry, body, config.unroll)
        sums = {total.name: total for total in Signature(program).sum_outputs}
        partial = {total.name: total for total in scan.sum_outputs}
        pairs = [(partial[mine], sums[name]) for name, mine in parts.partials.items()]
        totals = write_totals(writer, program.state_size, pairs)
        between = [a for a in (*fold.arguments, *scan.arguments) if a.role == "chunk"]
        return KernelSource(
            "triton",
            writer.text,
            "scan",
            program,
            self.name,
            asdict(config),
            target,
            compiler_options(config.num_warps),
            (
                *sorts,
                Phase("fold", fold.arguments, "chunk"),
                Phase("carry", carry.arguments, "summaries"),
                Phase("scan", scan.arguments, "chunk"),
                *totals,
            ),
            (*tables, *between),
            Chunking(config.programs, config.least_chunk, config.unroll, program.chunk_length),
        )


def _signatures(parts: InChunks) -> tuple[Signature, Signature, Signature]:
    """Of the three functions. Only the last reports: the others read what it reads."""
    # A summary's map is sorted where it is made, side by side; the carry goes in order.
    maps = maps_to_sort(parts.carry) & frozenset(parts.summaries)
    tables = tables_to_sort(parts.resume)
    of_chunks = frozenset({parts.incoming, *parts.partials.values()})
    return (
        Signature(parts.fold, frozenset(parts.summaries), maps | tables, reports=False),
        Signature(parts.carry, sorted_maps=maps, reports=False),
        Signature(parts.resume, of_chunks, tables),
    )
