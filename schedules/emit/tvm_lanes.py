"""One token of any program on the lanes of a warp, as TVMScript for CUDA.

A row belongs to one warp: element ``j`` lives in lane ``j % 32``, as that lane's element number
``j // 32``. Lanes beyond the state size repeat its last element, so they need no guards. Elements
of other lanes are read by shuffles where a lane holds one element, through shared memory where it
holds several; ``scatter_add`` lets every target collect its sources, so no sum depends on timing.

Inputs of the tokens come from a *ring* in shared memory that another warp fills ahead
(:meth:`TvmLanes.produce`); of a whole tile of tokens they are first read into registers
(:meth:`TvmLanes.hold`). Device functions are in ``lanes.cuh``.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from pdssm_compiler.ir.program import Input, Program, TokenOutput
from pdssm_compiler.ir.types import Index, Map, Scalar, Table, Type, is_complex, is_number
from pdssm_compiler.ir.value import Value
from pdssm_compiler.schedules.emit.arithmetic import Parts, part_names
from pdssm_compiler.schedules.emit.shared_memory import SharedBuffer, padded
from pdssm_compiler.schedules.emit.stages import Reach, is_uniform
from pdssm_compiler.schedules.emit.tvm import TvmBody, buffer_dtype, real_dtype, width_of
from pdssm_compiler.schedules.signature import Argument, Signature, needs_range_check
from pdssm_compiler.schedules.source import Writer

LANES = 32
# What the entries of a table in shared memory, of 8 bits, can count; those of more take 16.
MOST_STATES = 256
# Bytes for the warps that prepare tables, beside the ring and the tables.
_COUNTING_BYTES = 32 * 1024
# The source of the device functions, which generated text calls LANE_FUNCTIONS.
LANE_FUNCTIONS = (Path(__file__).parent / "lanes.cuh").read_text()


def row_elements(argument: Argument, state_size: int) -> int:
    """Reals or integers of one token of one row."""
    count = 1
    for size in argument.own_shape(state_size):
        count *= size
    return count


class TvmLanes(TvmBody):
    """Writes the parts of a kernel that depend on the program.

    Args:
        program: the program.
        writer: what to write to.
        tile: tokens of a ring slot; even.
        ring: slots of the ring, of all warps.
        sets: sets of registers for the inputs of a tile, 1 or 2; 0 where no tile is held.
        warps: warps of the block.
        team: warps that hold a row's elements together.
        teams: how many teams run tokens; where several do, ``team`` numbers them.
        copying: lanes that fill a slot together.
        stays: whether a slot keeps its tokens while they run.
        copies: of what lanes leave for one another in a token: 2, or 1 to save shared memory: then
            the next token waits until all have read this one's.
        tables: what shared memory holds of the head's tables: 0 nothing, 1 the maps, 2 the sources
            of each target as well, where something is scattered by them.
        prefix: of the names of what is the body's own, where a kernel has several bodies.
        signature: the calling convention, where it is not simply the program's.
    """

    def __init__(
        self,
        program: Program,
        writer: Writer,
        *,
        tile: int,
        ring: int,
        sets: int = 1,
        warps: int = 2,
        team: int = 1,
        teams: int = 1,
        copying: int = LANES,
        stays: bool = False,
        copies: int = 2,
        tables: int = 2,
        prefix: str = "",
        signature: Signature | None = None,
    ) -> None:
        self.tile = tile
        self.sets = sets
        self.warps = warps
        self.team = team
        self.teams = teams
        # Bytes between the shared memory of two teams (SharedMemory.team_bytes).
        self.team_bytes = 0
        self.copying = copying
        self.lanes = team * LANES
        self.ring = ring
        self.stays = stays
        self.copies = copies
        self.tables = tables
        self.prefix = prefix
        self.elements = -(-program.state_size // self.lanes)
        # Where elements of other lanes are read: in their registers, or in shared memory.
        self.through_memory = self.elements > 1 or team > 1
        # What generated text calls the slot in hand.
        self.slot = "slot"
        # Which set of registers has the token's inputs; None: they are in the ring.
        self.held: int | None = 0
        # Whether sums of elements that are only written out wait for the end of their tile.
        self._puts_off = False
        reach = Reach(self._everywhere, self._own, "collect")
        super().__init__(program, writer, reach, signature=signature)
        self.names = {
            value: name if value.is_leaf else self._own_name(name)
            for value, name in self.names.items()
        }
        self.exchanged = self._exchanged()

    def _own_name(self, name: str) -> str:
        return f"{self.prefix}{name}"

    # -- what is where --------------------------------------------------------------------------

    def _everywhere(self, value: Value) -> bool:
        if value.op == "input" and self.stays and not is_uniform(value):
            return self.program.input(value.name).role == "token"
        return value.op in ("select", "iota", "invert")

    @staticmethod
    def _own(value: Value) -> bool:
        return value.is_leaf or value.op in ("select", "iota", "invert", "scatter_add")

    def _exchanged(self) -> set[Value]:
        """Values that other lanes read."""
        found = set()
        for value in self.program.body:
            if self._is_prepared(value) or value.op in ("gather", "compose"):
                found.add(value.args[0])
        return {value for value in found if not self._everywhere(value)}

    @property
    def streamed(self) -> list[Argument]:
        """The inputs that the ring holds as they are: everything a token reads but indices."""
        read = {value.name for value in self.program.body if value.op == "input"}
        return [
            argument
            for argument in self.signature.inputs
            if argument.role in ("token", "lagged")
            and not isinstance(argument.type, Index)
            and (argument.name in read or isinstance(argument.type, Map))
        ]

    @property
    def indices(self) -> list[Value]:
        """The indices that vary by token."""
        return [
            value
            for value in self.program.body
            if isinstance(value.type, Index) and self.program.input(value.name).role == "token"
        ]

    @property
    def selects(self) -> list[Value]:
        """The maps selected from tables."""
        return [value for value in self.program.body if value.op == "select"]

    def _is_prepared(self, value: Value) -> bool:
        """Whether a value is a scatter_add by a map whose sources are listed."""
        return value.op == "scatter_add" and value.args[1].op == "select" and self.tables == 2

    def _is_collected(self, map_: Value) -> bool:
        """Whether a selected map's sources are listed."""
        return any(self._is_prepared(v) and v.args[1] is map_ for v in self.program.body)

    def _is_read(self, map_: Value) -> bool:
        """Whether a selected map is used as a map."""
        results = (*(c.next for c in self.program.carries), *self.program.roots)
        return map_ in results or any(
            map_ in v.args and not (self._is_prepared(v) and v.args[0] is not map_)
            for v in self.program.body
        )

    @property
    def _tables(self) -> dict[str, bool]:
        """Tables that maps are selected from, and whether their sources are listed."""
        found: dict[str, bool] = {}
        for value in self.selects:
            name = value.args[0].name
            found[name] = found.get(name, False) or self._is_collected(value)
        return found

    def _table_size(self, name: str) -> int:
        type_ = self.program.input(name).type
        assert isinstance(type_, Table)
        return type_.size

    def _exchange_elements(self, value: Value) -> int:
        """Reals or integers of a value's exchange, each copy with a zero behind its elements. With
        two, the next token's writes do not meet this one's reads.
        """
        in_memory = value in self.exchanged and self.through_memory
        if not (in_memory or value.op == "invert"):
            return 0
        return self.copies * (self.program.state_size + 1) * (2 if is_complex(value.type) else 1)

    def _collects_any(self) -> list[Value]:
        """Scatters by maps that are not prepared."""
        scattered = (v for v in self.program.body if v.op == "scatter_add")
        return [value for value in scattered if not self._is_prepared(value)]

    # -- declarations ---------------------------------------------------------------------------

    def parameters(self) -> list[str]:
        """The base's tensors, then their leading strides, in reals, and the sizes."""
        strides = [
            f"{argument.name}_s{axis}: T.int64"
            for argument in self.signature.arguments
            for axis in argument.leading
        ]
        return [*super().parameters(), *strides, "L: T.int64", "H: T.int64"]

    def buffers(self) -> None:
        """Bind every tensor as a flat one: TVM's pipeline for GPUs takes no other strides."""
        for argument in self.signature.arguments:
            self.flat_buffer(argument.name, buffer_dtype(argument))
        self.flat_buffer("error", "int64")

    def flat_buffer(self, name: str, dtype: str) -> None:
        """Bind a tensor."""
        self.writer.line(f"{name}_n = T.int64()")
        self.writer.line(f'{name} = T.match_buffer({name}_, ({name}_n,), "{dtype}")')

    def _tensor(self, argument: Argument, leading: list[str], own: list[str]) -> str:
        terms = [
            f"({index}) * {argument.name}_s{axis}"
            for index, axis in zip(leading, argument.leading, strict=True)
        ]
        step = 2 if argument.complex else 1
        for index in reversed(own):
            terms.append(f"T.Cast('int64', {index}) * {step}")
            step *= self.program.state_size
        return f"{argument.name}[{' + '.join(terms)}]"

    def _part(self, place: str, part: int) -> str:
        return f"{place[:-1]} + {part}]"

    def barrier_buffers(self) -> Iterator[SharedBuffer]:
        """The ring's barriers: a slot is filled, a slot is free."""
        yield ("arrived", "uint64", 2 * self.ring)

    def row_buffers(self) -> Iterator[SharedBuffer]:
        """The ring and the head's tables."""
        n = self.program.state_size
        for argument in self.streamed:
            size = self.ring * self.tile * row_elements(argument, n)
            yield (f"ring_{argument.name}", buffer_dtype(argument), size)
        for index in self.indices:
            yield (f"ring_{index.name}", "int32", self.ring * self.tile)
            if self._is_copied(index):
                dtype = self._argument(index.name).dtype
                yield (f"next_{index.name}", dtype, self.ring * self.tile)
        for name, collected in self._tables.items():
            size = self._table_size(name)
            if self.tables:
                yield (f"table_{name}", self._entry, size * n)
            if collected:
                yield (f"fan_{name}", "uint32", size * 4 * n)
                yield (f"kind_{name}", "int32", size)

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
                size = self.program.state_size * each + self.team * (each + 4)
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
        """Bytes of a team for a scatter by any map: the values, then a number an element, then
        one an element and warp, or only one an element where a warp makes the lists of all; by a
        sorted map: the values twice, one and a number a warp.
        """
        n = self.program.state_size
        each = width_of(real_dtype(value.type)) * (2 if is_complex(value.type) else 1)
        if value.args[1] in self.sorted_maps:
            return padded(2 * n * each + self.team * (each + 4)) if self.team > 1 else 16
        return padded(n * (each + 4 + 4 * (1 if self._lists_of_all else self.team)))

    @property
    def _lists_of_all(self) -> bool:
        """Whether one warp makes the lists of a scatter by any map, for the whole team."""
        return self.team > 1 and (self.elements > 1 or self.program.state_size > MOST_STATES)

    @property
    def sorted_maps(self) -> dict[Value, Parts]:
        """Maps whose sorted form is at hand, and where: this lane's ``order`` and ``last``."""
        return {}

    def arrays(self) -> None:
        for carry in self.program.carries:
            self._array(self._own_name(carry.name), carry.type, 0)
        self.value_arrays()

    @property
    def carry_arrays(self) -> list[str]:
        """The arrays of the carries, part by part."""
        return [
            part
            for carry in self.program.carries
            for part in part_names(self._own_name(carry.name), carry.type)
        ]

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

    def stream_arrays(self, span: int) -> None:
        """What :meth:`produce` needs, ``span`` indices at a time, and what reports."""
        for index in self.indices:
            if not self._is_copied(index):
                dtype = self._argument(index.name).dtype
                self._local(f"{index.name}_next", dtype, -(-span // self.copying))
        for argument in self.streamed:
            self._local(f"{argument.name}_from", "int64", 1)
        if self.signature.checks:
            self._local("worst", "uint64", 1)

    def _registers(self, number: int) -> None:
        """A set of registers for the inputs of a tile."""
        for argument in self.streamed:
            size = self.tile * self._held_step(argument)
            self._local(self._held_name(argument.name, number), buffer_dtype(argument), size)
        for index in self.indices:
            self._local(self._own_name(f"{index.name}_k{number}"), "int32", self.tile)
        for value in self.selects:
            name = self.names[value]
            if self._is_read(value):
                self._local(f"{name}_held{number}", "int32", self.tile * self.elements)
            if self._is_collected(value):
                self._local(f"{name}_fan{number}", "uint32", 2 * self.tile * self.elements)
                self._local(f"{name}_kind{number}", "int32", self.tile)

    def _held_name(self, name: str, registers: int | None) -> str:
        return self._own_name(f"{name}_held{registers}")

    def _array(self, name: str, type_: Type, n: int, slots: int = 1) -> None:
        for part in part_names(name, type_):
            size = 1 if isinstance(type_, Scalar) else self.elements
            self._local(part, real_dtype(type_), size)

    def _local(self, name: str, dtype: str, size: int) -> None:
        self.writer.line(f'{name} = T.alloc_buffer(({size},), "{dtype}", scope="local")')

    def _held_step(self, argument: Argument) -> int:
        """Registers of an input of one token."""
        parts = 2 if argument.complex else 1
        return parts if isinstance(argument.type, Scalar) else parts * self.elements

    def _constants(self) -> list[Input]:
        """Numbers that are one for all tokens of a row."""
        others = {input_.boundary for input_ in self.program.inputs}
        others |= {carry.start_input for carry in self.program.carries}
        return [
            input_
            for input_ in self.program.inputs
            if input_.role in ("head", "row")
            and is_number(input_.type)
            and (input_.value in self.program.body or input_.name in others)
        ]

    # -- before the tokens ----------------------------------------------------------------------

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
            with self._strided(self._table_size(name) * n, threads) as at:
                entry = self._given_entry(name, at)
                if checked:
                    if self.signature.reports:
                        self.writer.line(f"worst[0] = {entry}")
                        self._report(name, "range", n, self._map_number(at) if inverts else "h")
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
            with self._strided(self._table_size(name) * n, threads) as at:
                entry = f"T.Cast('int32', T.min({self._given_entry(name, at)}, T.uint64({n - 1})))"
                found = f"T.Cast('int32', table_{name}[{at} // {n} * {n} + {entry}])"
                self.writer.line(
                    f"worst[0] = T.if_then_else({found} == {at} % {n}, T.uint64(0), T.uint64(1))"
                )
                type_ = self.program.input(name).type
                assert isinstance(type_, Table)
                self._report(name, type_.map_class, 1, self._map_number(at))
                own = f"table_{name}[{at}]"
                self.writer.line(f"{own} = T.min({own}, T.{self._entry}({n - 1}))")

    def _given_entry(self, name: str, at: str) -> str:
        """An entry of the head's table in global memory."""
        place = self._tensor(self._argument(name), ["h"], [])
        return f"T.Cast('uint64', {place[:-1]} + {at}])"

    def _map_number(self, at: str) -> str:
        """What tells a map of a table when it is reported: its number, then the head."""
        return f"T.Cast('int64', {at} // {self.program.state_size}) * H + h"

    def clear_exchanges(self, threads: int) -> None:
        """Zero what a missing source is read from; by all threads, before a barrier."""
        for name, dtype, size in self.lasting_buffers():
            with self._strided(self.teams * size, threads) as at:
                place = at
                if self.teams > 1:
                    stride = self.team_bytes // width_of(dtype)
                    place = f"{at} // {size} * {stride} + {at} % {size}"
                self.writer.line(f"{name}[{place}] = T.{dtype}(0)")

    def start_barriers(self) -> None:
        """Make the ring's barriers, before a barrier of the block."""
        with (
            self.writer.block("if thread == 0:"),
            self.writer.block(f"for s in T.serial({self.ring}):"),
        ):
            # Each lane of the producer arrives with its copies and for its own stores.
            self.call("lane_barrier_init", "T.address_of(arrived[s])", str(2 * LANES))
            self.call("lane_barrier_init", f"T.address_of(arrived[{self.ring} + s])", "1")

    def prepare_tables(self) -> None:
        """Sources by target of every map that a scatter_add collects by; a warp a map."""
        n, warps = self.program.state_size, self._preparing
        kind = self._sources_kind
        warp = f"thread // {LANES}"
        own = f"{warp} % {self.team}" if self.teams > 1 else warp
        for name, collected in self._tables.items():
            if collected:
                size = self._table_size(name)
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
                        )

    @contextmanager
    def _strided(self, total: int, threads: int) -> Iterator[str]:
        """A loop of all threads over ``[0, total)``."""
        with self.writer.block(f"for step in T.serial({-(-total // threads)}):"):
            self.writer.line(f"at: T.let = step * {threads} + thread")
            if total % threads:
                with self.writer.block(f"if at < {total}:"):
                    yield "at"
            else:
                yield "at"

    def start_row(self) -> None:
        self.load_constants()
        super().start_row()

    def load_constants(self) -> None:
        """Read what is one for all tokens of the row."""
        for input_ in self._constants():
            argument = self._argument(input_.name)
            names = part_names(self._own_name(f"{input_.name}_row"), input_.type)
            with self._over(input_.type) as j:
                parts = self._cast(argument, self._place(argument, j))
                for name, part in zip(names, parts, strict=True):
                    self.writer.line(f"{name}[{self._own_index(input_.type)}] = {part}")

    def _check_constant(self, input_: Input) -> None:
        if not isinstance(input_.type, Table):
            super()._check_constant(input_)

    def _own_index(self, type_: Type) -> str:
        return "0" if isinstance(type_, Scalar) else "e"

    # -- the ring -------------------------------------------------------------------------------

    def produce(self) -> None:
        """Fill slot ``slot`` with the tokens from ``first`` on; by one warp."""
        self.stream_values(self.tile)
        self.store_indices(self.tile)

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
        elements = row_elements(argument, self.program.state_size)
        narrow, wide = width_of(argument.dtype), self._copy_size(argument)
        if wide == narrow:
            self._copies(argument, span, elements, narrow)
            return
        even = self._is_even(argument, span, wide)
        # A lagged input is one step ahead of its token.
        last = span + (1 if argument.role == "lagged" else 0)
        within = f" and first + {last} <= L" if even else ""
        with self.writer.block(f"if aligned != 0{within}:"):
            if even:
                self._even_copies(argument, span, elements, wide)
            else:
                self._copies(argument, span, elements, wide)
        with self.writer.block("else:"):
            self._copies(argument, span, elements, narrow)

    def _copy_size(self, argument: Argument) -> int:
        """Bytes that a lane copies at once, where tensors are aligned."""
        elements, narrow = (
            row_elements(argument, self.program.state_size),
            width_of(argument.dtype),
        )
        wide = next(step for step in (16, 8, 4, 2, 1) if elements * narrow % step == 0)
        return narrow if wide < 4 else max(wide, narrow)

    def _is_even(self, argument: Argument, span: int, size: int) -> bool:
        """Whether all lanes copy alike, ``size`` bytes a time."""
        units, lanes = self._copy_units(argument, size), self.copying
        even = span * units % lanes == 0 and (lanes % units == 0 or units % lanes == 0)
        return even and size > width_of(argument.dtype)

    def _even_copies(self, argument: Argument, span: int, elements: int, size: int) -> None:
        """Copy whole tokens, every lane the same place of a token each time: its addresses are
        one origin and constant steps. A warp that copies is timed by its address arithmetic.
        """
        self._copy_place(argument, size)
        self._copy_origin(argument, size)
        self._copy_run(argument, span, elements, size)

    def _copy_units(self, argument: Argument, size: int) -> int:
        """Copies of a token."""
        elements = row_elements(argument, self.program.state_size)
        return elements * width_of(argument.dtype) // size

    def _copy_place(self, argument: Argument, size: int) -> None:
        """Which token a lane copies, of those copied at once, and which reals of it."""
        name, write, lanes = argument.name, self.writer.line, self.copying
        units = min(self._copy_units(argument, size), lanes)
        write(f"{name}_u: T.let = lane // {units}")
        write(f"{name}_at: T.let = lane % {units} * {size // width_of(argument.dtype)}")

    def _copy_origin(self, argument: Argument, size: int) -> None:
        """Where a lane's copies of the tokens from ``first`` on start."""
        name = argument.name
        step = f"first + T.Cast('int64', {name}_u)"
        if argument.role == "lagged":
            step += " + 1"
        t = step if self.program.direction == "forward" else f"L - 1 - ({step})"
        origin = self._tensor(argument, ["b", f"({t})", "h"], [])[len(name) + 1 : -1]
        self.writer.line(f"{name}_from[0] = {origin} + T.Cast('int64', {name}_at)")

    def _copy_run(self, argument: Argument, span: int, elements: int, size: int) -> None:
        """Copy ``span`` tokens from the origin on."""
        name, write, lanes = argument.name, self.writer.line, self.copying
        each = size // width_of(argument.dtype)
        units = self._copy_units(argument, size)
        across, along = max(1, lanes // units), max(1, units // lanes)
        sign = "+" if self.program.direction == "forward" else "-"
        ring = f"ring_{name}[({self.slot} * {self.tile} + {name}_u) * {elements} + {name}_at"
        if self.stays:
            write(f"{name}_step: T.let = {across} * {name}_sL")
        for token in range(0, span, across):
            origin = f"{name}_from[0]"
            if not self.stays:
                origin += f" {sign} {token} * {name}_sL"
            for at in range(0, along * lanes * each, lanes * each):
                to = f"{ring} + {token * elements + at}]"
                source = f"{name}[{origin} + {at}]"
                self.call(f"lane_copy{size}", f"T.address_of({to})", f"T.address_of({source})")
            if self.stays:
                # Those who copy compute as well: fewer instructions. A warp that only copies would
                # wait for one address after the other.
                write(f"{origin} = {origin} {sign} {name}_step")

    # Copies of the next chunk, in pieces, while this one runs.

    def start_ahead(self, span: int) -> None:
        """Find where the tokens from ``first`` on are, which :meth:`stream_ahead` copies in pieces
        of ``span``: tensors are aligned for wide copies, and there are that many tokens.
        """
        for argument in self.streamed:
            size = self._copy_size(argument)
            if self._is_even(argument, span, size):
                self._copy_place(argument, size)
                self._copy_origin(argument, size)

    def stream_ahead(self, span: int) -> None:
        """Start copying the next piece, from ``first`` on, to slot ``slot``."""
        for argument in self.streamed:
            size = self._copy_size(argument)
            elements = row_elements(argument, self.program.state_size)
            if self._is_even(argument, span, size):
                self._copy_place(argument, size)
                self._copy_run(argument, span, elements, size)
            else:
                self._copies(argument, span, elements, size)

    def slot_is_read(self) -> None:
        """Wait until no lane reads the slot of a tile that was held and has run."""
        moved = [v for v in self.program.body if v.op in ("gather", "compose")]
        others = any(v.args[0].op == "input" and self._everywhere(v.args[0]) for v in moved)
        # Lanes that leave values for one another meet in every token, after they have read it.
        if others or not any(map(self._exchange_elements, self.program.body)):
            self.sync()

    def _copies(self, argument: Argument, span: int, elements: int, size: int) -> None:
        """Copy tokens in units of ``size`` bytes."""
        each = size // width_of(argument.dtype)
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
                source = self._global(argument, "at")
                if size >= 4:
                    self.call(f"lane_copy{size}", f"T.address_of({to})", f"T.address_of({source})")
                else:
                    self.writer.line(f"{to} = {source}")

    def _global(self, argument: Argument, at: str) -> str:
        """Real or integer ``at`` of the token ``t`` of an input."""
        t = "t"
        if argument.role == "lagged":
            forward = self.program.direction == "forward"
            t = "T.min(t + 1, L - 1)" if forward else "T.max(t - 1, T.int64(0))"
        return f"{self._tensor(argument, ['b', t, 'h'], [])[:-1]} + {at}]"

    def _is_copied(self, index: Value) -> bool:
        """Whether indices come by asynchronous copies: those who run tokens load nothing ahead,
        since the compiler has a loop wait for what was loaded before it.
        """
        return self.stays and width_of(self._argument(index.name).dtype) in (4, 8)

    def _next_index(self, index: Value, group: str, at: str) -> str:
        """Where an index is before it is checked."""
        if self._is_copied(index):
            return f"next_{index.name}[{self.slot} * {self.tile} + {at}]"
        return f"{index.name}_next[{group}]"

    def load_indices(self, span: int) -> None:
        """Load the indices of ``span`` tokens from ``first`` on, which :meth:`store_indices` will
        need; what else a slot needs is copied asynchronously.
        """
        for index in self.indices:
            with self._index_lanes(span) as (group, at):
                self._step(f"first + T.Cast('int64', {at})")
                argument = self._argument(index.name)
                place = self._tensor(argument, ["b", "t", "h"], [])
                to = self._next_index(index, group, at)
                if self._is_copied(index):
                    copy = f"lane_copy{width_of(argument.dtype)}"
                    self.call(copy, f"T.address_of({to})", f"T.address_of({place})")
                else:
                    # As it is stored: a conversion would wait for the load.
                    self.writer.line(f"{to} = {place}")

    def store_indices(self, span: int) -> None:
        """Check and clamp what :meth:`load_indices` loaded, into slot ``slot`` and on."""
        for index in self.indices:
            assert isinstance(index.type, Index)
            name, bound = index.name, index.type.bound
            with self._index_lanes(span) as (group, at):
                self._step(f"first + T.Cast('int64', {at})")
                found = self._next_index(index, group, at)
                self.writer.line(f"worst[0] = T.Cast('uint64', {found})")
                self._report(name, "range", bound, "b * L * H + t * H + h")
                clamped = f"T.min(worst[0], T.uint64({bound - 1}))"
                place = f"ring_{name}[{self.slot} * {self.tile} + {at}]"
                self.writer.line(f"{place} = T.Cast('int32', {clamped})")

    @contextmanager
    def _index_lanes(self, span: int) -> Iterator[tuple[str, str]]:
        """A token for every lane; gives the number of the group of tokens, and the token."""
        lanes = self.copying
        if span <= lanes:
            with self._guard(f"lane < {span}", span < lanes):
                yield "0", "lane"
            return
        with self.writer.block(f"for group in T.unroll({-(-span // lanes)}):"):
            at = f"group * {lanes} + lane"
            with self._guard(f"{at} < {span}", span % lanes != 0):
                yield "group", f"({at})"

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
        with self.writer.block("if lane == 0:"):
            self.call("lane_arrive", f"T.address_of(arrived[{self.ring} + {self.slot}])")

    def copies_done(self, but_last: bool = False) -> None:
        """Wait until what this team has copied, but for the last group, can be read by all its
        lanes.
        """
        self.call("lane_copies_but_last" if but_last else "lane_copies_done")
        self.sync()

    def sync(self) -> None:
        """What a row's lanes have written before, they can read after."""
        if self.team == 1:
            self.writer.line("T.cuda.warp_sync()")
        else:
            self.call("lane_team_sync", *self._barrier)

    def sort_buffers(self) -> Iterator[SharedBuffer]:
        """Scratch of :meth:`sort`: a number an element and warp, two an element, one a warp."""
        numbers = self.program.state_size * (self.team + 2) + self.team
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
            str(self.program.state_size),
            *self._barrier,
        )

    @property
    def _barrier(self) -> tuple[str, str]:
        """The team's own barrier (0 is the block's) and its threads."""
        return ("team + 1" if self.teams > 1 else "1", str(self.lanes))

    @contextmanager
    def _guard(self, condition: str, needed: bool) -> Iterator[None]:
        if not needed:
            yield
            return
        with self.writer.block(f"if {condition}:"):
            yield

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
        return f"ring_{index.name}[{self.slot} * {self.tile} + u]"

    def _selected(self, value: Value) -> str:
        """Which map of its table a selected map is."""
        index = value.args[1]
        return self.known[index][0] if index in self.known else self._row_index(index)

    def _row_index(self, index: Value) -> str:
        """An index that is one for all tokens of a row (checked before the first)."""
        assert isinstance(index.type, Index)
        place = super()._place(self._argument(index.name), "")
        limit = f"T.uint64({index.type.bound - 1})"
        return f"T.Cast('int32', T.min(T.Cast('uint64', {place}), {limit}))"

    def _table_entry(self, value: Value, j: str) -> str:
        k, name = self._selected(value), value.args[0].name
        if self.tables:
            return f"T.Cast('int32', table_{name}[{k} * {self.program.state_size} + {j}])"
        place = self._tensor(self._argument(name), ["h"], [k, j])
        if needs_range_check(self.program.input(name)):
            return self._clamped(self._argument(name), place)
        return f"T.Cast('int32', {place})"

    def _kind(self, value: Value) -> str:
        """How many sources the targets of a selected map have; see ``lane_fan_in``."""
        return f"kind_{value.args[0].name}[{self._selected(value)}]"

    def _fan_words(self, value: Value, j: str) -> Parts:
        """The first four sources of target ``j``."""
        k, n, name = self._selected(value), self.program.state_size, value.args[0].name
        return tuple(f"fan_{name}[{k} * {4 * n} + {j} * 2 + {word}]" for word in (0, 1))

    # -- one token ------------------------------------------------------------------------------

    def _over(self, type_: Type | None) -> AbstractContextManager[str]:  # type: ignore[override]
        return self._lanes() if not isinstance(type_, Scalar) else self._once()

    @contextmanager
    def _lanes(self) -> Iterator[str]:
        """Every element of this lane."""
        n = self.program.state_size
        with self.writer.block(f"for e in T.unroll({self.elements}):"):
            j = f"e * {self.lanes} + lane"
            # Lanes beyond the last element repeat it.
            self.writer.line(f"j: T.let = {j if n % self.lanes == 0 else f'T.min({j}, {n - 1})'}")
            yield "j"

    @contextmanager
    def _once(self) -> Iterator[str]:
        yield "0"

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
        n, parts = self.program.state_size, 2 if is_complex(value.type) else 1
        own = self._of_team(real_dtype(value.type))
        at = f"u % 2 * {n + 1} + {j}" if self.copies == 2 else j
        return f"{self._exchange_name(value)}[{own}({at}) * {parts} + {part}]"

    def _exchange_name(self, value: Value) -> str:
        name = self.names[value]
        return f"x_{self._own_name(name) if value.is_leaf else name}"

    def _of_team(self, dtype: str) -> str:
        """Where the team's own part of a shared buffer starts, with a plus."""
        return f"team * {self.team_bytes // width_of(dtype)} + " if self.teams > 1 else ""

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
        row = (f"T.address_of({scratch})", "lane", str(self.program.state_size))
        if form is not None:
            self.call("lane_sum_sorted", *places, *form, *row, *self._barrier)
        elif self._lists_of_all:
            function = f"lane_collect_wide<{self.elements}>"
            self.call(function, *places, f"T.address_of({to}[0])", *row, *self._barrier)
        elif self.team > 1:
            to = f"T.address_of({to}[0])"
            self.call("lane_collect_team", *places, to, *row, *self._barrier)
        else:
            to = f"T.address_of({to}[0])"
            self.call(f"lane_collect_{self.elements}", *places, to, *row)

    def _collect(self, value: Value, j: str) -> None:
        """``scatter_add``: each target collects its sources."""
        if self._is_prepared(value):
            self._collect_prepared(value, j)
        self.known[value] = self._array_places(value, j)

    @property
    def _sources_kind(self) -> str:
        """Where sources by prepared maps are read: in registers, or in shared memory; a ``team``
        with one element a lane sums over runs where a target has many.
        """
        if not self.through_memory:
            return "registers"
        return "team" if self.elements == 1 else "shared"

    def _collect_prepared(self, value: Value, j: str) -> None:
        source, map_ = value.args
        n, name = self.program.state_size, map_.args[0].name
        k = self._selected(map_)
        at = f"(u * {self.elements} + e) * 2"
        words, kind = self._fan_words(map_, j), self._kind(map_)
        if self.held is not None:
            held = f"{self.names[map_]}_fan{self.held}"
            words = (f"{held}[{at}]", f"{held}[{at} + 1]")
            kind = f"{self.names[map_]}_kind{self.held}[u]"
        if not self.through_memory:
            values = (*self._parts(source, "j"), "lane")
        else:
            values = (f"T.address_of({self._exchange(source, '0')})",)
        if self._sources_kind == "team":
            runs = f"runs_{self.names[value]}[{self._of_team('uint8')}0]"
            values += (f"T.address_of({runs})", "lane", *self._barrier)
        self.call(
            f"lane_fan_in_{self._sources_kind}",
            *(f"T.address_of({place})" for place in self._array_places(value, j)),
            *values,
            *words,
            kind,
            f"T.address_of(fan_{name}[{k} * {4 * n} + {2 * n} + {j} * 2])",
            f"T.address_of(table_{name}[{k} * {n}])",
            j,
            str(n),
        )

    # -- outside of tokens ----------------------------------------------------------------------

    def over_elements(self) -> AbstractContextManager[str]:
        """A loop over this lane's elements ``j``."""
        return self._over(None)

    def write_element(self, argument: Argument, j: str, parts: Parts) -> None:
        """Write element ``j`` of a tensor, outside of tokens."""
        self._store(argument, [self.axes[axis] for axis in argument.leading], j, parts)

    # -- places ---------------------------------------------------------------------------------

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

    def _array_places(self, value: Value, i: str) -> Parts:
        """This lane's own element, whatever ``i``: others are reached by :meth:`_elsewhere`."""
        at = self._own_index(value.type)
        return tuple(f"{part}[{at}]" for part in part_names(self.names[value], value.type))

    def _carry_places(self, carry: Value, j: str) -> Parts:
        names = part_names(self._own_name(carry.name), carry.type)
        return tuple(f"{name}[{self._own_index(carry.type)}]" for name in names)

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
        elements = row_elements(argument, self.program.state_size)
        own = "" if isinstance(argument.type, Scalar) else f" + {j} * {parts}"
        return f"ring_{argument.name}[({self.slot} * {self.tile} + u) * {elements}{own}]"

    def _load(self, name: str, j: str, type_: Type) -> Parts:
        if self._argument(name).role in ("head", "row") and is_number(type_):
            names = part_names(self._own_name(f"{name}_row"), type_)
            return tuple(f"{part}[{self._own_index(type_)}]" for part in names)
        return super()._load(name, j, type_)

    def _store(self, argument: Argument, leading: list[str], j: str, parts: Parts) -> None:
        plain = argument.dtype == real_dtype(argument.type)
        if not (argument.complex and plain):
            super()._store(argument, leading, j, parts)
            return
        place = self._tensor(argument, leading, [] if isinstance(argument.type, Scalar) else [j])
        self.call("lane_store", f"T.address_of({place})", *parts)

    # -- sums of elements -----------------------------------------------------------------------

    def _collect_summands(self, total: Value, j: str, parts: Parts) -> None:
        """In each lane, the sum of its own elements."""
        self._add(self._array_places(total, j), tuple(self._summand(total, p) for p in parts))

    def _summand(self, total: Value, part: str) -> str:
        """The lanes that repeat the last element do not count."""
        n = self.program.state_size
        zero = f"T.{real_dtype(total.type)}(0)"
        return (
            part
            if n % self.lanes == 0
            else f"T.if_then_else(e * {self.lanes} + lane < {n}, {part}, {zero})"
        )

    def _add_up(self, total: Value) -> None:
        places = self._array_places(total, "0")
        if self._is_put_off(total):
            tiles = part_names(f"{self.names[total]}_tile", total.type)
            for tile, place in zip(tiles, places, strict=True):
                self.call("lane_merge", f"T.address_of({tile}[0])", place, "u")
            return
        for place in places:
            self.writer.line(f"{place} = {self._total(total, place)}")

    def _total(self, value: Value, part: str) -> str:
        """The sum of the lanes' parts of a sum."""
        if self.team == 1:
            return self._called("lane_sum", part, returns=value.type)
        return self._called(
            "lane_team_sum", part, self._sum_scratch(value), "lane", *self._barrier,
            returns=value.type,
        )  # fmt: skip

    def _sum_scratch(self, value: Value) -> str:
        """A number for each warp and token of a tile."""
        own = self._of_team(real_dtype(value.type))
        return f"T.address_of(sum_{self.names[value]}[{own}0])"

    @property
    def _postponable(self) -> list[Value]:
        """Sums of elements that are written out and not read. Those of all tokens of a tile take
        fewer shuffles together than one by one.
        """
        if self.tile & (self.tile - 1):
            return []
        read = {arg for value in self.program.body for arg in value.args}
        read |= {carry.next for carry in self.program.carries}
        read |= {total.value for total in self.program.sum_outputs}
        return [v for v in self.program.body if v.op == "sum" and v not in read]

    def _is_put_off(self, value: Value) -> bool:
        return self._puts_off and value in self._postponable

    @contextmanager
    def whole_tile(self, first: str) -> Iterator[None]:
        """Around the tokens of a whole tile, unrolled, whose first step is ``first``."""
        self._puts_off = True
        yield
        self._puts_off = False
        outputs = [out for out in self.program.token_outputs if out.value in self._postponable]
        if outputs:
            # A block of its own: a kernel may run several tiles in a row.
            with self.writer.block("for written in T.serial(1):"):
                self._write_sums(outputs, first)

    def _write_sums(self, outputs: list[TokenOutput], first: str) -> None:
        """Write the sums of a whole tile, each lane those of one token."""
        tile = str(self.tile)
        token = self._called("lane_merged_token", f"lane % {LANES}", tile, dtype="int32")
        self.writer.line(f"merged: T.let = {token}")
        step = f"{first} + T.Cast('int64', merged)"
        forward = self.program.direction == "forward"
        self.writer.line(f"t: T.let = {step if forward else f'L - 1 - ({step})'}")
        for out in outputs:
            names = part_names(f"{self.names[out.value]}_tile", out.value.type)
            for name in names:
                place = f"T.address_of({name}[0])"
                found = self._called("lane_merged", place, tile, returns=out.value.type)
                if self.team > 1:
                    row = (self._sum_scratch(out.value), "lane", "merged", tile, *self._barrier)
                    found = self._called("lane_team_merged", found, *row, returns=out.value.type)
                self.writer.line(f"{name}[0] = {found}")
            # Every warp of a team has the sums.
            with self._guard(f"lane < {LANES}", self.team > 1):
                parts = tuple(f"{name}[0]" for name in names)
                self._store(self._argument(out.name), ["b", "t", "h"], "0", parts)

    # -- sums by an index -----------------------------------------------------------------------

    def _by_its_owner(self, type_: Type) -> AbstractContextManager[None]:
        """Lanes that repeat an element do not count, and all lanes have a scalar."""
        if isinstance(type_, Scalar):
            return self._guard("lane == 0", True)
        n = self.program.state_size
        return self._guard(f"e * {self.lanes} + lane < {n}", n % self.lanes != 0)

    def _accumulate(self, places: Parts, parts: Parts) -> None:
        """Nothing waits for it. An element is always added to by one lane, in the order of the
        tokens, so sums repeat bit by bit.
        """
        for place, part in zip(places, parts, strict=True):
            self.call("lane_add", f"T.address_of({place})", part)

    # -- device functions -----------------------------------------------------------------------

    def call(self, function: str, *arguments: str) -> None:
        """Call a device function."""
        self.writer.line(self._called(function, *arguments))

    def alike(self, name: str, number: str) -> None:
        """Name a number that the lanes of a warp have in common, as such."""
        self._local(f"{name}_alike", "int32", 1)
        found = self._called("lane_alike", number, dtype="int32")
        self.writer.line(f"{name}_alike[0] = {found}")
        self.writer.line(f"{name}: T.let = {name}_alike[0]")

    def _called(
        self, function: str, *arguments: str, returns: Type | None = None, dtype: str = ""
    ) -> str:
        given = ", ".join([f'"{function}"', *arguments, "source_code=LANE_FUNCTIONS"])
        dtype = dtype if returns is None else real_dtype(returns)
        result = f', return_type="{dtype}"' if dtype else ""
        return f"T.cuda.func_call({given}{result})"
