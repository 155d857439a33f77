"""cuda-rows: for each row a warp that fetches and one or several that compute, tokens in order.

A warp alone waits for memory, for its index arithmetic and for its own chain in turn. Here the
first warp fills a ring in shared memory with asynchronous copies, several tiles of tokens ahead;
the others wait for a tile, take it into registers, give the slot back and run the tokens. The
head's tables lie in shared memory, prepared so that a scatter-add collects a few known sources
instead of adding into memory; where they are too large for that, as much as must be is left out.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from pdssm_compiler.ir.passes import hoist
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import is_number, precision
from pdssm_compiler.schedules.emit.cuda_kernel import (
    MOST_ELEMENTS,
    MOST_WARPS,
    declare_row,
    kernel,
    locate_row,
    most_rows,
    registers_of,
    rows_refused,
    tile_refused,
    whole_team,
)
from pdssm_compiler.schedules.emit.lane_body import LANES, MOST_STATES
from pdssm_compiler.schedules.emit.names import in_text_names
from pdssm_compiler.schedules.emit.shared_memory import SharedBuffer, SharedMemory
from pdssm_compiler.schedules.emit.tvm_early import EarlyLanes
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
        longest = 4 if crowded and rows == 1 and collects(program) else 16
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
        for (tables, room), (tile, slots) in product(choices, rings):
            config = CudaRowsConfig(tile, slots, team=team, tables=tables, rows=rows)
            if self._refused(program, target, config, room) is None:
                return config
        # What feasible refuses, with its reason.
        return config

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
        bodies = _Bodies(program, Writer(), config)
        body, shared = bodies.late, bodies.shared.bytes
        if shared > most:
            return f"{shared} bytes of shared memory are more than {most}"
        held = config.sets * config.tile * _words(program, body)
        if held > registers_of(target, config.threads) - 80 and config.tile > 2:
            return f"the inputs of {config.tile} tokens take {held} registers a thread"
        values = config.sets * config.tile * body.elements * len(body.program.body)
        if values > _MOST_VALUES and config.tile > 2:
            return f"unrolling {config.tile} tokens of {len(body.program.body)} values is too long"
        return None

    def work(
        self, program: Program, target: Target, config: CudaRowsConfig, rows: int, length: int
    ) -> Work:
        bodies = _Bodies(program, Writer(), config)
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
        bodies = _Bodies(program, writer, config)
        writer.comment(f"{self.name} {config}\n{program.text}")
        if bodies.early is not None:
            writer.comment(bodies.early.program.text)
            writer.comment(bodies.late.program.text)
        sizes, grid = ("rows", "aligned", "blocks"), ("row", "blocks")
        with kernel(writer, bodies.whole, sizes, grid, config.threads):
            self._block(writer, bodies, config)
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

    def _block(self, writer: Writer, bodies: "_Bodies", config: CudaRowsConfig) -> None:
        """What the warps of a row do."""
        body = bodies.whole
        bodies.shared.write(writer)
        bodies.late.arrays()
        if bodies.early is not None:
            bodies.early.value_arrays()
        body.stream_arrays(config.tile)
        declare_row(writer, body.rows)
        locate_row(writer, body.rows, body.program.state_size)
        body.load_tables(config.threads)
        bodies.late.clear_exchanges(config.threads)
        body.start_barriers(config.helpers)
        writer.line("T.cuda.cta_sync()")
        body.prepare_tables()
        body.check_inverses(config.threads)
        writer.line("T.cuda.cta_sync()")
        # Groups of as many tiles as there are sets of registers, then the tokens left. A set is
        # filled while another is in use, so there is always a tile behind the last group.
        group = config.sets * config.tile
        writer.line(f"groups: T.let = T.Cast('int32', L // {group})")
        tiles = f"T.Cast('int32', (L + {config.tile - 1}) // {config.tile})"
        if config.sets == 2:
            tiles = f"T.if_then_else(L > 0, T.max({tiles}, 2 * groups + 1), 0)"
        writer.line(f"tiles: T.let = {tiles}")
        body.alike("warp", f"thread // {LANES}")
        with writer.block("if warp == 0:"):
            writer.line("lane: T.let = thread")
            body.locate_copies()
            self._fetch(writer, body, config)
        with writer.block("else:"):
            if bodies.early is None:
                self._team(writer, bodies.late, config)
            else:
                with writer.block(f"if warp <= {config.team}:"):
                    self._team(writer, bodies.late, config)
                with writer.block("else:"):
                    writer.line(f"lane: T.let = thread % {LANES}")
                    self._help(writer, bodies.early, config)

    def _fetch(self, writer: Writer, body: TvmLanes, config: CudaRowsConfig) -> None:
        """The warp that fills the ring."""
        with writer.block("if tiles > 0:"):
            writer.line("first: T.let = T.int64(0)")
            body.load_indices(config.tile)
        with writer.block("for number in T.serial(tiles):"):
            self._slot(writer, body, config, "number", "now")
            writer.line(f"first: T.let = T.Cast('int64', number) * {config.tile}")
            # A slot's first use waits for nothing: the barrier's phase before its first.
            body.wait(f"{config.slots} + {body.slot}", f"number // {config.slots} % 2 ^ 1")
            body.produce()
            body.arrive()
            # Into the registers that were just read, so that nothing waits for these loads
            # before the next tile does.
            with writer.block("if number + 1 < tiles:"):
                writer.line(f"first: T.let = T.Cast('int64', number + 1) * {config.tile}")
                body.load_indices(config.tile)

    def _help(self, writer: Writer, body: TvmLanes, config: CudaRowsConfig) -> None:
        """A warp that computes ahead, for every so many tokens of each tile."""
        body.start_row()
        writer.line(f"helper: T.let = warp - {config.team + 1}")
        with writer.block("for number in T.serial(tiles):"):
            self._slot(writer, body, config, "number", "now")
            body.wait(body.slot, f"number // {config.slots} % 2")
            each = -(-config.tile // config.helpers)
            with writer.block(f"for turn in T.unroll({each}):"):
                writer.line(f"u: T.let = turn * {config.helpers} + helper")
                guard = f"if u < {config.tile}:" if config.tile % config.helpers else None
                with writer.block(guard) if guard else nullcontext():
                    step = f"T.Cast('int64', number * {config.tile} + u)"
                    forward = body.program.direction == "forward"
                    writer.line(f"t: T.let = {step if forward else f'L - 1 - {step}'}")
                    body.token()
            body.sync()
            with writer.block("if lane == 0:"):
                done = f"arrived[{2 * config.slots} + {body.slot}]"
                body.call("lane_arrive", f"T.address_of({done})")

    def _team(self, writer: Writer, body: TvmLanes, config: CudaRowsConfig) -> None:
        """The warps that run the tokens."""
        writer.line(f"lane: T.let = thread - {LANES}")
        body.start_row()
        if config.sets == 2:
            with writer.block("if groups > 0:"):
                self._take(writer, body, config, "0", 0)
                body.release()
        with writer.block("for group in T.serial(groups):"):
            for registers in range(config.sets):
                self._tile(writer, body, config, registers)
        # The tokens left are read where they are.
        body.held = None
        with writer.block(f"for left in T.serial(tiles - {config.sets} * groups):"):
            writer.line(f"number: T.let = {config.sets} * groups + left")
            self._slot(writer, body, config, "number", "now")
            self._wait(body, config, "number")
            writer.line(f"first: T.let = T.Cast('int64', number) * {config.tile}")
            count = f"T.min(T.Cast('int32', L - first), {config.tile})"
            self._tokens(writer, body, "first", f"T.serial({count})")
            body.release()
        body.end_row()

    def _take(
        self, writer: Writer, body: TvmLanes, config: CudaRowsConfig, number: str, registers: int
    ) -> None:
        """Wait for a tile and read it into a set of registers."""
        self._slot(writer, body, config, number, str(registers))
        self._wait(body, config, f"({number})")
        body.hold(registers)

    @staticmethod
    def _wait(body: TvmLanes, config: CudaRowsConfig, number: str) -> None:
        """Wait until a tile's slot is filled, and helpers are done with it."""
        parity = f"{number} // {config.slots} % 2"
        body.wait(body.slot, parity)
        if config.helpers:
            body.wait(f"{2 * config.slots} + {body.slot}", parity)

    def _tile(
        self, writer: Writer, body: TvmLanes, config: CudaRowsConfig, registers: int
    ) -> None:
        """Run a tile from a set of registers; with two, the next tile comes into the other.

        Then the slot is given back after the tokens, so that nothing stands between its reads and
        their arithmetic, and the compiler may mix the two.
        """
        this = f"(group * {config.sets} + {registers})"
        taken = this if config.sets == 1 else f"({this} + 1)"
        self._take(writer, body, config, taken, (registers + 1) % config.sets)
        if config.sets == 1:
            body.release()
        body.held = registers
        first = f"T.Cast('int64', {this}) * {config.tile}"
        with body.whole_tile(first):
            self._tokens(writer, body, first, f"T.unroll({config.tile})")
        if config.sets == 2:
            with writer.block(f"if {taken} < 2 * groups:"):
                body.release()

    def _slot(
        self, writer: Writer, body: TvmLanes, config: CudaRowsConfig, number: str, name: str
    ) -> None:
        """The slot of a tile, under a name of its own."""
        body.slot = f"slot_{name}"
        writer.line(f"{body.slot}: T.let = ({number}) % {config.slots}")

    def _tokens(self, writer: Writer, body: TvmLanes, first: str, loop: str) -> None:
        with writer.block(f"for u in {loop}:"):
            step = f"{first} + T.Cast('int64', u)"
            forward = body.program.direction == "forward"
            writer.line(f"t: T.let = {step if forward else f'L - 1 - ({step})'}")
            body.token()


class _Bodies:
    """What the warps of a row write.

    Attributes:
        whole: the program, which a warp fetches for.
        early: what helpers compute of each token and leave beside its inputs; None without them.
        late: what the team runs: the program, or what helpers leave of it.
    """

    def __init__(self, program: Program, writer: Writer, config: CudaRowsConfig) -> None:
        row: dict[str, Any] = {
            "tile": config.tile,
            "ring": config.slots,
            "warps": config.threads // LANES,
            "tables": config.tables,
            "rows": config.rows,
        }
        team = row | {"team": config.team, "sets": config.sets}
        self.whole = self.late = TvmLanes(program, writer, **team)
        self.early: EarlyLanes | None = None
        hoisted = hoist(program) if config.helpers else None
        made: Iterator[SharedBuffer] = iter(())
        if hoisted is not None:
            self.early = EarlyLanes(hoisted.early, writer, **row)
            self.late = TvmLanes(hoisted.late, writer, **team)
            made = self.late.ring_of(hoisted.names)
        barriers = self.whole.barrier_buffers(config.helpers)
        block = (*barriers, *self.whole.row_buffers(), *self.whole.table_buffers(), *made)
        self.shared = SharedMemory(block, tuple(self.late.exchange_buffers()))


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
