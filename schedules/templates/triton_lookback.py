"""triton-lookback: rows cut into chunks that stay in registers, one pass over every token.

A program takes the next chunk by a ticket, loads its tokens, folds them to a summary and leaves
that to others; then it gets the carry before the chunk, and runs the tokens from the registers
they are still in. So tokens are read once, where triton-chunks reads them twice.

The carry before a chunk is made in one way, whatever the timing: chunks form fixed *windows*. The
one carry before the window is waited for, and the summaries of the window's chunks before this one
are applied to it in order. The window's last program has joined all of its summaries before that
carry comes, so one step leads from it to the carry behind the window. A program that looked back
as far as the others happened to be would group its sums by timing: here results repeat to the bit.

Each chunk has sums of its own; functions after it add them up in order (``total_…``). Tables whose
maps may collide are sorted before (``sort_…``).
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

from pdssm_compiler.ir.errors import PassError
from pdssm_compiler.ir.passes.chunks import InChunks, in_chunks
from pdssm_compiler.ir.program import Program
from pdssm_compiler.schedules.chunking import FAR, Chunking
from pdssm_compiler.schedules.emit.names import in_text_names
from pdssm_compiler.schedules.emit.triton import TritonBody
from pdssm_compiler.schedules.emit.triton_kernel import (
    maps_to_sort,
    tables_to_sort,
    write_header,
    write_sorts,
    write_totals,
)
from pdssm_compiler.schedules.emit.triton_lookback import (
    HELPERS,
    MOST_WINDOW,
    SIGNALS,
    Lookback,
    kept_words,
)
from pdssm_compiler.schedules.signature import Signature
from pdssm_compiler.schedules.source import KernelSource, Phase, Writer
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Config, Problem, Template
from pdssm_compiler.schedules.templates.triton_tiles import (
    block_of,
    compiler_options,
    limit,
    rows_of_a_warp,
    tile_work,
)
from pdssm_compiler.schedules.work import Work

# Tokens of a chunk.
_TOKENS = (16, 12, 8, 6, 4, 2)
# Of a thread's registers, the part that tokens may fill; the rest is what computing them takes.
_MOST_KEPT = 0.5
# Warps that run on a processor at once then.
_WARPS = 12
# Values of an index that a chunk has sums of, for each of its tokens: with more, its sums would
# take more memory than its tokens.
_MOST_GROUPS = 4


@dataclass(frozen=True)
class TritonLookbackConfig(Config):
    """How chunks are run.

    Attributes:
        rows: rows of one program; a power of two.
        num_warps: warps of one program.
        tokens: tokens of a chunk, all in registers.
        window: chunks of a window.
    """

    rows: int
    num_warps: int
    tokens: int
    window: int


class _Bodies:
    """What a program runs, and what it leaves for others."""

    def __init__(self, program: Program, writer: Writer) -> None:
        parts: InChunks = in_chunks(program)
        summaries = frozenset(parts.summaries)
        # A summary's map is sorted where it is made.
        self.maps = maps_to_sort(parts.carry) & summaries
        tables = tables_to_sort(parts.resume)
        fold = Signature(parts.fold, summaries, self.maps | tables, reports=False)
        # Summaries come in the order the chunks are run in; of the carry, only the last is wanted.
        join = replace(parts.combine, direction="forward", final_outputs=())
        carry = replace(parts.carry, direction="forward", token_outputs=())
        of_chunks = frozenset({parts.incoming, *parts.partials.values()})
        self.fold = TritonBody(fold, writer, split=True, prefix="fold_")
        self.join, self.apply = (
            TritonBody(
                Signature(part, summaries, self.maps, reports=False),
                writer,
                split=True,
                axis="C",
                prefix=prefix,
            )
            for part, prefix in ((join, "join_"), (carry, "apply_"))
        )
        self.scan = TritonBody(Signature(parts.resume, of_chunks, tables), writer, split=True)
        self.all = (self.fold, self.join, self.apply, self.scan)
        self.incoming = parts.incoming
        self.partials = parts.partials

    @property
    def kept_words(self) -> int:
        """32-bit registers that an element of each of a token's inputs takes."""
        return kept_words((self.fold, self.scan))


@lru_cache(maxsize=256)
def _needs(program: Program) -> tuple[tuple[Signature, ...], int] | str:
    """What the bodies read and write, and the registers that a token's inputs take; or why the
    program has no chunks. Kept, for one choice asks for many configs.
    """
    try:
        bodies = _Bodies(in_text_names(program), Writer())
    except PassError as error:
        return f"chunks have no summary: {error}"
    return tuple(body.signature for body in bodies.all), bodies.kept_words


