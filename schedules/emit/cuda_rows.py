"""The kernel of cuda-rows: a warp that fetches, helpers, and a team that runs tokens in order.

:mod:`pdssm_compiler.schedules.templates.cuda_rows` says why; here is what each thread does.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, Protocol

from pdssm_compiler.ir.passes import hoist
from pdssm_compiler.ir.program import Program
from pdssm_compiler.schedules.emit.cuda_kernel import declare_row, locate_row
from pdssm_compiler.schedules.emit.lane_body import LANES
from pdssm_compiler.schedules.emit.shared_memory import SharedBuffer, SharedMemory
from pdssm_compiler.schedules.emit.tvm_early import EarlyLanes
from pdssm_compiler.schedules.emit.tvm_lanes import TvmLanes
from pdssm_compiler.schedules.source import Writer


class Shape(Protocol):
    """How rows are run: the template's config, which says what its numbers are."""

    @property
    def tile(self) -> int: ...
    @property
    def slots(self) -> int: ...
    @property
    def sets(self) -> int: ...
    @property
    def team(self) -> int: ...
    @property
    def tables(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def helpers(self) -> int: ...
    @property
    def threads(self) -> int: ...


class RowBodies:
    """What the warps of a row write.

    Attributes:
        whole: the program, which a warp fetches for.
        early: what helpers compute of each token and leave beside its inputs; None without them.
        late: what the team runs: the program, or what helpers leave of it.
    """

    def __init__(self, program: Program, writer: Writer, config: Shape) -> None:
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


class RowKernel:
    """Writes the kernel's skeleton."""

    def __init__(self, writer: Writer, bodies: RowBodies, config: Shape) -> None:
        self.writer = writer
        self.bodies = bodies
        self.config = config

    def block(self) -> None:
        """What the warps of a row do."""
        writer, bodies, config = self.writer, self.bodies, self.config
        body = bodies.whole
        bodies.shared.write(writer)
        bodies.late.arrays()
        if bodies.early is not None:
            bodies.early.value_arrays()
        body.stream_arrays(config.tile * body.tiles_of_indices)
        declare_row(writer, body.rows)
        locate_row(writer, body.rows, body.program.state_size)
        body.load_tables(config.threads)
        bodies.late.clear_exchanges(config.threads)
        body.start_barriers(config.helpers)
        writer.line("T.cuda.cta_sync()")
        body.prepare_tables()
        body.check_inverses(config.threads)
        writer.line("T.cuda.cta_sync()")
        bodies.late.find_most_sources()
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
            self._fetch(body)
        with writer.block("else:"):
            if bodies.early is None:
                self._team(bodies.late)
            else:
                with writer.block(f"if warp <= {config.team}:"):
                    self._team(bodies.late)
                with writer.block("else:"):
                    writer.line(f"lane: T.let = thread % {LANES}")
                    self._help(bodies.early)

    def _fetch(self, body: TvmLanes) -> None:
        """The warp that fills the ring."""
        with self.writer.block("if tiles > 0:"):
            body.load_indices(self.config.tile * body.tiles_of_indices, "T.int64(0)")
        with self.writer.block("for number in T.serial(tiles):"):
            self._slot(body, "number", "now")
            self.writer.line(f"first: T.let = T.Cast('int64', number) * {self.config.tile}")
            # A slot's first use waits for nothing: the barrier's phase before its first.
            body.wait(
                f"{self.config.slots} + {body.slot}", f"number // {self.config.slots} % 2 ^ 1"
            )
            body.stream_values(self.config.tile)
            if body.indices:
                self._fetch_indices(body)
            body.arrive()

    def _fetch_indices(self, body: TvmLanes) -> None:
        """Those of a tile, which came with others; the next are on their way while these last."""
        tile, together = self.config.tile, body.tiles_of_indices
        span = tile * together
        self.writer.line(f"part: T.let = number % {together}")
        self.writer.line(f"loaded: T.let = T.Cast('int64', number - part) * {tile}")
        with self.writer.block("if part == 0:"):
            body.take_indices(span)
            with self.writer.block(f"if number + {together} < tiles:"):
                body.load_indices(span, f"loaded + {span}")
        body.store_indices(span, "loaded", "part")

    def _help(self, body: TvmLanes) -> None:
        """A warp that computes ahead, for every so many tokens of each tile."""
        body.start_row()
        self.writer.line(f"helper: T.let = warp - {self.config.team + 1}")
        with self.writer.block("for number in T.serial(tiles):"):
            self._slot(body, "number", "now")
            body.wait(body.slot, f"number // {self.config.slots} % 2")
            each = -(-self.config.tile // self.config.helpers)
            with self.writer.block(f"for turn in T.unroll({each}):"):
                self.writer.line(f"u: T.let = turn * {self.config.helpers} + helper")
                guard = (
                    f"if u < {self.config.tile}:"
                    if self.config.tile % self.config.helpers
                    else None
                )
                with self.writer.block(guard) if guard else nullcontext():
                    step = f"T.Cast('int64', number * {self.config.tile} + u)"
                    forward = body.program.direction == "forward"
                    self.writer.line(f"t: T.let = {step if forward else f'L - 1 - {step}'}")
                    body.token()
            body.sync()
            with self.writer.block("if lane == 0:"):
                done = f"arrived[{2 * self.config.slots} + {body.slot}]"
                body.call("lane_arrive", f"T.address_of({done})")

    def _team(self, body: TvmLanes) -> None:
        """The warps that run the tokens."""
        self.writer.line(f"lane: T.let = thread - {LANES}")
        body.start_row()
        if self.config.sets == 2:
            with self.writer.block("if groups > 0:"):
                self._take(body, "0", 0)
                body.release()
        with self.writer.block("for group in T.serial(groups):"):
            for registers in range(self.config.sets):
                self._tile(body, registers)
        # The tokens left are read where they are.
        body.held = None
        with self.writer.block(f"for left in T.serial(tiles - {self.config.sets} * groups):"):
            self.writer.line(f"number: T.let = {self.config.sets} * groups + left")
            self._slot(body, "number", "now")
            self._wait(body, "number")
            self.writer.line(f"first: T.let = T.Cast('int64', number) * {self.config.tile}")
            count = f"T.min(T.Cast('int32', L - first), {self.config.tile})"
            with self.writer.block(f"for u in T.serial({count}):"):
                self._step(body, "first")
                body.token()
            body.release()
        body.end_row()

    def _take(self, body: TvmLanes, number: str, registers: int) -> None:
        """Wait for a tile and read it into a set of registers."""
        self._slot(body, number, str(registers))
        self._wait(body, f"({number})")
        body.hold(registers)

    def _wait(self, body: TvmLanes, number: str) -> None:
        """Wait until a tile's slot is filled, and helpers are done with it."""
        parity = f"{number} // {self.config.slots} % 2"
        body.wait(body.slot, parity)
        if self.config.helpers:
            body.wait(f"{2 * self.config.slots} + {body.slot}", parity)

    def _tile(self, body: TvmLanes, registers: int) -> None:
        """Run a tile from a set of registers; with two, the next tile comes into the other.

        Then the slot is given back after the tokens, so that nothing stands between its reads and
        their arithmetic, and the compiler may mix the two.
        """
        this = f"(group * {self.config.sets} + {registers})"
        taken = this if self.config.sets == 1 else f"({this} + 1)"
        self._take(body, taken, (registers + 1) % self.config.sets)
        if self.config.sets == 1:
            body.release()
        body.held = registers
        first = f"T.Cast('int64', {this}) * {self.config.tile}"
        with body.whole_tile(first):
            body.held_tokens(lambda: self._step(body, first))
        if self.config.sets == 2:
            with self.writer.block(f"if {taken} < 2 * groups:"):
                body.release()

    def _slot(self, body: TvmLanes, number: str, name: str) -> None:
        """The slot of a tile, under a name of its own."""
        body.slot = f"slot_{name}"
        self.writer.line(f"{body.slot}: T.let = ({number}) % {self.config.slots}")

    def _step(self, body: TvmLanes, first: str) -> None:
        """Where token ``u`` of a tile is."""
        step = f"{first} + T.Cast('int64', u)"
        forward = body.program.direction == "forward"
        self.writer.line(f"t: T.let = {step if forward else f'L - 1 - ({step})'}")
