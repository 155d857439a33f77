"""Tables of maps in shared memory: copied, checked, inverted, their sources listed by target."""

from collections.abc import Iterator
from contextlib import contextmanager

from pdssm_compiler.ir.types import Index, Table
from pdssm_compiler.ir.value import Value
from pdssm_compiler.schedules.emit.arithmetic import Parts
from pdssm_compiler.schedules.emit.lane_body import LANES, MOST_STATES, LaneBody
from pdssm_compiler.schedules.emit.shared_memory import SharedBuffer
from pdssm_compiler.schedules.signature import needs_range_check

# Bytes for the warps that prepare tables, beside the ring and the tables.
_COUNTING_BYTES = 32 * 1024


class LaneTables(LaneBody):
    """Adds the tables that maps are selected from."""

    def table_buffers(self) -> Iterator[SharedBuffer]:
        """Scratch of each warp that prepares a table."""
        if any(self._tables.values()):
            warps = self.team if self.teams > 1 else self._preparing
            yield ("counts", "int32", warps * self.program.state_size)

    @property
    def _entry(self) -> str:
        """The dtype of a table's entries in shared memory."""
        return "uint8" if self.program.state_size <= MOST_STATES else "uint16"

    @property
    def _preparing(self) -> int:
        """Warps that prepare tables, a map each."""
        return min(self.warps, _COUNTING_BYTES // (4 * self.program.state_size))

    @property
    def inverted_tables(self) -> list[str]:
        """Tables of inverses, for which the kernel is handed the tables themselves."""
        if not self.tables:
            return []
        return [name for name in self._tables if self.program.input(name).inverse_of is not None]

    def load_tables(self, threads: int) -> None:
        """Copy the head's tables, checked, clamped and inverted; by all threads, before a
        barrier. Tables that are read where they are are checked alone.
        """
        n = self.program.state_size
        for name in self._tables:
            inverts = name in self.inverted_tables
            checked = inverts or needs_range_check(self.program.input(name))
            if not (self.tables or (checked and self.signature.reports)):
                continue
            with self._table_entries(name, threads) as (at, h):
                entry = self._given_entry(name, at, h)
                if checked:
                    if self.signature.reports:
                        self.writer.line(f"worst[0] = {entry}")
                        where = self._map_number(name, at, h) if inverts else h
                        self._report(name, "range", n, where)
                    entry = f"T.min({entry}, T.uint64({n - 1}))"
                place = at
                if inverts:
                    place = f"{at} // {n} * {n} + T.Cast('int32', {entry})"
                    entry = f"{at} % {n}"
                if self.tables:
                    self.writer.line(f"table_{name}[{place}] = T.Cast('{self._entry}', {entry})")

    def check_inverses(self, threads: int) -> None:
        """Report maps that are not what was promised, and clamp what nothing was written to; by
        all threads, between barriers.
        """
        n = self.program.state_size
        for name in self.inverted_tables:
            with self._table_entries(name, threads) as (at, h):
                given = self._given_entry(name, at, h)
                entry = f"T.Cast('int32', T.min({given}, T.uint64({n - 1})))"
                found = f"T.Cast('int32', table_{name}[{at} // {n} * {n} + {entry}])"
                self.writer.line(
                    f"worst[0] = T.if_then_else({found} == {at} % {n}, T.uint64(0), T.uint64(1))"
                )
                type_ = self.program.input(name).type
                assert isinstance(type_, Table)
                self._report(name, type_.map_class, 1, self._map_number(name, at, h))
                own = f"table_{name}[{at}]"
                self.writer.line(f"{own} = T.min({own}, T.{self._entry}({n - 1}))")

    @contextmanager
    def _table_entries(self, name: str, threads: int) -> Iterator[tuple[str, str]]:
        """A loop of all threads over the entries of a table, of each row side by side; gives the
        entry's number and the head.
        """
        each = self._table_size(name) * self.program.state_size
        with (
            self._strided(self.rows * each, threads) as at,
            self._of_side(f"({at} // {each})") as (_, h),
        ):
            yield at, h

    def _of_table(self, name: str, number: str, each: int) -> str:
        """A number through all rows' tables as one of its own table, of ``each`` to a map."""
        return number if self.rows == 1 else f"({number} % {self._table_size(name) * each})"

    def _given_entry(self, name: str, at: str, h: str) -> str:
        """An entry of a head's table in global memory."""
        place = self._tensor(self._argument(name), [h], [])
        own = self._of_table(name, at, self.program.state_size)
        return f"T.Cast('uint64', {place[:-1]} + {own}])"

    def _map_number(self, name: str, at: str, h: str) -> str:
        """What tells a map of a table when it is reported: its number, then the head."""
        number = self._of_table(name, f"({at} // {self.program.state_size})", 1)
        return f"T.Cast('int64', {number}) * H + {h}"

    def prepare_tables(self) -> None:
        """Sources by target of every map that a scatter_add collects by; a warp a map."""
        n, warps = self.program.state_size, self._preparing
        kind = self._sources_kind
        warp = f"thread // {LANES}"
        own = f"{warp} % {self.team}" if self.teams > 1 else warp
        for name, collected in self._tables.items():
            if collected:
                each = self._table_size(name)
                size = self.rows * each
                with self.writer.block(f"for step in T.serial({-(-size // warps)}):"):
                    self.writer.line(f"k: T.let = step * {warps} + {warp}")
                    mine = f"k < {size}"
                    if warps < self.warps:
                        mine = f"thread < {warps * LANES} and {mine}"
                    with self.writer.block(f"if {mine}:"):
                        self.call(
                            f"lane_prepare_{kind}",
                            f"T.address_of(fan_{name}[k * {4 * n}])",
                            f"T.address_of(kind_{name}[k])",
                            f"T.address_of(counts[{self._of_team('int32')}{own} * {n}])",
                            f"T.address_of(table_{name}[k * {n}])",
                            f"thread % {LANES}",
                            str(n),
                            # Sources are numbered through all rows side by side.
                            *([f"k // {each} * {n}"] if self.rows > 1 else []),
                        )

    def find_most_sources(self) -> None:
        """Find once what :meth:`~pdssm_compiler.schedules.emit.tvm_lanes.TvmLanes.held_tokens`
        asks: the kind of the map of the head's tables whose targets have the most sources; by
        every warp, after a barrier. See ``lanes/collecting.cuh`` for kinds.
        """
        if not any(self._tables.values()):
            return
        for local in ("most_kind", "few"):
            self._local(self._own_name(local), "int32", 1)
        self.writer.line(f"{self._own_name('most_kind')}[0] = 0")
        for name, collected in self._tables.items():
            if collected:
                self.call(
                    "lane_most",
                    f"T.address_of({self._own_name('most_kind')}[0])",
                    f"T.address_of(kind_{name}[0])",
                    str(self.rows * self._table_size(name)),
                    f"thread % {LANES}",
                )

    def _selected(self, value: Value) -> str:
        """Which map of its table a selected map is."""
        index = value.args[1]
        k = self.known[index][0] if index in self.known else self._row_index(index)
        size = self._table_size(value.args[0].name)
        return k if self.rows == 1 else f"({k}{self._times_side(size)})"

    def _row_index(self, index: Value) -> str:
        """An index that is one for all tokens of a row (checked before the first)."""
        assert isinstance(index.type, Index)
        place = super()._place(self._argument(index.name), "")
        limit = f"T.uint64({index.type.bound - 1})"
        return f"T.Cast('int32', T.min(T.Cast('uint64', {place}), {limit}))"

    def _table_entry(self, value: Value, j: str) -> str:
        k, name = self._selected(value), value.args[0].name
        if self.tables:
            n = self.program.state_size
            entry = f"T.Cast('int32', table_{name}[{k} * {n} + {self.within(j)}])"
            return entry + self._times_side(n)
        place = self._tensor(self._argument(name), ["h"], [k, j])
        if self._is_from_outside(name):
            return self._clamped(self._argument(name), place)
        return f"T.Cast('int32', {place})"

    def _is_from_outside(self, name: str) -> bool:
        """Whether a table that is read where it is may hold anything."""
        return needs_range_check(self.program.input(name))

    def _kind(self, value: Value) -> str:
        """How many sources the targets of a selected map have; see ``lanes/collecting.cuh``."""
        return f"kind_{value.args[0].name}[{self._selected(value)}]"

    def _fan_words(self, value: Value, j: str) -> Parts:
        """What target ``j`` collects first."""
        k, n, name = self._selected(value), self.program.state_size, value.args[0].name
        own = self.within(j)
        return tuple(f"fan_{name}[{k} * {4 * n} + {own} * 2 + {word}]" for word in (0, 1))

    @property
    def _sources_kind(self) -> str:
        """Where sources by prepared maps are read: in registers, or in shared memory; a ``team``
        with one element a lane sums over runs where a target has many.
        """
        if not self.through_memory:
            return "registers" if self.rows == 1 else "sides"
        return "team" if self.elements == 1 else "shared"
