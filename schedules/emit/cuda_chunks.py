"""The kernel of cuda-chunks: how teams fetch, fold and run chunks.

:mod:`pdssm_compiler.schedules.templates.cuda_chunks` says why; here is what each thread does. How
carries pass from chunk to chunk is in :mod:`pdssm_compiler.schedules.emit.chunk_windows` and
:mod:`pdssm_compiler.schedules.emit.chunk_clusters`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pdssm_compiler.schedules.emit.arithmetic import part_names
from pdssm_compiler.schedules.emit.chunk_bodies import ChunkBodies, Shape
from pdssm_compiler.schedules.emit.cuda_kernel import declare_row, locate_row
from pdssm_compiler.schedules.emit.lane_body import LANES
from pdssm_compiler.schedules.emit.tvm import real_dtype
from pdssm_compiler.schedules.emit.tvm_early import EarlyLanes
from pdssm_compiler.schedules.emit.tvm_lanes import TvmLanes
from pdssm_compiler.schedules.source import Writer


def form(source: str) -> tuple[str, str]:
    """Where a team keeps the sorted form of a summary's map."""
    return f"{source}map_order[0]", f"{source}map_last[0]"


def _ones(bits: int) -> int:
    """So many ones as an int32."""
    return -1 if bits == LANES else (1 << bits) - 1


