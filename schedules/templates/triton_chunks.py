"""triton-chunks: rows cut into chunks that run side by side, for few long rows.

Three functions, one after the other. ``fold`` makes each chunk's summary, one program a chunk and
block of rows. ``carry`` goes through the summaries of its rows in order and leaves the carry
before each chunk. ``scan`` is the program itself, one program a chunk and block of rows, from that
carry on. Tokens are read twice, so where rows alone fill the device triton-rows is faster.

How long a chunk is, is decided at each launch: see :class:`Chunking`.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pdssm_compiler.ir.errors import PassError
from pdssm_compiler.ir.passes.chunks import InChunks, in_chunks
from pdssm_compiler.ir.program import Program
from pdssm_compiler.schedules.chunking import Chunking
from pdssm_compiler.schedules.emit.triton import TritonBody
from pdssm_compiler.schedules.emit.triton_kernel import write_function, write_header
from pdssm_compiler.schedules.signature import Argument, Signature
from pdssm_compiler.schedules.source import KernelSource, Phase, Writer
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Problem, Template
from pdssm_compiler.schedules.templates.triton_tiles import (
    block_of,
    compiler_options,
    limit,
    preferred_shapes,
    rows_of_a_warp,
    shapes,
)

# Warps on each processor that hide one another's waiting for memory.
_WARPS = 12
# With this many on each processor, rows alone keep the memory busy.
_ENOUGH_WARPS = 4
# Three launches for fewer tokens than this take longer than running them in order.
_FEWEST_TOKENS = 1024
# A chunk's summary is as large as a few tokens, so chunks are longer than that.
_LEAST_CHUNK = 32


@dataclass(frozen=True)
class TritonChunksConfig:
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
                yield TritonChunksConfig(rows, num_warps, unroll, programs)

    def heuristic(self, program: Program, target: Target, problem: Problem) -> TritonChunksConfig:
        for rows, num_warps, unroll in preferred_shapes(program, target):
            programs = max(1, _WARPS * target.processors // num_warps)
            config = TritonChunksConfig(rows, num_warps, unroll, programs)
            if self.feasible(program, target, config) is None:
                return config
        # What feasible refuses, with its reason.
        return config

    def feasible(self, program: Program, target: Target, config: TritonChunksConfig) -> str | None:
        if target.kind not in self.kinds:
            return f"{self.name} is for GPUs, not for {target}"
        for name in ("programs", "least_chunk"):
            if getattr(config, name) < 1:
                return f"{name} is at least 1, not {getattr(config, name)}"
        try:
            parts = in_chunks(program)
        except PassError as error:
            return f"chunks have no summary: {error}"
        for part in (parts.fold, parts.carry, parts.resume):
            refused = limit(part, target, config.rows, config.num_warps, config.unroll)
            if refused:
                return refused
        return None

    def lower(self, program: Program, target: Target, config: TritonChunksConfig) -> KernelSource:
        parts = in_chunks(program)
        phases = _phases(parts)
        writer = Writer()
        bodies = [TritonBody(p.signature, writer, p.runs == "chunk") for p in phases]
        title = f"{self.name} {config}\n{program.text}"
        write_header(writer, title, config.rows, block_of(program), bodies)
        for phase, body in zip(phases, bodies, strict=True):
            writer.line()
            writer.comment(phase.signature.program.text)
            write_function(phase.entry, body, config.unroll)
        return KernelSource(
            "triton",
            writer.text,
            "scan",
            program,
            self.name,
            asdict(config),
            target,
            compiler_options(config.num_warps),
            phases,
            _scratch(phases),
            Chunking(config.programs, config.least_chunk, config.unroll, program.chunk_length),
        )


def _phases(parts: InChunks) -> tuple[Phase, ...]:
    """The functions. Only the last reports: the others read what it reads."""
    fold = Signature(parts.fold, frozenset(parts.summaries), reports=False)
    carry = Signature(parts.carry, reports=False)
    scan = Signature(parts.resume, frozenset({parts.incoming}))
    return (
        Phase("fold", fold, "chunk"),
        Phase("carry", carry, "summaries"),
        Phase("scan", scan, "chunk"),
    )


def _scratch(phases: tuple[Phase, ...]) -> tuple[Argument, ...]:
    """What one phase writes for the next."""
    fold, carry, _ = (phase.signature for phase in phases)
    return (*fold.final_outputs, *carry.token_outputs)
