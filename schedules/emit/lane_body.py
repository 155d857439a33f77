"""What the lanes of a row have: elements, tensors, registers, barriers.

The first of a line of classes, each of which knows what those before it write: the tables of a
head, the ring that tokens come through, sums, and in the end the token itself (``tvm_lanes.py``).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from pdssm_compiler.ir.program import Input, Program
from pdssm_compiler.ir.types import Index, Map, Scalar, Table, Type, is_complex, is_number
from pdssm_compiler.ir.value import Value
from pdssm_compiler.schedules.emit.arithmetic import Parts, part_names
from pdssm_compiler.schedules.emit.stages import Reach, is_uniform
from pdssm_compiler.schedules.emit.tvm import (
    DIALECT,
    TvmBody,
    buffer_dtype,
    real_dtype,
)
from pdssm_compiler.schedules.signature import Argument, Signature, width_of
from pdssm_compiler.schedules.source import Writer

LANES = 32
# What the entries of a table in shared memory, of 8 bits, can count; those of more take 16.
MOST_STATES = 256
# Functions of numbers that have device functions of their own.
_OWN = ("sin", "cos", "sigmoid")
_CALL = (
    'T.cuda.func_call("lane_{name}", {{x}}, source_code=LANE_FUNCTIONS, return_type="{{dtype}}")'
)
# What numbers are rounded to by one instruction, into bits.
_LOW = ("bfloat16", "float16")
# How far from 0 sine and cosine need no other path, as ``lanes/numbers.cuh`` says.
_NEAR = 48000.0
LANE_DIALECT = replace(
    DIALECT,
    functions=DIALECT.functions | {name: _CALL.format(name=name) for name in _OWN},
    within={name: (_NEAR, _CALL.format(name=f"{name}_within")) for name in ("sin", "cos")},
)


def lane_dtype(argument: Argument) -> str:
    """The dtype a kernel sees. TVM's text for float16 includes headers of CUDA's, which NVRTC does
    not bring, so those numbers are bits too.
    """
    return "uint16" if argument.dtype in _LOW else buffer_dtype(argument)


def place_of_row(row: str) -> tuple[str, str]:
    """``b`` and ``h`` of a row's number, in 32 bits, in which dividing is short."""
    return f"({row} // T.Cast('int32', H))", f"({row} % T.Cast('int32', H))"


def row_elements(argument: Argument, state_size: int) -> int:
    """Reals or integers of one token of one row."""
    count = 1
    for size in argument.own_shape(state_size):
        count *= size
    return count