class ChunkKernel(ABC):
    """Writes the kernel's skeleton.

    Attributes:
        sizes: the kernel's parameters beside tensors and their strides.
        summaries: prefixes of the names of the summaries that a team has.
    """

    sizes: tuple[str, ...] = ("rows", "aligned", "blocks", "abreast")
    summaries: tuple[str, ...] = ("fold_",)

    def __init__(self, writer: Writer, bodies: ChunkBodies, config: Shape) -> None:
        self.writer = writer
        self.bodies = bodies
        self.config = config
        self.threads = bodies.warps * LANES
        scan = bodies.scan
        # Whether a chunk finds out for all its tokens whether their maps have targets of many
        # sources. Where lanes meet in shared memory, every token asks for itself: few sources in
        # pairs are more of all maps' than few one by one.
        self.knows_seldom = (
            bool(scan.listed)
            and LANES % config.tile == 0
            and not scan.through_memory
            and all(value.args[1] in scan.indices for value in scan.listed)
        )

    def block(self) -> None:
        """The rows of a block, one after the other, with the head's tables in shared memory."""
        write, config, scan = self.writer.line, self.config, self.bodies.scan
        write(f"lane: T.let = thread % {scan.lanes}")
        scan.alike("team", f"thread // {scan.lanes}")
        self.bodies.shared.write(self.writer)
        self._arrays()
        declare_row(self.writer, scan.rows)
        for name in ("own", "all", "ahead"):
            write(f'{name} = T.alloc_buffer((1,), "int32", scope="local")')
        row = self._share_rows()
        # A row without tokens still has a beginning and an end.
        chunks = f"T.Cast('int32', (L + {config.tokens - 1}) // {config.tokens})"
        write(f"chunks: T.let = T.max({chunks}, 1)")
        # The team's first chunk, and how many chunks of a row run at once.
        write(f"own[0] = part * {config.teams} + team")
        write(f"all[0] = sharing * {config.teams}")
        for_each = f"for c in T.serial({-(-self.bodies.words // scan.lanes)}):"
        with (
            self.writer.block(for_each),
            self.writer.block(f"if c * {scan.lanes} + lane < {self.bodies.words}:"),
        ):
            word = f"c * {scan.lanes} + lane"
            write(f"handed[team * {self.bodies.shared.team_bytes // 8} + {word}] = T.uint64(0)")
        # Several rows side by side count as one.
        rows = "rows" if scan.rows == 1 else f"((rows + {scan.rows - 1}) // {scan.rows})"
        with self.writer.block(f"for turn in T.serial(({rows} + abreast - 1) // abreast):"):
            write(f"row: T.let = turn * abreast + {row}")
            with self.writer.block(f"if row < {rows}:"):
                locate_row(self.writer, scan.rows, scan.program.state_size)
                self.bodies.whole.locate_copies()
                # The tables of the row before are in use until every team is here, and so are the
                # words that its carries are handed on in.
                self._meet()
                scan.load_tables(self.threads)
                for body in self.bodies.all:
                    body.clear_exchanges(self.threads)
                write("T.cuda.cta_sync()")
                scan.prepare_tables()
                scan.check_inverses(self.threads)
                write("T.cuda.cta_sync()")
                scan.start_sums()
                write("ahead[0] = 0")
                with self.writer.block("for step in T.serial((chunks + all[0] - 1) // all[0]):"):
                    write("number: T.let = step * all[0] + own[0]")
                    with self.writer.block("if number < chunks:"):
                        self._chunk()

    @abstractmethod
    def _share_rows(self) -> str:
        """Name ``sharing``, how many blocks share a row, and ``part``, which of them this one is.

        Returns:
            Which of the rows abreast is theirs.
        """

    @abstractmethod
    def _meet(self) -> None:
        """Wait until all that hand carries on have done with the row before."""

    @abstractmethod
    def _carry(self) -> None:
        """Have the carry before this chunk, and hand on the one behind it."""

    def _arrays(self) -> None:
        scan, fold, apply = self.bodies.scan, self.bodies.fold, self.bodies.apply
        scan.arrays()
        self.bodies.whole.stream_arrays(self.config.tokens)
        if self.bodies.early is not None:
            self.bodies.early.value_arrays()
        fold.arrays()
        apply.value_arrays()
        for source in self.summaries if self.bodies.sorted else ():
            for place in form(source):
                name = place.split("[")[0]
                self.writer.line(f'{name} = T.alloc_buffer((1,), "int32", scope="local")')
        real = real_dtype(self.bodies.carry.type)
        if self.knows_seldom:
            self.writer.line('seldom_kind = T.alloc_buffer((1,), "int32", scope="local")')
            groups = -(-self.config.tokens // LANES)
            self.writer.line(f'seldom = T.alloc_buffer(({groups},), "int32", scope="local")')
        for name in self.carry_arrays:
            shape = f"({scan.elements},)"
            self.writer.line(f'{name}_kept = T.alloc_buffer({shape}, "{real}", scope="local")')

    @property
    def carry_arrays(self) -> tuple[str, ...]:
        """The arrays that hold this lane's elements of the carry, part by part."""
        return part_names(self.bodies.carry.name, self.bodies.carry.type)

    def _chunk(self) -> None:
        """One chunk: fetched, folded, told to others, run."""
        write, config, bodies = self.writer.line, self.config, self.bodies
        scan = bodies.scan
        write(f"start: T.let = T.Cast('int64', number) * {config.tokens}")
        write(f"count: T.let = T.Cast('int32', T.min(L - start, {config.tokens}))")
        self._fetch()
        if bodies.early is not None:
            self._prepare(bodies.early)
        bodies.fold.start_row()
        with self.writer.block("if chunks > 1:"):
            self._run(bodies.fold)
            self._sort("fold_")
        self._carry()
        self._look_ahead()
        self._run(scan)
        with self.writer.block("if number + 1 == chunks:"):
            scan.end_row()

    def _fetch(self) -> None:
        """Have the chunk's tokens in the team's slots: they are copied here, unless they were
        while the chunk before ran.
        """
        write, config, whole = self.writer.line, self.config, self.bodies.whole
        write(f"slots: T.let = team * {config.tiles}")
        # What the team still reads of the chunk before.
        whole.sync()
        whole.slot = "slots"
        with self.writer.block("if ahead[0] == 0:"):
            with self.writer.block("if count > 0:"):
                write("first: T.let = start")
                whole.load_indices(config.tokens)
                whole.stream_values(config.tokens)
            whole.copies_done()
        with self.writer.block("else:"):
            # Indices are in the first group, which is the last of one tile.
            whole.copies_done(but_last=config.tiles > 1)
        with self.writer.block("if count > 0:"):
            write("first: T.let = start")
            whole.store_indices(config.tokens)
        if self.knows_seldom:
            self._find_seldom()

    def _find_seldom(self) -> None:
        """Keep a bit for each token of the chunk: whether a target of its map has many sources.
        Asked tile by tile, it would be waited for before the tile's first token.
        """
        write, scan = self.writer.line, self.bodies.scan
        scan.sync()
        scan.slot = "slots"
        for group in range(-(-self.config.tokens // LANES)):
            u = f"({group * LANES} + lane)"
            write("seldom_kind[0] = 0")
            with self.writer.block(f"if {u} < count:"):
                for kind in scan.kinds_in_ring(u):
                    write(f"seldom_kind[0] = T.max(seldom_kind[0], {kind})")
            scan.call("lane_seldom", f"T.address_of(seldom[{group}])", "seldom_kind[0]")

    def _prepare(self, early: EarlyLanes) -> None:
        """Compute once what a token needs no carry for, of all tokens of the chunk."""
        write, tile = self.writer.line, self.config.tile
        early.start_row()
        early.slot = "slot"
        forward = early.program.direction == "forward"
        # The last tile's copies were started last.
        early.copies_done()
        with self.writer.block(f"for s in T.serial((count + {tile - 1}) // {tile}):"):
            write("slot: T.let = slots + s")
            with (
                self.writer.block(f"for u in T.unroll({tile}):"),
                self.writer.block(f"if s * {tile} + u < count:"),
            ):
                at = f"start + T.Cast('int64', s * {tile} + u)"
                write(f"t: T.let = {at if forward else f'L - 1 - ({at})'}")
                early.token()

    def _look_ahead(self) -> None:
        """Whether the team's next chunk is copied while this one runs: it is, if it is whole."""
        write, config, whole = self.writer.line, self.config, self.bodies.whole
        write(f"following: T.let = start + T.Cast('int64', all[0] * {config.tokens})")
        # A lagged input is one step ahead of its token.
        all_there = f"aligned != 0 and following + {config.tokens + 1} <= L"
        write(f"ahead[0] = T.if_then_else({all_there}, 1, 0)")
        with self.writer.block("if ahead[0] != 0:"):
            write("first: T.let = following")
            whole.slot = "slots"
            whole.load_indices(config.tokens)
            whole.start_ahead(config.tile)

    def _run(self, body: TvmLanes) -> None:
        """The chunk's tokens."""
        write, tile = self.writer.line, self.config.tile
        body.sync()
        forward = body.program.direction == "forward"
        body.slot = "slot"

        def step(tiles: str) -> None:
            at = f"start + T.Cast('int64', {tiles} * {tile} + u)"
            write(f"t: T.let = {at if forward else f'L - 1 - ({at})'}")

        with self.writer.block(f"for s in T.serial(count // {tile}):"):
            write("slot: T.let = slots + s")
            if body is self.bodies.fold:
                # The last tile's copies were started last.
                with self.writer.block(f"if s + 1 == {self.config.tiles}:"):
                    body.copies_done()
            body.hold(0)
            first = f"start + T.Cast('int64', s * {tile})"
            with body.whole_tile(first):
                self._tile(body, step)
            if body is self.bodies.scan:
                with self.writer.block("if ahead[0] != 0:"):
                    body.slot_is_read()
                    write(f"first: T.let = following + T.Cast('int64', s * {tile})")
                    self.bodies.whole.slot = body.slot
                    self.bodies.whole.stream_ahead(tile)
                    body.call("lane_copies_group")
        # The tokens left are read where they are.
        body.held = None
        with self.writer.block(f"for u in T.serial(count % {tile}):"):
            write(f"slot: T.let = slots + count // {tile}")
            step(f"(count // {tile})")
            body.token()

    def _tile(self, body: TvmLanes, step: Callable[[str], None]) -> None:
        """A whole tile's tokens, which are in registers."""

        def begin() -> None:
            step("s")

        if not self.knows_seldom:
            body.unrolled(begin)
            return
        tile = self.config.tile
        each = LANES // tile
        *others, word = (f"seldom[{g}]" for g in range(-(-self.config.tokens // LANES)))
        for g, other in reversed([*enumerate(others)]):
            word = f"T.Select(s < {(g + 1) * each}, {other}, {word})"
        bits = f"T.bitwise_and(T.shift_right({word}, s % {each} * {tile}), {_ones(tile)})"
        seldom = f"T.Cast('int32', {bits} != 0)"
        with self.writer.block(f"if {body.all_at_most(0, seldom)} != 0:"):
            body.with_few(1, begin)
        with self.writer.block("else:"):
            if body.puts_off:
                body.unrolled(begin)
                return
            # From the ring, one by one: a short text, as it is seldom.
            held, body.held = body.held, None
            with self.writer.block(f"for u in T.serial({tile}):"):
                step("s")
                body.token()
            body.held = held

    def _sort(self, source: str) -> None:
        """Sort the map of a summary that this team holds."""
        if self.bodies.sorted:
            self.bodies.scan.sync()
            order, last = form(source)
            self.bodies.scan.sort(f"{source}summary_map[0]", order, last)

    def _apply(self, source: str, parity: int = 0) -> None:
        """Apply a summary to the carry; twice in a row with another parity."""
        self.bodies.apply.source = source
        self.bodies.apply.held = None
        self.bodies.apply.sync()
        with self.writer.block(f"for u in T.serial({parity}, {parity + 1}):"):
            self.bodies.apply.token()

    @contextmanager
    def _carry_behind(self) -> Iterator[None]:
        """For now the carry is another one; afterwards it is this chunk's again."""
        for name in self.carry_arrays:
            with self.bodies.scan.over_elements():
                self.writer.line(f"{name}_kept[e] = {name}[e]")
        yield
        for name in self.carry_arrays:
            with self.bodies.scan.over_elements():
                self.writer.line(f"{name}[e] = {name}_kept[e]")

    def _hand_near(self, function: str, team: str, *mark: str) -> None:
        """Post or take a carry in shared memory, all rows of a team together."""
        place = f"T.address_of(handed[{team} * {self.bodies.shared.team_bytes // 8}])"
        self._hand(function, place, *mark, "lane", self.bodies.scan.width)

    def _hand(self, function: str, *place_and_size: str | int) -> None:
        scan = self.bodies.scan
        parts = (f"T.address_of({name}[0])" for name in self.carry_arrays)
        *place, size = place_and_size
        scan.call(function, *parts, *map(str, place), str(scan.lanes), str(size))

    @staticmethod
    def _mark(number: str) -> str:
        """What marks the carry for a chunk, differently for each chunk of each row."""
        return f"T.Cast('uint32', turn * chunks + {number})"
