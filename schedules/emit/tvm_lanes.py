"""One token of any program on the lanes of a warp, as TVMScript for CUDA.

A row belongs to one warp: element ``j`` lives in lane ``j % 32``, as that lane's element number
``j // 32``. Lanes beyond the state size repeat its last element, so they need no guards. Elements
of other lanes are read by shuffles where a lane holds one element, through shared memory where it
holds several; ``scatter_add`` lets every target collect its sources, so no sum depends on timing.

Inputs of the tokens come from a *ring* in shared memory that another warp fills ahead
(:meth:`TvmLanes.produce`); of a whole tile of tokens they are first read into registers
(:meth:`TvmLanes.hold`). Device functions are in ``lanes/``.
"""

from collections.abc import Callable, Iterator
from functools import reduce

from pdssm_compiler.ir.types import Map, is_complex
from pdssm_compiler.ir.value import Value
from pdssm_compiler.schedules.emit.arithmetic import Parts, part_names
from pdssm_compiler.schedules.emit.lane_sums import LaneSums
from pdssm_compiler.schedules.emit.shared_memory import SharedBuffer, padded
from pdssm_compiler.schedules.emit.tvm import real_dtype
from pdssm_compiler.schedules.signature import Argument, width_of


class TvmLanes(LaneSums):
    """Writes the parts of a kernel that depend on the program: see :class:`LaneBody` for its
    arguments.

    Attributes:
        sums_runs_by: the device function that sums over a sorted map's runs: written out where it
            is called, or called, which takes a little longer and less of the instruction cache.
    """

    sums_runs_by = "lane_sum_runs"
    # The kind that maps in hand are at most of, 1 or 2, as the kernel has asked; or any.
    _few: int | None = None

    def exchange_buffers(self) -> Iterator[SharedBuffer]:
        """Where the lanes of a row leave values for one another."""
        yield from self.lasting_buffers()
        yield from self.passing_buffers()

    def lasting_buffers(self) -> Iterator[SharedBuffer]:
        """Those that keep a zero behind their elements, for sources that are missing."""
        for value in self._with_zeros:
            yield self._exchange_buffer(value)

    def passing_buffers(self) -> Iterator[SharedBuffer]:
        """Those that hold nothing from token to token: another body may use their place."""
        for value in self.program.body:
            if self._exchange_elements(value) and value not in self._with_zeros:
                yield self._exchange_buffer(value)
            if value.op == "sum" and self.team > 1:
                size = self.team * self.tile
                yield (f"sum_{self.names[value]}", real_dtype(value.type), size)
        for value in self._collects_any():
            yield (f"collect_{self.names[value]}", "uint8", self._scratch(value))
        for value in self.program.body:
            if self._is_prepared(value) and self._sources_kind == "team":
                each = width_of(real_dtype(value.type)) * (2 if is_complex(value.type) else 1)
                size = self.width * each + self.team * (each + 4)
                yield (f"runs_{self.names[value]}", "uint8", size)

    def _exchange_buffer(self, value: Value) -> SharedBuffer:
        size = self._exchange_elements(value)
        return (self._exchange_name(value), real_dtype(value.type), size)

    @property
    def _with_zeros(self) -> list[Value]:
        """What is collected by prepared maps, through memory."""
        prepared = {v.args[0] for v in self.program.body if self._is_prepared(v)}
        return [v for v in self.program.body if v in prepared and self._exchange_elements(v)]

    def _scratch(self, value: Value) -> int:
        """Bytes of a team for a scatter by any map: the values, two numbers an element, and of
        several warps one more; by a sorted map: the values twice, one and a number a warp.
        """
        n = self.width
        each = width_of(real_dtype(value.type)) * (2 if is_complex(value.type) else 1)
        if value.args[1] in self.sorted_maps:
            return padded(2 * n * each + self.team * (each + 4)) if self.team > 1 else 16
        return padded(n * (each + 8) + 4 * (self.team > 1))

    @property
    def sorted_maps(self) -> dict[Value, Parts]:
        """Maps whose sorted form is at hand, and where: this lane's ``order`` and ``last``."""
        return {}

    def arrays(self) -> None:
        for carry in self.program.carries:
            self._array(self._own_name(carry.name), carry.type, 0)
        self.value_arrays()

    def value_arrays(self) -> None:
        """Arrays of everything but the carries."""
        for value in self.program.body:
            kept = value in self.stages.stored and not self._own(value)
            if kept or value.op in ("scatter_add", "sum"):
                self._array(self.names[value], value.type, 0)
        for value in self._collects_any():
            self._local(f"{self.names[value]}_to", "int32", self.elements)
        for value in self._postponable:
            for name in part_names(f"{self.names[value]}_tile", value.type):
                self._local(name, real_dtype(value.type), self.tile.bit_length())
        for registers in range(self.sets):
            self._registers(registers)
        for input_ in self._constants():
            self._array(self._own_name(f"{input_.name}_row"), input_.type, 0)

    def clear_exchanges(self, threads: int) -> None:
        """Zero what a missing source is read from; by all threads, before a barrier."""
        for name, dtype, size in self.lasting_buffers():
            with self._strided(self.teams * size, threads) as at:
                place = at
                if self.teams > 1:
                    stride = self.team_bytes // width_of(dtype)
                    place = f"{at} // {size} * {stride} + {at} % {size}"
                self.writer.line(f"{name}[{place}] = T.{dtype}(0)")

    def sort_buffers(self) -> Iterator[SharedBuffer]:
        """Scratch of :meth:`sort`: a number an element and warp, two an element, one a warp."""
        numbers = self.width * (self.team + 2) + self.team
        yield ("sorting", "int32", numbers)

    def sort(self, map_: str, order: str, last: str) -> None:
        """Sort a map: places of this lane's entry, and of its part of the sorted form."""
        self.call(
            "lane_sort",
            f"T.address_of({order})",
            f"T.address_of({last})",
            map_,
            f"T.address_of(sorting[{self._of_team('int32')}0])",
            "lane",
            str(self.width),
            *self._barrier,
        )

    def _index(self, value: Value) -> None:
        name = value.name
        if value not in self.indices:
            self.writer.line(f"{name}_k: T.let = {self._row_index(value)}")
        else:
            held = self._ring_index(value)
            if self.held is not None:
                held = self._own_name(f"{name}_k{self.held}[u]")
            self.writer.line(f"{name}_k: T.let = {held}")
        self.known[value] = (f"{name}_k",)

    def token(self) -> None:
        super().token()
        if self.copies == 1 and any(map(self._exchange_elements, self.program.body)):
            self.sync()

    def held_tokens(self, begin: Callable[[], None]) -> None:
        """Run the tokens of the tile that is in registers, of a row in order.

        Few maps have a target of many sources. A token that asks for itself whether its map has
        takes longer to ask than to add, and what it might do stands in the instruction cache
        beside what it does; so here a tile asks once for all its tokens, and where rows come in
        chunks a chunk does. Where all the head's maps have few, which :meth:`find_most_sources`
        has found, it does not wait for the tile's to ask.

        Args:
            begin: writes what token ``u`` starts with.
        """
        listed = self.listed
        if not listed:
            self.unrolled(begin)
            return
        kinds = (f"{self.names[v]}_kind{self.held}[{u}]" for v in listed for u in range(self.tile))
        of_tile = reduce(lambda one, other: f"T.max({one}, {other})", kinds)
        few, of_head = self._own_name("few"), f"{self._own_name('most_kind')}[0]"
        self.writer.line(f"{few}[0] = {self.all_at_most(1, of_head)}")
        with self.writer.block(f"if {few}[0] == 0:"):
            self.writer.line(f"{few}[0] = {self.all_at_most(1, of_tile)}")
        with self.writer.block(f"if {few}[0] != 0:"):
            self.with_few(1, begin)
        with self.writer.block("else:"):
            if not self.through_memory:
                # In pairs hardly a map has more.
                self.unrolled(begin)
                return
            with self.writer.block(f"if {self.all_at_most(2, of_tile)} != 0:"):
                self.with_few(2, begin)
            with self.writer.block("else:"):
                self.unrolled(begin)

    @property
    def listed(self) -> list[Value]:
        """The selected maps whose sources are listed."""
        return [value for value in self.selects if self._is_collected(value)]

    def all_at_most(self, most: int, number: str) -> str:
        """Whether a number is at most this one in all lanes; 1 or 0."""
        return self._called(f"lane_all_at_most<{most}>", number, dtype="int32")

    def with_few(self, kind: int, begin: Callable[[], None]) -> None:
        """The tile's tokens where maps are at most of a kind of ``lanes/collecting.cuh``."""
        self._few = kind
        self.unrolled(begin)
        self._few = None

    def kinds_in_ring(self, u: str) -> Iterator[str]:
        """The kind of each map that token ``u``, from slot ``slot`` on, selects and collects by,
        in each row; tokens select every map that is listed.
        """
        for value in self.listed:
            table, index = value.args
            size = self._table_size(table.name)
            for side in range(self.rows):
                at = f"({self.slot} * {self.tile} + {u}) * {self.rows} + {side}"
                yield f"kind_{table.name}[ring_{index.name}[{at}] + {side * size}]"

    def unrolled(self, begin: Callable[[], None]) -> None:
        """Run the tokens of the tile that is in registers; ``begin`` as of :meth:`held_tokens`."""
        with self.writer.block(f"for u in T.unroll({self.tile}):"):
            begin()
            self.token()

    def _loop(self, stage: int) -> None:
        super()._loop(stage)
        here = [v for v in self.program.body if self.stages.computed[v] == stage]
        if any(self._exchange_elements(value) for value in here):
            self.sync()

    def _clear(self, stage: int) -> None:
        inverts = False
        for value in self.program.body:
            if self.stages.computed[value] != stage:
                continue
            if value.op == "sum":
                for place in self._array_places(value, "0"):
                    self.writer.line(f"{place} = T.{real_dtype(value.type)}(0)")
            elif value.op == "invert":
                inverts = True
                with self._over(None) as j:
                    self.writer.line(f"{self._exchange(value, j)} = 0")
            elif value in self._collects_any():
                self._collect_any(value)
        if inverts:
            self.sync()

    def _element(self, value: Value, j: str) -> None:
        if value.is_leaf:
            if value in self.exchanged:
                self._publish(value, self._parts(value, j), j)
            return
        if value.op in ("select", "iota"):
            return
        if value.op == "invert":
            (map_,) = self._parts(value.args[0], j)
            self.call("lane_max", f"T.address_of({self._exchange(value, map_)})", j)
            return
        if value.op == "scatter_add":
            self._collect(value, j)
        elif value.op in ("gather", "compose"):
            (map_,) = self._parts(value.args[1], j)
            self._bind(value, self._elsewhere(value.args[0], map_))
        else:
            self._bind(value, self._expression(value))
        if value in self.stages.stored or value in self.exchanged:
            self._publish(value, self.known[value], j)

    def _publish(self, value: Value, parts: Parts, j: str) -> None:
        """Keep a value for later loops, and where other lanes find it."""
        if value in self.stages.stored and not self._own(value):
            for place, part in zip(self._array_places(value, j), parts, strict=True):
                self.writer.line(f"{place} = {part}")
        if self._exchange_elements(value):
            if is_complex(value.type):
                self.call("lane_put", f"T.address_of({self._exchange(value, j)})", *parts)
            else:
                self.writer.line(f"{self._exchange(value, j)} = {parts[0]}")

    def _exchange(self, value: Value, j: str, part: int = 0) -> str:
        """Element ``j`` of a value in shared memory."""
        n, parts = self.width, 2 if is_complex(value.type) else 1
        own = self._of_team(real_dtype(value.type))
        at = f"u % 2 * {n + 1} + {j}" if self.copies == 2 else j
        return f"{self._exchange_name(value)}[{own}({at}) * {parts} + {part}]"

    def _exchange_name(self, value: Value) -> str:
        name = self.names[value]
        return f"x_{self._own_name(name) if value.is_leaf else name}"

    def _elsewhere(self, value: Value, i: str) -> Parts:
        """Element ``i`` of a value, which another lane may hold."""
        if self._everywhere(value):
            return self._at(value, i)
        if self.through_memory:
            parts = 2 if is_complex(value.type) else 1
            return tuple(self._exchange(value, i, part) for part in range(parts))
        return tuple(
            self._called("lane_shuffle", part, i, returns=value.type)
            for part in self._parts(value, "j")
        )

    def _clamped(self, argument: Argument, place: str) -> str:
        """In memory maps lead within a row; here elements are numbered through all of them."""
        return super()._clamped(argument, place) + self._times_side(self.program.state_size)

    def _store(self, argument: Argument, leading: list[str], j: str, parts: Parts) -> None:
        if isinstance(argument.type, Map):
            parts = tuple(self.within(part) for part in parts)
        super()._store(argument, leading, j, parts)

    def to_row(self, order: str, last: str) -> Parts:
        """A sorted form as it stands in memory, its sources and places numbered in their row."""
        if self.rows == 1:
            return order, last
        past = f"{self._side} * {self.program.state_size}"
        return f"{order} - {past}", f"T.Select({last} < 0, {last}, {last} - {past})"

    def from_row(self, order: str, last: str) -> Parts:
        """What :meth:`to_row` gave, as it was."""
        if self.rows == 1:
            return order, last
        past = f"{self._side} * {self.program.state_size}"
        return f"({order} + {past})", f"T.Select({last} < 0, {last}, {last} + {past})"

    def _collect_any(self, value: Value) -> None:
        """``scatter_add`` by a map that is not prepared: all elements at once."""
        source, map_ = value.args
        to = f"{self.names[value]}_to"
        form = self.sorted_maps.get(map_)
        known = dict(self.known)
        with self._over(None) as j:
            parts = self._parts(source, j)
            for place, part in zip(self._array_places(value, j), parts, strict=True):
                self.writer.line(f"{place} = {part}")
            if form is None:
                self.writer.line(f"{to}[e] = {self._parts(map_, j)[0]}")
        self.known = known
        names = part_names(self.names[value], value.type)
        scratch = f"collect_{self.names[value]}[{self._of_team('uint8')}0]"
        places = [f"T.address_of({name}[0])" for name in names]
        row = (f"T.address_of({scratch})", "lane", str(self.width))
        if form is not None:
            self.call(self.sums_runs_by, *places, *form, *row, *self._barrier)
        elif self.team > 1:
            function = f"lane_collect_listed<{self.elements}>"
            self.call(function, *places, f"T.address_of({to}[0])", *row, *self._barrier)
        else:
            to = f"T.address_of({to}[0])"
            self.call(f"lane_collect_{self.elements}", *places, to, *row)

    def _collect(self, value: Value, j: str) -> None:
        """``scatter_add``: each target collects its sources."""
        if self._is_prepared(value):
            self._collect_prepared(value, j)
        self.known[value] = self._array_places(value, j)

    def _collect_prepared(self, value: Value, j: str) -> None:
        source, map_ = value.args
        n, name = self.program.state_size, map_.args[0].name
        k = self._selected(map_)
        more = f"fan_{name}[{k} * {4 * n} + {2 * n} + {self.within(j)} * 2]"
        at = f"(u * {self.elements} + e) * 2"
        words, kind = self._fan_words(map_, j), self._kind(map_)
        if self.held is not None:
            held = f"{self.names[map_]}_fan{self.held}"
            words = (f"{held}[{at}]", f"{held}[{at} + 1]")
            kind = f"{self.names[map_]}_kind{self.held}[u]"
        to = [f"T.address_of({place})" for place in self._array_places(value, j)]
        if self.through_memory:
            values: Parts = (f"T.address_of({self._exchange(source, '0')})",)
        else:
            values = self._parts(source, "j")
        if self._few is not None:
            where = "shared" if self.through_memory else "registers"
            function = f"lane_few_{where}<{self._few}>"
            self.call(function, *to, *values, *words, f"T.address_of({more})")
            return
        if not self.through_memory:
            values = (*values, "lane" if self.rows == 1 else self.own_lane)
        if self._sources_kind == "team":
            runs = f"runs_{self.names[value]}[{self._of_team('uint8')}0]"
            values += (f"T.address_of({runs})", "lane", *self._barrier)
        self.call(
            f"lane_fan_in_{self._sources_kind}",
            *to,
            *values,
            *words,
            kind,
            f"T.address_of({more})",
            f"T.address_of(table_{name}[{k} * {n}])",
            self.within(j),
            str(n),
        )

    def _at(self, value: Value, i: str) -> Parts:
        if value.op == "select":
            if self.held is not None and i == "j":
                return (f"{self.names[value]}_held{self.held}[u * {self.elements} + e]",)
            return (self._table_entry(value, i),)
        if value.op == "invert":
            return (self._exchange(value, i),)
        if value.is_leaf or value.op == "iota":
            return super()._at(value, i)
        return self._array_places(value, i)
