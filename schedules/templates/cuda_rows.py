"""cuda-rows: for each row a warp that fetches and one or several that compute, tokens in order.

A warp alone waits for memory, for its index arithmetic and for its own chain in turn. Here the
first warp fills a ring in shared memory with asynchronous copies, several tiles of tokens ahead;
the others wait for a tile, take it into registers, give the slot back and run the tokens. The
head's tables lie in shared memory, prepared so that a scatter-add collects a few known sources
instead of adding into memory; where they are too large for that, as much as must be is left out.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import product

from pdssm_compiler.ir.passes import hoist
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import is_number, precision
from pdssm_compiler.schedules.emit.cuda_kernel import (
    MOST_ELEMENTS,
    MOST_WARPS,
    kernel,
    most_rows,
    registers_of,
    rows_refused,
    tile_refused,
    whole_team,
)
from pdssm_compiler.schedules.emit.cuda_rows import RowBodies, RowKernel
from pdssm_compiler.schedules.emit.lane_body import LANES, MOST_STATES
from pdssm_compiler.schedules.emit.names import in_text_names
from pdssm_compiler.schedules.emit.tvm_lanes import TvmLanes
from pdssm_compiler.schedules.source import KernelSource, Writer
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Config, Problem, Template
from pdssm_compiler.schedules.templates.cuda_step import MOST_TOKENS
from pdssm_compiler.schedules.work import (
    Work,
    bytes_in,
    bytes_out,
    collects,
    table_entries,
    values_of,
)

# Of which a processor holds two.
_SHARED_BYTES = 112 * 1024
# Warps a processor that keep its memory busy: rows share one where they leave as many.
_ENOUGH_WARPS = 4
# So few tokens are run in order even where rows leave processors idle.
_FEW_TOKENS = 1024
# Warps of a block, but for the one that fetches.
_MOST_TEAM = 31
# Waits for memory before the first token: a head's tables, indices, then what they select.
_STARTING = 3
# Warps beside them that compute ahead.
_MOST_HELPERS = 8
# Values of all tokens of a tile together; more takes long to compile.
_MOST_VALUES = 400
# Tiles of a row that make what it waits for until its first one is there not matter.
_MANY_TILES = 64
# As many seconds' bytes on their way keep the memory busy.
_LATENCY = 1e-6
# Warps that compute ahead of one that runs tokens, and rows a processor that leave room for them.
_HELPERS, _WITH_HELPERS = 4, 8


@dataclass(frozen=True)
class CudaRowsConfig(Config):
    """How rows are run.

    Attributes:
        tile: tokens of a slot, whose inputs are in registers together; even.
        slots: slots of the ring.
        sets: 1, or 2 to read the next tile's inputs into registers while a tile is computed.
        team: warps that hold a row's elements together.
        tables: what shared memory holds of the head's tables: 0 nothing, 1 the maps, 2 the sources
            of each target as well, where something is scattered by them.
        rows: rows narrower than a warp that one holds, side by side.
        helpers: warps that compute ahead what a token needs no carry for.
    """

    tile: int
    slots: int
    sets: int = 1
    team: int = 1
    tables: int = 2
    rows: int = 1
    helpers: int = 0

    @property
    def threads(self) -> int:
        """Threads of a row: those that compute, the warp that fetches, and helpers."""
        return (self.team + 1 + self.helpers) * LANES


@lru_cache(maxsize=4096)
def _needs(program: Program, config: CudaRowsConfig) -> tuple[int, int, int, int]:
    """Bytes of a block's shared memory; of a token, registers that its inputs take a thread,
    elements of a vector there, and values. Kept, for one choice after another asks for the same
    few configs.
    """
    bodies = RowBodies(program, Writer(), config)
    body = bodies.late
    shared, words = bodies.shared.bytes, _words(program, body)
    return shared, words, body.elements, len(body.program.body)


class CudaRows(Template[CudaRowsConfig]):
    """The template; see the module's text."""

    name = "cuda-rows"
    backend = "tvm-cuda"
    kinds = ("cuda",)
    config_type = CudaRowsConfig

    def suits(self, program: Program, target: Target, problem: Problem) -> bool:
        if problem.rows is None or problem.length is None:
            return True
        if problem.length <= MOST_TOKENS or program.state_size > MOST_STATES:
            return problem.length > MOST_TOKENS
        warps = -(-problem.rows // most_rows(program))
        return 2 * warps >= target.processors or problem.length < _FEW_TOKENS

    def space(self, program: Program, target: Target) -> Iterator[CudaRowsConfig]:
        for tile in (2, 4, 8, 16):
            for slots in (3, 4, 6, 8):
                for sets in (1, 2):
                    for team in sorted({1, whole_team(program, _MOST_TEAM)}):
                        for tables in _tables(program):
                            for rows in sorted({1, most_rows(program)}):
                                for helpers in (0, 1, 2, 4) if hoist(program) else (0,):
                                    yield CudaRowsConfig(
                                        tile, slots, sets, team, tables, rows, helpers
                                    )

    def heuristic(self, program: Program, target: Target, problem: Problem) -> CudaRowsConfig:
        # Collecting takes so many instructions a token that longer tiles leave the instruction
        # cache, the sooner the more rows run there side by side; several rows a warp have more
        # to do for a tile, and lose by short ones (docs/gpu-log.md).
        rows = most_rows(program)
        if (problem.rows or 0) < _ENOUGH_WARPS * target.processors * rows:
            rows = 1
        crowded = (problem.rows or 0) >= 4 * target.processors * rows
        longest = self._longest_tile(program, target, problem, rows)
        if crowded and rows == 1 and collects(program):
            longest = min(longest, 4)
        tiles = [tile for tile in (16, 8, 4, 2) if tile <= longest]
        team = whole_team(program, _MOST_TEAM)
        # A row that shares its processor with none has all its memory, for more copies on their
        # way. So have several rows that add up, as far as it goes: they read most.
        alone = problem.rows is not None and problem.rows <= target.processors
        most = target.shared_memory if alone else _SHARED_BYTES
        rooms = (min(most, target.shared_memory), target.shared_memory)
        choices = list(product(_tables(program), rooms))
        if program.state_size <= MOST_STATES:
            # Several rows of few warps on a processor come before lists of sources.
            choices.sort(key=lambda choice: choice[1])
        # Of three slots one is written and one read: copies have too little time to come.
        several = (8, 4) if program.sum_outputs else (4,)
        rings = [*product(tiles, several), *product(tiles, (3,))]
        if alone:
            rings = [*product(tiles, (8,)), *rings]
        helpers = 0
        if (
            hoist(program)
            and rows == 1
            and (problem.rows or 0) < _WITH_HELPERS * target.processors
        ):
            helpers = _HELPERS
        for (tables, room), (tile, slots) in product(choices, rings):
            config = CudaRowsConfig(
                tile, slots, team=team, tables=tables, rows=rows, helpers=helpers
            )
            if self._refused(program, target, config, room) is None:
                return config
        # What feasible refuses, with its reason.
        return config

    def _longest_tile(self, program: Program, target: Target, problem: Problem, rows: int) -> int:
        """Tokens of a tile, at most: what a row waits for until its first tile is there is short
        beside it, and enough is on its way.
        """
        if problem.rows is None or problem.length is None:
            return 16
        blocks = -(-problem.rows // (rows * target.processors))
        wanted = target.bandwidth * _LATENCY / target.processors
        for tile in (2, 4, 8):
            slot = tile * rows * max(1, bytes_in(program))
            there = min(blocks, max(1, target.shared_memory // (4 * slot)))
            if problem.length <= tile * _MANY_TILES and 4 * slot * there >= wanted:
                return tile
        return 16

    def feasible(self, program: Program, target: Target, config: CudaRowsConfig) -> str | None:
        return self._refused(program, target, config, target.shared_memory)

    def _refused(
        self, program: Program, target: Target, config: CudaRowsConfig, most: int
    ) -> str | None:
        """Why a config cannot work with so many bytes of shared memory; None if it can."""
        refused = tile_refused(self.name, target, config.tile)
        if refused:
            return refused
        if config.slots < 3:
            return f"slots is at least 3, not {config.slots}"
        if config.sets not in (1, 2):
            return f"sets is 1 or 2, not {config.sets}"
        if not 1 <= config.team <= _MOST_TEAM:
            return f"team is from 1 to {_MOST_TEAM}, not {config.team}"
        if config.tables not in (0, 1, 2):
            return f"tables is 0, 1 or 2, not {config.tables}"
        refused = rows_refused(program, config.rows, config.team)
        if refused:
            return refused
        if config.rows > 1 and config.tables == 0:
            return "tables of several rows stand in shared memory"
        if not 0 <= config.helpers <= _MOST_HELPERS:
            return f"helpers is from 0 to {_MOST_HELPERS}, not {config.helpers}"
        if config.helpers and hoist(program) is None:
            return "there is nothing that helpers could compute ahead"
        if config.threads > MOST_WARPS * LANES:
            return f"{config.threads // LANES} warps are more than a block has"
        held = MOST_ELEMENTS * LANES * config.team
        if program.state_size > held:
            return f"a state size of {program.state_size} is more than {held}, what a team holds"
        shared, words, elements, computed = _needs(program, config)
        if shared > most:
            return f"{shared} bytes of shared memory are more than {most}"
        held = config.sets * config.tile * words
        if held > registers_of(target, config.threads) - 80 and config.tile > 2:
            return f"the inputs of {config.tile} tokens take {held} registers a thread"
        values = config.sets * config.tile * elements * computed
        if values > _MOST_VALUES and config.tile > 2:
            return f"unrolling {config.tile} tokens of {computed} values is too long"
        return None

    def work(
        self, program: Program, target: Target, config: CudaRowsConfig, rows: int, length: int
    ) -> Work:
        bodies = RowBodies(program, Writer(), config)
        body = bodies.late
        held = config.sets * config.tile * _words(program, body)
        loaded, warps = bytes_in(program), -(-rows // config.rows)
        # Without lists a target looks for its sources by doubling how far it looks.
        search = 1 if config.tables == 2 else max(1, (program.state_size - 1).bit_length())
        return Work(
            moved=rows * length * (loaded + bytes_out(program)),
            blocks=warps,
            threads=config.threads,
            shared_bytes=bodies.shared.bytes,
            registers=min(registers_of(target, config.threads), 80 + held),
            # One slot is read while the others are filled.
            ahead=(config.slots - 1) * config.tile * loaded * config.rows,
            # The head's tables are prepared before the first token.
            steps=length
            + (config.tables > 0) * config.rows * table_entries(program) / config.threads,
            collecting=length * search * collects(program),
            exchanges=length * (config.team > 1 or body.elements > 1),
            tiles=length / config.tile,
            waits=_STARTING,
            issued=warps * length * config.team * body.elements * values_of(program),
        )

    def lower(self, program: Program, target: Target, config: CudaRowsConfig) -> KernelSource:
        program = in_text_names(program)
        writer = Writer()
        bodies = RowBodies(program, writer, config)
        writer.comment(f"{self.name} {config}\n{program.text}")
        if bodies.early is not None:
            writer.comment(bodies.early.program.text)
            writer.comment(bodies.late.program.text)
        sizes, grid = ("rows", "aligned", "blocks"), ("row", "blocks")
        with kernel(writer, bodies.whole, sizes, grid, config.threads):
            RowKernel(writer, bodies, config).block()
        return KernelSource(
            "tvm-cuda",
            writer.text,
            "scan",
            program,
            self.name,
            asdict(config),
            target,
            {
                "shared_bytes": bodies.shared.bytes,
                "threads": config.threads,
                "rows_together": config.rows,
            },
            inverts=bool(bodies.whole.inverted_tables),
        )


def _tables(program: Program) -> tuple[int, ...]:
    """What may be in shared memory of the tables, the best first."""
    return (2, 1, 0) if any(value.op == "select" for value in program.body) else (2,)


def _words(program: Program, body: TvmLanes) -> int:
    """Registers of a token's inputs, about."""
    words = 2 * body.elements * len(body.selects) + len(body.indices)
    for argument in body.streamed:
        each = precision(argument.type) // 32 if is_number(argument.type) else 1
        words += body.elements * each * (2 if argument.complex else 1)
    return words
