"""The ring of slots in shared memory that tokens come from, and the registers they go to."""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pdssm_compiler.ir.types import Index, Scalar
from pdssm_compiler.ir.value import Value
from pdssm_compiler.schedules.emit.lane_body import LANES, lane_dtype, row_elements
from pdssm_compiler.schedules.emit.lane_tables import LaneTables
from pdssm_compiler.schedules.emit.shared_memory import SharedBuffer
from pdssm_compiler.schedules.signature import Argument, width_of


class LaneRing(LaneTables):
    """Adds where the inputs of tokens are, and how they come there."""

    # Lanes of a team that give a slot back. One speaks for the others, which have met before.
    releasing = 1

    def barrier_buffers(self, helpers: int = 0) -> Iterator[SharedBuffer]:
        """The ring's barriers: a slot is filled, a slot is free, helpers are done with it."""
        yield ("arrived", "uint64", (3 if helpers else 2) * self.ring)

    def row_buffers(self) -> Iterator[SharedBuffer]:
        """The ring and the head's tables."""
        n = self.program.state_size
        tokens = self.ring * self.tile
        yield from self.ring_of([argument.name for argument in self.streamed])
        for index in self.indices:
            yield (f"ring_{index.name}", "int32", tokens * self.rows)
            if self._is_copied(index):
                dtype = self._argument(index.name).dtype
                yield (f"next_{index.name}", dtype, tokens * self.rows)
        for name, collected in self._tables.items():
            size = self.rows * self._table_size(name)
            if self.tables:
                yield (f"table_{name}", self._entry, size * n)
            if collected:
                yield (f"fan_{name}", "uint32", size * 4 * n)
                yield (f"kind_{name}", "int32", size)

    def ring_of(self, names: Sequence[str]) -> Iterator[SharedBuffer]:
        """The ring of some of the inputs."""
        for argument in map(self._argument, names):
            size = self.ring * self.tile * self._token_elements(argument)
            yield (f"ring_{argument.name}", lane_dtype(argument), size)

    def stream_arrays(self, span: int) -> None:
        """What a slot's inputs need to come, ``span`` indices at a time, and what reports."""
        for index in self.indices:
            if not self._is_copied(index):
                dtype, size = self._argument(index.name).dtype, self._index_groups(span)
                self._local(f"{index.name}_next", dtype, size)
                self._local(f"{index.name}_now", dtype, size)
        for argument in self.streamed:
            self._local(f"{argument.name}_from", "int64", 1)
            if self.rows > 1:
                self._local(f"{argument.name}_row", "int64", 1)
        if self.signature.checks:
            self._local("worst", "uint64", 1)

    def _registers(self, number: int) -> None:
        """A set of registers for the inputs of a tile."""
        for argument in self.streamed:
            size = self.tile * self._held_step(argument)
            self._local(self._held_name(argument.name, number), lane_dtype(argument), size)
        for index in self.indices:
            self._local(self._own_name(f"{index.name}_k{number}"), "int32", self.tile)
        for value in self.selects:
            name = self.names[value]
            if self._is_read(value):
                self._local(f"{name}_held{number}", "int32", self.tile * self.elements)
            if self._is_collected(value):
                self._local(f"{name}_fan{number}", "uint32", 2 * self.tile * self.elements)
                self._local(f"{name}_kind{number}", "int32", self.tile)

    def start_barriers(self, helpers: int = 0) -> None:
        """Make the ring's barriers, before a barrier of the block."""
        with (
            self.writer.block("if thread == 0:"),
            self.writer.block(f"for s in T.serial({self.ring}):"),
        ):
            # Each lane of the producer arrives with its copies and for its own stores.
            self.call("lane_barrier_init", "T.address_of(arrived[s])", str(2 * LANES))
            free = f"T.address_of(arrived[{self.ring} + s])"
            self.call("lane_barrier_init", free, str(self.releasing))
            if helpers:
                done = f"T.address_of(arrived[{2 * self.ring} + s])"
                self.call("lane_barrier_init", done, str(helpers))

    def _token_elements(self, argument: Argument) -> int:
        """Reals or integers of one token of all rows."""
        return self.rows * row_elements(argument, self.program.state_size)

    def locate_copies(self) -> None:
        """Find where a lane's wide copies start in their row, of several side by side."""
        if self.rows == 1:
            return
        for argument in self.streamed:
            name, own = argument.name, row_elements(argument, self.program.state_size)
            if not self._is_wide(argument):
                continue
            units = self._copy_units(argument)
            at = f"(lane % {units} * {self._token_elements(argument) // units})"
            with self._of_side(f"{at} // {own}") as (b, h):
                start = f"{b} * {name}_sB + {h} * {name}_sH"
                self.writer.line(f"{name}_row[0] = {start} + T.Cast('int64', {at} % {own})")

    def stream_values(self, span: int) -> None:
        """Start copying all but the indices of ``span`` tokens from ``first`` on, to slot ``slot``
        and those behind.
        """
        for argument in self.streamed:
            self._stream(argument, span)

    def _step(self, step: str) -> None:
        """``t`` of a step of the program, the last step's where there are no more."""
        last = f"T.min({step}, L - 1)"
        forward = self.program.direction == "forward"
        self.writer.line(f"t: T.let = {last if forward else f'L - 1 - {last}'}")

    def _stream(self, argument: Argument, span: int) -> None:
        """Copy tokens of an input, as wide as its layout allows."""
        narrow = width_of(argument.dtype)
        if not self._is_wide(argument):
            self._copies(argument, span, narrow)
            return
        # A lagged input is one step ahead of its token.
        last = span + (1 if argument.role == "lagged" else 0)
        with self.writer.block(f"if aligned != 0 and first + {last} <= L:"):
            self._even_copies(argument, span)
        with self.writer.block("else:"):
            self._copies(argument, span, narrow)

    def _copy_size(self, argument: Argument) -> int:
        """Bytes that a lane copies at once, where tensors are aligned."""
        return argument.copied_at_once(self.program.state_size)

    def _is_wide(self, argument: Argument) -> bool:
        """Whether those are more than one real or integer."""
        return self._copy_size(argument) > width_of(argument.dtype)

    def _even_copies(self, argument: Argument, span: int) -> None:
        """Copy whole tokens, every lane the same place of a token each time: its addresses are
        one origin and constant steps. A warp that copies is timed by its address arithmetic.
        """
        self._copy_place(argument)
        self._copy_origin(argument)
        self._copy_run(argument, span)

    def _copy_units(self, argument: Argument) -> int:
        """Copies of a token."""
        return self._token_elements(argument) // self._copied_elements(argument)

    def _copied_elements(self, argument: Argument) -> int:
        """Reals or integers of a copy."""
        return self._copy_size(argument) // width_of(argument.dtype)

    def _across(self, argument: Argument, span: int) -> int:
        """Tokens that the lanes copy at once, so that every time is alike."""
        most = max(1, self.copying // self._copy_units(argument))
        return next(n for n in range(min(most, span), 0, -1) if span % n == 0)

    def _copy_place(self, argument: Argument) -> None:
        """Which token a lane copies, of those copied at once, and which reals of it."""
        name, write, lanes = argument.name, self.writer.line, self.copying
        units, each = min(self._copy_units(argument), lanes), self._copied_elements(argument)
        write(f"{name}_u: T.let = lane // {units}")
        write(f"{name}_at: T.let = lane % {units} * {each}")

    def _copy_origin(self, argument: Argument) -> None:
        """Where a lane's copies of the tokens from ``first`` on start."""
        name = argument.name
        step = f"first + T.Cast('int64', {name}_u)"
        if argument.role == "lagged":
            step += " + 1"
        t = step if self.program.direction == "forward" else f"L - 1 - ({step})"
        if self.rows > 1:
            origin = f"{name}_row[0] + ({t}) * {name}_sL"
        else:
            start = self._tensor(argument, ["b", f"({t})", "h"], [])[len(name) + 1 : -1]
            origin = f"{start} + T.Cast('int64', {name}_at)"
        self.writer.line(f"{name}_from[0] = {origin}")

    def _copy_run(self, argument: Argument, span: int) -> None:
        """Copy ``span`` tokens from the origin on."""
        busy, lanes = self._across(argument, span) * self._copy_units(argument), self.copying
        # Lanes that a whole number of tokens leaves over have nothing to do.
        with self._guard(f"lane < {busy}", busy < lanes):
            self._copy_tokens(argument, span)

    def _copy_tokens(self, argument: Argument, span: int) -> None:
        name, write, lanes = argument.name, self.writer.line, self.copying
        elements, each = self._token_elements(argument), self._copied_elements(argument)
        units, across = self._copy_units(argument), self._across(argument, span)
        sign = "+" if self.program.direction == "forward" else "-"
        ring = f"ring_{name}[({self.slot} * {self.tile} + {name}_u) * {elements} + {name}_at"
        if self.stays:
            write(f"{name}_step: T.let = {across} * {name}_sL")
        for token in range(0, span, across):
            origin = f"{name}_from[0]"
            if not self.stays:
                origin += f" {sign} {token} * {name}_sL"
            for unit in range(0, units, lanes):
                to = f"{ring} + {token * elements + unit * each}]"
                source = f"{name}[{origin} + {unit * each}]"
                with self._guard(f"lane < {units - unit}", units > lanes > units - unit):
                    copied = (f"T.address_of({to})", f"T.address_of({source})")
                    self.call(f"lane_copy{self._copy_size(argument)}", *copied)
            if self.stays:
                # Those who copy compute as well: fewer instructions. A warp that only copies would
                # wait for one address after the other.
                write(f"{origin} = {origin} {sign} {name}_step")

    def start_ahead(self, span: int) -> None:
        """Find where the tokens from ``first`` on are, which :meth:`stream_ahead` copies in pieces
        of ``span``: tensors are aligned for wide copies, and there are that many tokens.
        """
        for argument in self.streamed:
            if self._is_wide(argument):
                self._copy_place(argument)
                self._copy_origin(argument)

    def stream_ahead(self, span: int) -> None:
        """Start copying the next piece, from ``first`` on, to slot ``slot``."""
        for argument in self.streamed:
            if self._is_wide(argument):
                self._copy_place(argument)
                self._copy_run(argument, span)
            else:
                self._copies(argument, span, width_of(argument.dtype))

    def slot_is_read(self) -> None:
        """Wait until no lane reads the slot of a tile that was held and has run."""
        moved = [v for v in self.program.body if v.op in ("gather", "compose")]
        others = any(v.args[0].op == "input" and self._everywhere(v.args[0]) for v in moved)
        # Lanes that leave values for one another meet in every token, after they have read it.
        if others or not any(map(self._exchange_elements, self.program.body)):
            self.sync()

    def _copies(self, argument: Argument, span: int, size: int) -> None:
        """Copy tokens in units of ``size`` bytes."""
        elements, each = self._token_elements(argument), size // width_of(argument.dtype)
        own = row_elements(argument, self.program.state_size)
        units = elements // each
        # Those there are; a count that is known only then is also not unrolled, which would push
        # what is always run out of the instruction cache.
        total = f"T.min(T.Cast('int32', L - first), {span}) * {units}"
        lanes = self.copying
        with self.writer.block(f"for c in T.serial(({total} + {lanes - 1}) // {lanes}):"):
            self.writer.line(f"unit: T.let = c * {lanes} + lane")
            with self._guard(f"unit < {span * units}", span * units % lanes != 0):
                self.writer.line(f"u: T.let = unit // {units}")
                self.writer.line(f"at: T.let = unit % {units} * {each}")
                self._step("first + T.Cast('int64', u)")
                to = f"ring_{argument.name}[({self.slot} * {self.tile} + u) * {elements} + at]"
                with self._of_side(f"(at // {own})") as (b, h):
                    source = self._global(
                        argument, "at" if self.rows == 1 else f"at % {own}", b, h
                    )
                    if size >= 4:
                        copied = (f"T.address_of({to})", f"T.address_of({source})")
                        self.call(f"lane_copy{size}", *copied)
                    else:
                        self.writer.line(f"{to} = {source}")

    def _global(self, argument: Argument, at: str, b: str, h: str) -> str:
        """Real or integer ``at`` of the token ``t`` of a row of an input."""
        t = "t"
        if argument.role == "lagged":
            forward = self.program.direction == "forward"
            t = "T.min(t + 1, L - 1)" if forward else "T.max(t - 1, T.int64(0))"
        return f"{self._tensor(argument, [b, t, h], [])[:-1]} + {at}]"

    def _is_copied(self, index: Value) -> bool:
        """Whether indices come by asynchronous copies: those who run tokens load nothing ahead,
        since the compiler has a loop wait for what was loaded before it.
        """
        return self.stays and width_of(self._argument(index.name).dtype) in (4, 8)

    def _next_index(self, index: Value, group: str, at: str) -> str:
        """Where a copied index is before it is checked, and where a loaded one comes to."""
        if self._is_copied(index):
            return f"next_{index.name}[{self.slot} * {self.tile * self.rows} + {at}]"
        return f"{index.name}_next[{group}]"

    def _index_groups(self, span: int) -> int:
        """Indices of ``span`` tokens that one lane loads."""
        return -(-span * self.rows // self.copying)

    @property
    def tiles_of_indices(self) -> int:
        """Tiles whose indices are loaded together, one a lane. A load takes as long as memory
        answers, which is longer than a short tile may take.
        """
        return max(1, self.copying // (self.tile * self.rows))

    def take_indices(self, span: int) -> None:
        """Wait for the indices of ``span`` tokens that were loaded, so that others can be."""
        for index in self.indices:
            for group in range(self._index_groups(span)):
                self.writer.line(f"{index.name}_now[{group}] = {index.name}_next[{group}]")

    def load_indices(self, span: int, first: str = "first") -> None:
        """Load the indices of ``span`` tokens from ``first`` on, which :meth:`store_indices` will
        need; what else a slot needs is copied asynchronously.
        """
        if not self.indices:
            return
        with self._index_lanes(span, first) as (group, at, (b, h)):
            for index in self.indices:
                argument = self._argument(index.name)
                place = self._tensor(argument, [b, "t", h], [])
                to = self._next_index(index, group, at)
                if self._is_copied(index):
                    copy = f"lane_copy{width_of(argument.dtype)}"
                    self.call(copy, f"T.address_of({to})", f"T.address_of({place})")
                else:
                    # As it is stored: a conversion would wait for the load.
                    self.writer.line(f"{to} = {place}")

    def store_indices(self, span: int, first: str = "first", tile: str = "") -> None:
        """Check and clamp the indices of ``span`` tokens from ``first`` on, into slot ``slot`` and
        on: all that :meth:`load_indices` copied, or of those that :meth:`take_indices` took the
        tile of this number.
        """
        if not self.indices:
            return
        entries = self.tile * self.rows
        with self._index_lanes(span, first) as (group, at, (b, h)):
            to = at
            with contextlib.ExitStack() as stack:
                if tile and span > self.tile:
                    stack.enter_context(self.writer.block(f"if {at} // {entries} == {tile}:"))
                    to = f"{at} % {entries}"
                for index in self.indices:
                    assert isinstance(index.type, Index)
                    name, bound = index.name, index.type.bound
                    found = f"{name}_now[{group}]" if tile else self._next_index(index, group, at)
                    self.writer.line(f"worst[0] = T.Cast('uint64', {found})")
                    self._report(name, "range", bound, f"{b} * L * H + t * H + {h}")
                    clamped = f"T.min(worst[0], T.uint64({bound - 1}))"
                    place = f"ring_{name}[{self.slot} * {entries} + {to}]"
                    self.writer.line(f"{place} = T.Cast('int32', {clamped})")

    @contextmanager
    def _index_lanes(self, span: int, first: str) -> Iterator[tuple[str, str, tuple[str, str]]]:
        """A token of a row for every lane; gives the number of the group of them, the place in
        the group, and ``b`` and ``h``.
        """
        lanes, count = self.copying, span * self.rows
        with contextlib.ExitStack() as stack:
            group, at = "0", "lane"
            if count > lanes:
                groups = -(-count // lanes)
                stack.enter_context(self.writer.block(f"for group in T.unroll({groups}):"))
                group, at = "group", f"(group * {lanes} + lane)"
            stack.enter_context(self._guard(f"{at} < {count}", count % lanes != 0))
            u = at if self.rows == 1 else f"{at} // {self.rows}"
            self._step(f"{first} + T.Cast('int64', {u})")
            yield group, at, stack.enter_context(self._of_side(f"({at} % {self.rows})"))

    def wait(self, barrier: str, parity: str) -> None:
        """Wait until a barrier of :attr:`arrived` has passed a phase of this parity."""
        self.call("lane_wait", f"T.address_of(arrived[{barrier}])", parity)

    def arrive(self) -> None:
        """Tell that slot ``slot`` is filled, once the copies are there."""
        for function in ("lane_arrive_with_copies", "lane_arrive"):
            self.call(function, f"T.address_of(arrived[{self.slot}])")

    def release(self) -> None:
        """Give slot ``slot`` back."""
        self.sync()
        with self.writer.block(f"if lane < {self.releasing}:"):
            self.call("lane_arrive", f"T.address_of(arrived[{self.ring} + {self.slot}])")

    def copies_done(self, but_last: bool = False) -> None:
        """Wait until what this team has copied, but for the last group, can be read by all its
        lanes.
        """
        self.call("lane_copies_but_last" if but_last else "lane_copies_done")
        self.sync()

    def hold(self, registers: int) -> None:
        """Read the inputs of all tokens of slot ``slot`` into a set of registers."""
        self.held, self.known = None, {}
        with self.writer.block(f"for u in T.unroll({self.tile}):"):
            for index in self.indices:
                name = self._own_name(f"{index.name}_k{registers}")
                self.writer.line(f"{name}[u] = {self._ring_index(index)}")
                self.known[index] = (f"{name}[u]",)
            for argument in self.streamed:
                if isinstance(argument.type, Scalar):
                    self._hold(argument, "0", "u", registers)
            for value in self.selects:
                if self._is_collected(value):
                    name = f"{self.names[value]}_kind{registers}"
                    self.writer.line(f"{name}[u] = {self._kind(value)}")
            with self._over(None) as j:
                for argument in self.streamed:
                    if not isinstance(argument.type, Scalar):
                        self._hold(argument, j, f"(u * {self.elements} + e)", registers)
                for value in self.selects:
                    self._hold_map(value, j, registers)
        self.held = registers

    def _hold(self, argument: Argument, j: str, at: str, registers: int) -> None:
        place = self._place(argument, j)
        parts = 2 if argument.complex else 1
        for part in range(parts):
            name = self._held_name(argument.name, registers)
            held = f"{name}[{at} * {parts} + {part}]"
            self.writer.line(f"{held} = {place[:-1]} + {part}]")

    def _hold_map(self, value: Value, j: str, registers: int) -> None:
        at, name = f"u * {self.elements} + e", self.names[value]
        if self._is_read(value):
            self.writer.line(f"{name}_held{registers}[{at}] = {self._table_entry(value, j)}")
        if self._is_collected(value):
            for word, place in enumerate(self._fan_words(value, j)):
                self.writer.line(f"{name}_fan{registers}[({at}) * 2 + {word}] = {place}")

    def _ring_index(self, index: Value) -> str:
        if self.rows == 1:
            return f"ring_{index.name}[{self.slot} * {self.tile} + u]"
        return f"ring_{index.name}[({self.slot} * {self.tile} + u) * {self.rows} + {self._side}]"

    def _is_streamed(self, argument: Argument) -> bool:
        return argument.role in ("token", "lagged") and not argument.written

    def _place(self, argument: Argument, j: str, t: str = "t") -> str:
        if not self._is_streamed(argument):
            return super()._place(argument, j, t)
        parts = 2 if argument.complex else 1
        own = "" if isinstance(argument.type, Scalar) else f" + e * {parts}"
        # What this lane holds; elements of others are still in the ring.
        if self.held is not None and j in ("j", "0"):
            name = self._held_name(argument.name, self.held)
            return f"{name}[u * {self._held_step(argument)}{own}]"
        return self._ring_place(argument, j)

    def _ring_place(self, argument: Argument, j: str) -> str:
        """An element of a token's tensor in the slot, the parts of a complex number left open."""
        parts, elements = 2 if argument.complex else 1, self._token_elements(argument)
        own = f" + {j} * {parts}"
        if isinstance(argument.type, Scalar):
            own = self._times_side(parts)
        return f"ring_{argument.name}[({self.slot} * {self.tile} + u) * {elements}{own}]"