class TritonLookback(Template[TritonLookbackConfig]):
    """The template; see the module's text."""

    name = "triton-lookback"
    backend = "triton"
    kinds = ("cuda", "hip")
    config_type = TritonLookbackConfig

    def suits(self, program: Program, target: Target, problem: Problem) -> bool:
        # Of what was measured (docs/gpu-log.md), faster than triton-chunks for permutations of 32
        # states alone, and by a little: taken where it is asked for.
        return False

    def space(self, program: Program, target: Target) -> Iterator[TritonLookbackConfig]:
        narrow = rows_of_a_warp(program, target)
        for num_warps in (1, 2, 4, 8):
            for rows in sorted({1, narrow, narrow * num_warps}):
                for tokens in _TOKENS:
                    for window in (2, 4, 8, 16, 30):
                        yield TritonLookbackConfig(rows, num_warps, tokens, window)

    def heuristic(
        self, program: Program, target: Target, problem: Problem
    ) -> TritonLookbackConfig:
        rows = rows_of_a_warp(program, target)
        window = _window(target, problem, rows)
        for num_warps in (1, 2, 4, 8):
            for tokens in _TOKENS:
                config = TritonLookbackConfig(rows, num_warps, tokens, window)
                if self.feasible(program, target, config) is None:
                    return config
        # What feasible refuses, with its reason.
        return config

    def feasible(
        self, program: Program, target: Target, config: TritonLookbackConfig
    ) -> str | None:
        if target.kind not in self.kinds:
            return f"{self.name} is for GPUs, not for {target}"
        if config.tokens < 1:
            return f"tokens is at least 1, not {config.tokens}"
        if not 1 <= config.window <= MOST_WINDOW:
            return f"window is from 1 to {MOST_WINDOW}, not {config.window}"
        if program.chunk_length not in (None, config.tokens):
            return f"the scan's chunks have {program.chunk_length} tokens, not {config.tokens}"
        needs = _needs(program)
        if isinstance(needs, str):
            return needs
        signatures, words = needs
        for signature in signatures:
            refused = limit(signature, target, config.rows, config.num_warps, 1)
            if refused:
                return refused
        threads = config.num_warps * target.warp_size
        elements = max(1, config.rows * block_of(program) // threads)
        kept = config.tokens * words * elements
        if kept > target.registers * _MOST_KEPT and config.tokens > 1:
            return f"keeping {config.tokens} tokens takes {kept} of {target.registers} registers"
        most = max([0, *(total.groups or 1 for total in program.sum_outputs)])
        if most > _MOST_GROUPS * config.tokens:
            return f"{config.tokens} tokens are too few for sums of {most} values of an index"
        return None

    def work(
        self,
        program: Program,
        target: Target,
        config: TritonLookbackConfig,
        rows: int,
        length: int,
    ) -> Work:
        tile = tile_work(program, target, config.rows, config.num_warps, config.tokens)
        blocks, chunks = -(-rows // config.rows), -(-length // config.tokens)
        launches = 1 + len(tables_to_sort(program)) + len(program.sum_outputs)
        passes = (2 + FAR) * -(-chunks // config.window)
        found = tile.of(blocks * chunks, min(config.tokens, length), launches, passes=passes)
        # A chunk is folded and run from the registers that it was read to.
        return replace(
            found,
            steps=2 * found.steps,
            collecting=2 * found.collecting,
            exchanges=2 * found.exchanges,
            issued=2 * found.issued,
        )

    def lower(
        self, program: Program, target: Target, config: TritonLookbackConfig
    ) -> KernelSource:
        program = in_text_names(program)
        writer = Writer()
        bodies = _Bodies(program, writer)
        title = f"{self.name} {config}\n{program.text}"
        write_header(writer, title, config.rows, block_of(program), bodies.all, HELPERS)
        sorts, tables = write_sorts(bodies.scan)
        writer.line()
        for body in bodies.all:
            writer.comment(body.program.text)
        kernel = Lookback(
            bodies.fold,
            bodies.join,
            bodies.apply,
            bodies.scan,
            bodies.incoming,
            config.tokens,
            config.window,
        )
        kernel.write("scan")
        sums = {total.name: total for total in Signature(program).sum_outputs}
        partial = {total.name: total for total in bodies.scan.signature.sum_outputs}
        pairs = [(partial[mine], sums[name]) for name, mine in bodies.partials.items()]
        totals = write_totals(writer, program.state_size, pairs)
        between = [argument for argument in kernel.arguments if argument.role == "chunk"]
        return KernelSource(
            "triton",
            writer.text,
            "scan",
            program,
            self.name,
            asdict(config),
            target,
            compiler_options(config.num_warps),
            (*sorts, Phase("scan", kernel.arguments, "next chunk"), *totals),
            (*tables, *between, SIGNALS),
            Chunking(1, 1, 1, config.tokens, config.window),
        )


def _window(target: Target, problem: Problem, rows: int) -> int:
    """Half of the chunks of a row that run at once, so that one window folds while the carry
    passes through another: a power of two, from 4, or fewer carries would pass than chunks end, to
    16, or applying a window's summaries would take longer than a chunk. Where rows alone keep the
    device busy the carry has passed before, and windows are short.
    """
    if problem.rows is None:
        return 8
    abreast = _WARPS * target.processors // max(1, -(-problem.rows // rows))
    if abreast < 2:
        return 2
    return next((window for window in (16, 8) if 2 * window <= abreast), 4)