class LaneBody(TvmBody):
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
        rows: rows narrower than a warp that one warp holds, side by side. Elements are numbered
            through all of them, and so are the targets of maps; ``b`` and ``h`` are of a lane's
            own row. Lanes of rows that there are not repeat the last one.
        prefix: of the names of what is the body's own, where a kernel has several bodies.
        signature: the calling convention, where it is not simply the program's.
    """

    dialect = LANE_DIALECT

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
        rows: int = 1,
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
        self.rows = rows
        # Elements of all rows of a team.
        self.width = rows * program.state_size
        self.prefix = prefix
        self.elements = -(-self.width // self.lanes)
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
        return self.copies * (self.width + 1) * (2 if is_complex(value.type) else 1)

    def _collects_any(self) -> list[Value]:
        """Scatters by maps that are not prepared."""
        scattered = (v for v in self.program.body if v.op == "scatter_add")
        return [value for value in scattered if not self._is_prepared(value)]

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
            self.flat_buffer(argument.name, lane_dtype(argument))
        self.flat_buffer("error", "int64")

    def flat_buffer(self, name: str, dtype: str) -> None:
        """Bind a tensor."""
        self.writer.line(f"{name}_n = T.int64()")
        self.writer.line(f'{name} = T.match_buffer({name}_, ({name}_n,), "{dtype}")')

    def _tensor(self, argument: Argument, leading: list[str], own: list[str]) -> str:
        if own and not isinstance(argument.type, Scalar):
            own = [*own[:-1], self.within(own[-1])]
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

    def within(self, j: str) -> str:
        """The number in its own row of element ``j``."""
        return j if self.rows == 1 else f"(({j}) % {self.program.state_size})"

    @property
    def _side(self) -> str:
        """Which of the rows side by side this lane's element is of."""
        return "0" if self.rows == 1 else f"({self.own_lane} // {self.program.state_size})"

    @property
    def own_lane(self) -> str:
        """The lane whose element this one holds: lanes beyond the last repeat it."""
        return "lane" if self.width % self.lanes == 0 else f"T.min(lane, {self.width - 1})"

    def _times_side(self, count: int) -> str:
        """What leads to this lane's row past so many numbers a row; with a plus."""
        return "" if self.rows == 1 else f" + {self._side} * {count}"

    @contextmanager
    def _of_side(self, side: str) -> Iterator[tuple[str, str]]:
        """``b`` and ``h`` of one of the rows side by side, whichever lane asks."""
        if self.rows == 1:
            yield "b", "h"
            return
        with self.writer.block("for once in T.serial(1):"):
            self.writer.line(f"side_row: T.let = T.min(team_row[0] + {side}, rows - 1)")
            b, h = place_of_row("side_row")
            yield f"T.Cast('int64', {b})", f"T.Cast('int64', {h})"

    @property
    def carry_arrays(self) -> list[str]:
        """The arrays of the carries, part by part."""
        return [
            part
            for carry in self.program.carries
            for part in part_names(self._own_name(carry.name), carry.type)
        ]

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

    def sync(self) -> None:
        """What a row's lanes have written before, they can read after."""
        if self.team == 1:
            self.writer.line("T.cuda.warp_sync()")
        else:
            self.call("lane_team_sync", *self._barrier)

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

    def _over(self, type_: Type | None) -> AbstractContextManager[str]:  # type: ignore[override]
        return self._lanes() if not isinstance(type_, Scalar) else self._once()

    @contextmanager
    def _lanes(self) -> Iterator[str]:
        """Every element of this lane."""
        n = self.width
        with self.writer.block(f"for e in T.unroll({self.elements}):"):
            j = f"e * {self.lanes} + lane"
            # Lanes beyond the last element repeat it.
            self.writer.line(f"j: T.let = {j if n % self.lanes == 0 else f'T.min({j}, {n - 1})'}")
            yield "j"

    @contextmanager
    def _once(self) -> Iterator[str]:
        yield "0"

    def _of_team(self, dtype: str) -> str:
        """Where the team's own part of a shared buffer starts, with a plus."""
        return f"team * {self.team_bytes // width_of(dtype)} + " if self.teams > 1 else ""

    def over_elements(self) -> AbstractContextManager[str]:
        """A loop over this lane's elements ``j``."""
        return self._over(None)

    def write_element(self, argument: Argument, j: str, parts: Parts) -> None:
        """Write element ``j`` of a tensor as it is, outside of tokens."""
        LaneBody._store(self, argument, [self.axes[axis] for axis in argument.leading], j, parts)

    def _array_places(self, value: Value, i: str) -> Parts:
        """This lane's own element, whatever ``i``: others are reached by :meth:`_elsewhere`."""
        at = self._own_index(value.type)
        return tuple(f"{part}[{at}]" for part in part_names(self.names[value], value.type))

    def _carry_places(self, carry: Value, j: str) -> Parts:
        names = part_names(self._own_name(carry.name), carry.type)
        return tuple(f"{name}[{self._own_index(carry.type)}]" for name in names)

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

    def _widened(self, argument: Argument, place: str) -> str:
        if argument.dtype != "float16":
            return super()._widened(argument, place)
        wide = real_dtype(argument.type)
        single = self._called("lane_of_float16", place, dtype="float32")
        return single if wide == "float32" else f"T.Cast('{wide}', {single})"

    def _narrowed(self, argument: Argument, value: str) -> str:
        if argument.dtype not in _LOW:
            return super()._narrowed(argument, value)
        single = real_dtype(argument.type) == "float32"
        number = value if single else f"T.Cast('float32', {value})"
        return self._called(f"lane_{argument.dtype}", number, dtype="uint16")

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
