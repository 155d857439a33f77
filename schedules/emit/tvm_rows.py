"""One token as TVMScript for a processor's thread: what its memory is like.

A :class:`RowsBody` adds to :class:`~pdssm_compiler.schedules.emit.tvm.TvmBody` what pays on a CPU.

* *Sums in place*: a carry that becomes a sum by destination is filled where it stands, once its
  old value is used up. No copy waits for the small stores of the sum.
* *Narrow tables*: a head's tables, clamped once a row and kept in the fewest bytes, where they do
  not drive everything else out of the first-level cache.
* *Streamed outputs*: whole lines written to memory past the caches. A plain store reads the line
  first, which is a fourth of the traffic of a scan with two inputs.
* *Aligned arrays*: local arrays begin with a line, so that no vector of theirs lies in two.

Functions that TVM's text has no words for are in ``rows.ll``.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pdssm_compiler.ir.program import Carry, Input, Program, SumOutput, TokenOutput
from pdssm_compiler.ir.types import Index, Scalar, Table, is_complex
from pdssm_compiler.ir.value import Value
from pdssm_compiler.schedules.emit.arithmetic import Parts
from pdssm_compiler.schedules.emit.stages import Reach, is_uniform
from pdssm_compiler.schedules.emit.tvm import Array, TvmBody, buffer_dtype, real_dtype
from pdssm_compiler.schedules.signature import Argument, needs_range_check, width_of
from pdssm_compiler.schedules.source import Writer

ROW_FUNCTIONS = "\n".join(
    line
    for line in (Path(__file__).parent / "rows.ll").read_text().splitlines()
    if line and not line.startswith(";")
)

# Bytes of a cache line; rows.ll says the same.
LINE = 64
# The tables of a block of rows may take this much of the first-level cache.
_TABLE_BYTES = 16 * 1024
# Elements that a scattering loop does in one turn, where the state size is a multiple.
_GROUP = 8


def serial_reach(split_scatter: bool) -> Reach:
    """What serial loops read: every element of inputs, carries and filled arrays is in memory."""

    def in_memory(value: Value) -> bool:
        return value.is_leaf or value.op in ("scatter_add", "invert", "select", "iota")

    return Reach(in_memory, in_memory, "split" if split_scatter else "fill")


def narrowest(state_size: int) -> str:
    """The smallest dtype that numbers elements."""
    if state_size <= 1 << 8:
        return "uint8"
    return "uint16" if state_size <= 1 << 16 else "int32"


def token_bytes_of(argument: Argument, state_size: int) -> int:
    """Bytes of a tensor for one token of one row."""
    return math.prod(argument.own_shape(state_size)) * width_of(buffer_dtype(argument))


def _sums(carry: Value) -> str:
    """The array of a carry that is a sum filled in place."""
    return f"{carry.name}_sums"


class RowsBody(TvmBody):
    """The body; see the module's text.

    The skeleton gives ``slot``, the row's place among those of its block, and ``stream``: not 0
    where outputs are to be streamed.
    """

    def __init__(
        self,
        program: Program,
        writer: Writer,
        slots: int,
        split_scatter: bool = True,
        narrow_tables: bool = True,
    ) -> None:
        super().__init__(program, writer, serial_reach(split_scatter), slots)
        self.in_place = self._sums_in_place()
        self.narrow = self._narrow_tables() if narrow_tables else {}
        self.streamed = [
            out
            for out in program.token_outputs
            if not is_uniform(out.value) and self._is_whole_lines(out.name)
        ]

    def _is_whole_lines(self, name: str) -> bool:
        return token_bytes_of(self._argument(name), self.program.state_size) % LINE == 0

    def _sums_in_place(self) -> dict[Value, Carry]:
        """The sums that are filled in a carry's array, and whose: those of its next value, where
        nothing reads the carry from the loop on that fills them.
        """
        found: dict[Value, Carry] = {}
        nexts = {carry.next for carry in self.program.carries}
        for carry in self.program.carries:
            filled = self.stages.sums.get(carry.next, carry.next)
            if filled.op != "scatter_add" or filled in found or carry.value in nexts:
                continue
            begins = self.stages.computed[filled]
            readers = [value for value in self.program.body if carry.value in value.args]
            outputs: list[TokenOutput | SumOutput] = [
                *self.program.token_outputs,
                *self.program.sum_outputs,
            ]
            emitted = [out for out in outputs if out.value is carry.value]
            reads = [self.stages.computed[reader] for reader in readers]
            reads += [self.stages.ready[out.value] for out in emitted]
            if all(read < begins for read in reads):
                found[filled] = carry
        return found

    def _narrow_tables(self) -> dict[str, str]:
        """The tables that are kept clamped and narrow, and in which dtype."""
        found: dict[str, str] = {}
        dtype = narrowest(self.program.state_size)
        room = _TABLE_BYTES
        for input_ in self.program.inputs:
            if isinstance(input_.type, Table) and needs_range_check(input_):
                size = self.slots * input_.type.size * self.program.state_size * width_of(dtype)
                if size <= room:
                    found[input_.name] = dtype
                    room -= size
        return found

    # -- around the tokens ----------------------------------------------------------------------

    def functions(self) -> None:
        """Ask for the functions of ``rows.ll``."""
        self.writer.line(f'T.attr(0, "pragma_import_llvm", {ROW_FUNCTIONS!r})')

    def local(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        """Declare memory of the running thread; what fills a line begins with one. TVM aligns an
        array on the stack as its elements are, so elements of a whole line are what is declared.
        """
        lines, rest = divmod(math.prod(shape) * width_of(dtype), LINE)
        if not lines or not self._placement:
            super().local(name, shape, dtype)
            return
        whole = f"{dtype}x{LINE // width_of(dtype)}"
        super().local(f"{name}_memory", (lines + bool(rest),), whole)
        sizes = ", ".join(map(str, shape))
        memory = f'data={name}_memory.data, scope="local"'
        self.writer.line(f'{name} = T.decl_buffer(({sizes},), "{dtype}", {memory})')

    def _arrays(self) -> list[Array]:
        n = self.program.state_size
        tables = [
            (f"{name}_narrow", (self.slots * self._table_size(name) * n,), dtype)
            for name, dtype in self.narrow.items()
        ]
        staged = [
            (f"{argument.name}_lines", argument.own_shape(n), buffer_dtype(argument))
            for argument in (self._argument(out.name) for out in self.streamed)
            if self._array_of(argument) is None
        ]
        return [*super()._arrays(), *tables, *staged]

    def _table_size(self, name: str) -> int:
        type_ = self.program.input(name).type
        assert isinstance(type_, Table)
        return type_.size

    def _carry_arrays(self, carry: Carry) -> list[Array]:
        if not self._is_in_place(carry.value):
            return super()._carry_arrays(carry)
        shape = (self.slots * self.program.state_size, *((2,) if is_complex(carry.type) else ()))
        return [(_sums(carry.value), shape, real_dtype(carry.type))]

    def _has_array(self, value: Value) -> bool:
        return value not in self.in_place and super()._has_array(value)

    def _check_constant(self, input_: Input) -> None:
        super()._check_constant(input_)
        if input_.name not in self.narrow:
            return
        argument = self._argument(input_.name)
        dtype = self.narrow[input_.name]
        with (
            self.writer.block(f"for k in T.serial({self._table_size(input_.name)}):"),
            self._over(None) as j,
        ):
            entry = self._clamped(argument, self._tensor(argument, ["h"], ["k", j]))
            place = self._narrow_place(input_.name, "k", j)
            self.writer.line(f"{place} = T.Cast('{dtype}', {entry})")

    def _narrow_place(self, name: str, k: str, j: str) -> str:
        row = f"slot * {self._table_size(name)} + {k}"
        return f"{name}_narrow[({row}) * {self.program.state_size} + {j}]"

    def prefetch(self, ahead: int) -> None:
        """Ask for the vectors of the token ``ahead`` of this one, written ones to be owned.

        The hardware's own prefetch stops at the end of a page, and a store that misses holds up
        every later one.
        """
        forward = self.program.direction == "forward"
        at = f"T.min(t + {ahead}, L - 1)" if forward else f"T.max(t - {ahead}, 0)"
        for argument in self.signature.arguments:
            if "L" not in argument.leading or isinstance(argument.type, Scalar | Index):
                continue
            size, *parts = argument.own_shape(self.program.state_size)
            step = max(1, LINE // (width_of(buffer_dtype(argument)) * math.prod(parts)))
            place = self._place(argument, ", ".join([f"line * {step}", *("0" for _ in parts)]), at)
            # Address; to write or not; for all levels of the cache; data.
            how = f"T.int32({int(argument.written)}), T.int32(3), T.int32(1)"
            with self.writer.block(f"for line in T.serial({-(-size // step)}):"):
                self.writer.line(
                    f'T.call_llvm_intrin("void", "llvm.prefetch", T.address_of({place}), {how})'
                )

    def finish(self) -> None:
        """After a thread's last row: let other threads see what was streamed."""
        if self.streamed:
            with self.writer.block("if stream != 0:"):
                self.writer.line('T.evaluate(T.call_extern("void", "row_fence"))')

    # -- one token ------------------------------------------------------------------------------

    def _loop(self, stage: int) -> None:
        super()._loop(stage)
        for out in self.streamed:
            if self.stages.ready[out.value] == stage and not self._is_behind(out):
                self._write_lines(out, "h", "slot")

    def write_behind(self) -> None:
        """In a row's turn, after its token: outputs of the row before it that stand in a carry.

        The small stores that made such a sum are in the cache by then; whole lines that are read
        at once would wait for them.
        """
        behind = [out for out in self.streamed if self._is_behind(out)]
        if behind:
            with self.writer.block("if slot > 0:"):
                for out in behind:
                    self._write_lines(out, "h - 1", "(slot - 1)")

    def write_last(self) -> None:
        """After a token of all rows: what :meth:`write_behind` leaves, that of the last row."""
        for out in self.streamed:
            if self._is_behind(out):
                self._write_lines(out, "first_head[0] + slots[0] - 1", "(slots[0] - 1)")

    def _is_behind(self, out: TokenOutput) -> bool:
        value = self.stages.sums.get(out.value, out.value)
        return value in self.in_place and self._array_of(self._argument(out.name)) is not None

    def _write_lines(self, out: TokenOutput, h: str, slot: str) -> None:
        """Write a token's output, which is in an array, to its tensor."""
        argument = self._argument(out.name)
        size, *parts = argument.own_shape(self.program.state_size)
        step = LINE // (width_of(buffer_dtype(argument)) * math.prod(parts))
        array = self._array_of(argument) or f"{argument.name}_lines"
        start = f"{slot} * {size} + " if self._is_behind(out) else ""

        def places(j: str) -> tuple[str, str]:
            return self._tensor(argument, ["b", "t", h], [j]), f"{array}[{start}{j}]"

        def address(place: str) -> str:
            return f"T.address_of({self._part(place, 0) if parts else place})"

        first, _ = places("0")
        into = f'T.call_extern("int32", "row_into_line", {address(first)})'
        with self.writer.block(f"if stream != 0 and {into} == 0:"):
            to, source = (address(place) for place in places(f"line * {step}"))
            with self.writer.block(f"for line in T.serial({size // step}):"):
                call = f'T.call_extern("void", "row_store_line", {to}, {source})'
                self.writer.line(f"T.evaluate({call})")
        with self.writer.block("else:"), self._over(None) as j:
            to, source = places(j)
            pairs = (
                zip(self._pair(to), self._pair(source), strict=True) if parts else [(to, source)]
            )
            for place, element in pairs:
                self.writer.line(f"{place} = {element}")

    def _array_of(self, argument: Argument) -> str | None:
        """The array that holds a token's output as its tensor does."""
        (value,) = (out.value for out in self.program.token_outputs if out.name == argument.name)
        value = self.stages.sums.get(value, value)
        if value.is_leaf or buffer_dtype(argument) != real_dtype(value.type):
            return None
        if value in self.in_place:
            return _sums(self.in_place[value].value)
        return self.names[value] if self._has_array(value) else None

    def _emit(self, out: TokenOutput, j: str) -> None:
        if out not in self.streamed:
            super()._emit(out, j)
            return
        argument = self._argument(out.name)
        if self._array_of(argument) is None:
            self._store_at(argument, f"{out.name}_lines[{j}]", self._parts(out.value, j))

    @contextmanager
    def _elements(self, stage: int) -> Iterator[str]:
        """A loop that scatters is taken apart into groups, how many is hidden: where LLVM unrolls
        it all, it keeps what is scattered in registers and takes it out by several shuffles an
        element.
        """
        here = [v for v in self.program.body if self.stages.computed[v] == stage]
        if not any(value.op == "scatter_add" for value in here):
            with super()._elements(stage) as j:
                yield j
            return
        n = self.program.state_size
        size = math.gcd(n, _GROUP)
        groups = f'T.call_extern("int32", "row_unknown", {n // size})'
        with (
            self.writer.block(f"for group in T.serial({groups}):"),
            self.writer.block(f"for member in T.unroll({size}):"),
        ):
            self.writer.line(f"j: T.let = group * {size} + member")
            yield "j"

    def _is_committed(self, carry: Carry) -> bool:
        return super()._is_committed(carry) and not self._is_in_place(carry.value)

    def _is_in_place(self, value: Value) -> bool:
        return any(carry.value is value for carry in self.in_place.values())

    # -- values ---------------------------------------------------------------------------------

    def _at(self, value: Value, i: str) -> Parts:
        if value.op == "select" and value.args[0].name in self.narrow:
            table, index = value.args
            (k,) = self.known[index]
            return (f"T.Cast('int32', {self._narrow_place(table.name, k, i)})",)
        return super()._at(value, i)

    def _carry_places(self, carry: Value, j: str) -> Parts:
        if not self._is_in_place(carry):
            return super()._carry_places(carry, j)
        place = f"{_sums(carry)}[slot * {self.program.state_size} + {j}]"
        return self._pair(place) if is_complex(carry.type) else (place,)

    def _array_places(self, value: Value, i: str) -> Parts:
        if value in self.in_place:
            return self._carry_places(self.in_place[value].value, i)
        return super()._array_places(value, i)

    def _pair(self, place: str) -> Parts:
        return self._part(place, 0), self._part(place, 1)
