"""One token of any program as thread-level TVMScript.

A :class:`TvmBody` writes the loops of :mod:`pdssm_compiler.schedules.emit.stages`. It knows ops,
types and roles, and no program. Skeletons decide where ``b``, ``h``, ``t`` come from, and may keep
the carries of several rows at once: ``slot`` says whose are meant.

Every index that comes from outside is clamped where it is read and its range reported through
the error word, so that no input, however wrong, makes a kernel leave its tensors.
"""

import contextlib
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property

from pdssm_compiler.ir.passes import carried_sums
from pdssm_compiler.ir.program import Carry, Input, Program, SumOutput, TokenOutput
from pdssm_compiler.ir.types import (
    Index,
    Map,
    Scalar,
    Table,
    Type,
    is_complex,
    is_number,
    precision,
)
from pdssm_compiler.ir.value import Value
from pdssm_compiler.schedules.emit.arithmetic import (
    ARITHMETIC_OPS,
    Dialect,
    Parts,
    arithmetic,
    part_names,
)
from pdssm_compiler.schedules.emit.stages import Reach, Stages, is_uniform, plan_stages
from pdssm_compiler.schedules.emit.tvm_buffers import ON_STACK, write_strided
from pdssm_compiler.schedules.signature import (
    CHECK_SHIFT,
    Argument,
    ReportedCheck,
    Signature,
    needs_range_check,
    width_of,
)
from pdssm_compiler.schedules.source import Writer

DIALECT = Dialect(
    functions={
        "exp": "T.exp({x})",
        "log": "T.log({x})",
        "sin": "T.sin({x})",
        "cos": "T.cos({x})",
        "tanh": "T.tanh({x})",
        "sigmoid": "T.sigmoid({x})",
        # log1p keeps the small values that log(1 + e^x) rounds away.
        "softplus": "T.max({x}, 0) + T.log1p(T.exp(-T.abs({x})))",
        "sqrt": "T.sqrt({x})",
        "reciprocal": "1 / {x}",
    },
    literal=lambda value, bits: f'T.float{bits}("{value!r}")',
    choose="T.Select({condition}, {x}, T.{dtype}(0))",
    kept="{k} != 0",
    either="T.Or({a} != 0, {b} != 0)",
)


def real_dtype(type_: Type) -> str:
    """The dtype a number of this type is computed in, part by part; int32 for maps."""
    return f"float{precision(type_)}" if is_number(type_) else "int32"


def buffer_dtype(argument: Argument) -> str:
    """The dtype a kernel sees. TVM's conversions from bfloat16 are wrong on CPUs (they convert the
    bits as an integer), so bfloat16 is passed as its bits and converted here. Logits are compared
    by their bits.
    """
    return "uint16" if argument.dtype == "bfloat16" or argument.logits else argument.dtype


def widened(argument: Argument, place: str) -> str:
    """An element of a tensor in the dtype it is computed in."""
    compute = real_dtype(argument.type)
    if argument.dtype == compute:
        return place
    if argument.dtype == "bfloat16":
        bits = f"T.shift_left(T.Cast('uint32', {place}), T.uint32(16))"
        single = f"T.reinterpret('float32', {bits})"
        return single if compute == "float32" else f"T.Cast('{compute}', {single})"
    return f"T.Cast('{compute}', {place})"


def narrowed(argument: Argument, value: str) -> str:
    """A computed value in the dtype a tensor stores, rounded to nearest, ties to even."""
    compute = real_dtype(argument.type)
    if argument.dtype == compute:
        return value
    if argument.dtype == "bfloat16":
        single = value if compute == "float32" else f"T.Cast('float32', {value})"
        bits = f"T.reinterpret('uint32', {single})"
        last = f"T.bitwise_and(T.shift_right({bits}, T.uint32(16)), T.uint32(1))"
        rounded = f"T.shift_right({bits} + T.uint32(32767) + {last}, T.uint32(16))"
        # Rounding would carry a NaN's bits over into another number.
        return f"T.Cast('uint16', T.Select({value} == {value}, {rounded}, T.uint32(32704)))"
    return f"T.Cast('{argument.dtype}', {value})"


# Arrays on the stack can live in registers and share no address bits by accident; TVM's workspace
# starts each on a page of its own, and a load then waits for stores to other arrays. The smallest
# stacks of threads have 128 KiB.
_STACK_BYTES = 64 * 1024
# Name, shape and dtype of a local array.
Array = tuple[str, tuple[int, ...], str]


class TvmBody:
    """Writes the parts of a kernel that depend on the program.

    Attributes:
        dialect: how functions and literals are spelt.
    """

    dialect = DIALECT

    def __init__(
        self,
        program: Program,
        writer: Writer,
        reach: Reach,
        slots: int = 1,
        signature: Signature | None = None,
    ) -> None:
        self.signature = signature or Signature(program)
        # What is left of its sums are those by an index, and those that each chunk has of its own.
        self.program = program = carried_sums(program, self.signature.of_chunks)
        self.slots = slots
        self.writer = writer
        self.reach = reach
        self.stages: Stages = plan_stages(program, reach)
        self.names = {
            value: (value.name if value.is_leaf else f"v{number}")
            for number, value in enumerate(program.body)
        }
        # What generated text calls the place on an axis.
        self.axes = {"B": "b", "L": "t", "H": "h"}
        # Parts known in the loop (or, for scalars, the token) being written.
        self.known: dict[Value, Parts] = {}
        self.last_stage = max(
            [
                self.stages.commit,
                *(s for v, s in self.stages.computed.items() if not is_uniform(v)),
                *(self.stages.ready[out.value] for out in program.token_outputs),
                *(self.stages.ready[total.value] for total in program.sum_outputs),
                *(self.stages.ready[check.map] for check in program.checks),
            ]
        )

    # -- declarations ---------------------------------------------------------------------------

    def parameters(self) -> list[str]:
        """The function's parameters before the skeleton's own."""
        handles = [f"{argument.name}_: T.handle" for argument in self.signature.arguments]
        return [*handles, "error_: T.handle"]

    def buffers(self) -> None:
        """Bind every tensor, its leading axes with free strides, its own axes dense."""
        for argument in self.signature.arguments:
            own = argument.own_shape(self.program.state_size)
            dtype = buffer_dtype(argument)
            write_strided(self.writer, argument.name, argument.leading, own, dtype)
        self.writer.line('error = T.match_buffer(error_, (1,), "int64", align=8)')

    def arrays(self) -> None:
        """Local arrays: carries, stored values, filled values, accumulators.

        The parts of a carry lie in arrays of their own, which vector loops read without shuffles.
        The parts of a value lie side by side: a scatter takes both in one access.
        """
        for name, shape, dtype in self._arrays():
            self.local(name, shape, dtype)
        if self.signature.checks:
            self.local("worst", (1,), "uint64")

    def local(self, name: str, shape: tuple[int, ...], dtype: str) -> None:
        """Declare memory of the running thread."""
        sizes = ", ".join(map(str, shape))
        self.writer.line(
            f'{name} = T.alloc_buffer(({sizes},), "{dtype}", scope="local"{self._placement})'
        )

    @cached_property
    def _placement(self) -> str:
        total = sum(math.prod(shape) * width_of(dtype) for _, shape, dtype in self._arrays())
        return ON_STACK if total <= _STACK_BYTES else ""

    def _arrays(self) -> list[Array]:
        """Every local array."""
        found = [array for carry in self.program.carries for array in self._carry_arrays(carry)]
        for value in self.program.body:
            if self._has_array(value):
                # A sum's array holds what is summed.
                n = self.program.state_size
                shape: tuple[int, ...] = (n, 2) if is_complex(value.type) else (n,)
                found.append((self.names[value], shape, real_dtype(value.type)))
        return found

    def _carry_arrays(self, carry: Carry) -> list[Array]:
        size = self.slots * (1 if isinstance(carry.type, Scalar) else self.program.state_size)
        dtype = real_dtype(carry.type)
        return [(part, (size,), dtype) for part in part_names(carry.name, carry.type)]

    def _has_array(self, value: Value) -> bool:
        """Whether the value has an array of its own."""
        return value in self.stages.stored or self._is_filled(value)

    def _is_filled(self, value: Value) -> bool:
        """Whether a loop over elements fills the value, complete only after it."""
        return value.op == "sum" or self.reach.fills(value)

    # -- around the tokens ----------------------------------------------------------------------

    def start_row(self) -> None:
        """First values of the carries, sums that are empty, and the checks of the row's tables."""
        self.start_carries()
        self.start_sums()
        self._check_constants()

    def start_carries(self) -> None:
        """First values of the carries."""
        for carry in self.program.carries:
            with self._over(carry.type) as j:
                self._set_carry(carry, j, self._start(carry, j))

    def start_sums(self) -> None:
        """Clear the sums over tokens."""
        for total in self.program.sum_outputs:
            self._clear_sum(total)

    def _check_constants(self) -> None:
        if not self.signature.reports:
            return
        for input_ in self.program.inputs:
            if input_.role in ("head", "row") and needs_range_check(input_):
                self._check_constant(input_)

    def _start(self, carry: Carry, j: str) -> Parts:
        if carry.start_input is not None:
            return self._load(carry.start_input, j, carry.type)
        if carry.start == "identity":
            return (j,)
        first = "1" if carry.start == "one" else "0"
        dtype = real_dtype(carry.type)
        parts = (first, "0") if is_complex(carry.type) else (first,)
        return tuple(f"T.{dtype}({part})" for part in parts)

    def _check_constant(self, input_: Input) -> None:
        """Every entry of an index, a map or a table that is one for all tokens of the row."""
        n = self.program.state_size
        shape = {Index: (), Map: (n,), Table: (0, n)}[type(input_.type)]
        if isinstance(input_.type, Table):
            shape = (input_.type.size, n)
        where = ["h"] if input_.role == "head" else ["b", "h"]
        indices = [*where, *("kj"[2 - len(shape) :])]
        write = self.writer
        write.line("worst[0] = T.uint64(0)")
        with contextlib.ExitStack() as loops:
            for name, size in zip(indices[len(where) :], shape, strict=True):
                loops.enter_context(write.block(f"for {name} in T.serial({size}):"))
            place = self._tensor(self._argument(input_.name), where, indices[len(where) :])
            entry = f"T.Cast('uint64', {place})"
            write.line(f"worst[0] = T.max(worst[0], {entry})")
        bound = input_.type.bound if isinstance(input_.type, Index) else n
        token = "h" if input_.role == "head" else "b * L * H + h"
        self._report(input_.name, "range", bound, token)

    def end_row(self) -> None:
        """Final outputs."""
        for final in self.program.final_outputs:
            carry = self.program.carry(final.carry)
            argument = self._argument(final.name)
            leading = [self.axes[axis] for axis in argument.leading]
            with self._over(carry.type) as j:
                self._store(argument, leading, j, self._carry_places(carry.value, j))

    # -- one token ------------------------------------------------------------------------------

    def token(self) -> None:
        """The body of one token, at ``b``, ``t``, ``h``."""
        self.known = {}
        for value in self.program.body:
            if isinstance(value.type, Index):
                self._index(value)
        for stage in range(self.last_stage + 1):
            self._scalars(stage)
            self._clear(stage)
            self._loop(stage)
        self._scalars(self.last_stage + 1)
        self._scalar_results()

    def _index(self, value: Value) -> None:
        """An index from outside: read, checked, clamped."""
        self._checked_index(value, self._place(self._argument(value.name), ""))

    def _checked_index(self, value: Value, found: str) -> None:
        assert isinstance(value.type, Index)
        name, bound = value.name, value.type.bound
        self.writer.line(f"worst[0] = T.Cast('uint64', {found})")
        if self.program.input(name).role == "token":
            self._report(name, "range", bound, "b * L * H + t * H + h")
        limit = f"T.uint64({bound - 1})"
        self.writer.line(f"{name}_k: T.let = T.Cast('int32', T.min(worst[0], {limit}))")
        self.known[value] = (f"{name}_k",)

    def _scalars(self, stage: int) -> None:
        """Scalars that are known once the loops before ``stage`` are over."""
        for value in self.program.body:
            if not isinstance(value.type, Scalar) or self.stages.ready[value] != stage:
                continue
            if value.op == "input":
                self._bind(value, self._load(value.name, "0", value.type))
            elif value.op == "carry":
                self._bind(value, self._carry_places(value, "0"))
            elif value.op == "sum":
                self.known[value] = self._array_places(value, "0")
            else:
                self._bind(value, self._expression(value))

    def _clear(self, stage: int) -> None:
        """First values of what the loop of this stage fills."""
        for value in self.program.body:
            if self.stages.computed[value] != stage or not self.reach.fills(value):
                continue
            zero = f"T.{real_dtype(value.type)}(0)"
            with self._over(value.type) as j:
                places = self._array_places(value, j)
                seed = self.stages.seeds.get(value)
                firsts = self._at(seed, j) if seed else (zero,) * len(places)
                for place, first in zip(places, firsts, strict=True):
                    self.writer.line(f"{place} = {first}")

    def _loop(self, stage: int) -> None:
        """The loop of one stage."""
        scalars = {value: parts for value, parts in self.known.items() if is_uniform(value)}
        reports = self._checked_in(stage)
        if reports:
            for number, _ in enumerate(reports):
                name = f"worst_{stage}_{number}"
                self.local(name, (1,), "uint32")
                self.writer.line(f"{name}[0] = T.uint32(0)")
        with self._elements(stage) as j:
            for value in self.program.body:
                if self.stages.computed[value] == stage and not is_uniform(value):
                    self._element(value, j)
            for number, (_, _, expression) in enumerate(reports):
                name = f"worst_{stage}_{number}"
                self.writer.line(f"{name}[0] = T.max({name}[0], {expression()})")
            self._vector_results(stage, j)
        self.known = scalars
        for value in self.program.body:
            if value.op == "sum" and self.stages.computed[value] == stage:
                self._add_up(value)
        for number, (subject, promise, _) in enumerate(reports):
            bound = self.program.state_size if promise == "range" else 1
            self.writer.line(f"worst[0] = T.Cast('uint64', worst_{stage}_{number}[0])")
            self._report(subject, promise, bound, self._reported_at(subject))

    def _reported_at(self, subject: str) -> str:
        """What a check made in a token tells of where it failed."""
        return "b * L * H + t * H + h"

    def _checked_in(self, stage: int) -> list[tuple[str, str, Callable[[], str]]]:
        """The checks made in a loop: subject, promise, and what to take the maximum of."""
        found: list[tuple[str, str, Callable[[], str]]] = []
        if not self.signature.reports:
            return found
        for input_ in self.program.inputs:
            if isinstance(input_.type, Map) and stage == 0:
                name = input_.name

                def raw(name: str = name) -> str:
                    # Clamped to 32 bits from above, so that no wide index wraps into range.
                    wide = f"T.Cast('uint64', {self._place(self._argument(name), 'j')})"
                    return f"T.Cast('uint32', T.min({wide}, T.uint64(4294967295)))"

                found.append((name, "range", raw))
        for check in self.program.checks:
            if self.stages.ready[check.map] == stage:

                def differs(map_: Value = check.map) -> str:
                    (part,) = self._parts(map_, "j")
                    return f"T.Cast('uint32', {part} != j)"

                found.append((check.subject, check.promise, differs))
        return found

    def _element(self, value: Value, j: str) -> None:
        """Element ``j`` of a value, in the loop that computes it."""
        if value.is_leaf or value.op in ("select", "iota") or value in self.stages.sums:
            return
        if value.op == "scatter_add":
            (map_,) = self._parts(value.args[1], j)
            self._add(self._array_places(value, map_), self._parts(value.args[0], j))
        elif value.op == "invert":
            (map_,) = self._parts(value.args[0], j)
            self.writer.line(f"{self.names[value]}[{map_}] = {j}")
        else:
            if value.op in ("gather", "compose"):
                (map_,) = self._parts(value.args[1], j)
                self._bind(value, self._at(value.args[0], map_))
            else:
                self._bind(value, self._expression(value))
            if value in self.stages.stored:
                places = self._array_places(value, j)
                for place, part in zip(places, self.known[value], strict=True):
                    self.writer.line(f"{place} = {part}")

    def _vector_results(self, stage: int, j: str) -> None:
        """Token outputs and sums that are complete here, then the carries."""
        for value in self.program.body:
            if value.op == "sum" and self.stages.computed[value] == stage:
                self._collect_summands(value, j, self._parts(value.args[0], j))
        for out in self.program.token_outputs:
            if not is_uniform(out.value) and self.stages.ready[out.value] == stage:
                self._emit(out, j)
        for total in self.program.sum_outputs:
            if not is_uniform(total.value) and self.stages.ready[total.value] == stage:
                self._add_to_sum(total, j, self._parts(total.value, j))
        if stage == self.stages.commit:
            carries = [c for c in self.program.carries if self._is_committed(c)]
            # Read all before writing any: one carry's next value may be another's present one.
            nexts = [self._parts(carry.next, j) for carry in carries]
            for carry, parts in zip(carries, nexts, strict=True):
                self._set_carry(carry, j, parts)

    def _emit(self, out: TokenOutput, j: str) -> None:
        """Write element ``j`` of a token's output."""
        self._store(self._argument(out.name), ["b", "t", "h"], j, self._parts(out.value, j))

    def _is_committed(self, carry: Carry) -> bool:
        """Whether the carry's elements are set by a loop at the end of a token."""
        return not is_uniform(carry.value)

    def _collect_summands(self, total: Value, j: str, parts: Parts) -> None:
        """Element ``j`` of what a sum adds up."""
        for place, part in zip(self._array_places(total, j), parts, strict=True):
            self.writer.line(f"{place} = {part}")

    def _add_up(self, total: Value) -> None:
        """Add the second half of what is left to the first, until one is left. (Added one to the
        next, every addition would wait for the one before, and no loop around it vectorise.)
        """
        left = self.program.state_size
        while left > 1:
            half = left - left // 2
            with self.writer.block(f"for j in T.serial({left // 2}):"):
                self._add(self._array_places(total, "j"), self._array_places(total, f"j + {half}"))
            left = half

    def _is_put_off(self, value: Value) -> bool:
        """Whether a token output is written later than its token."""
        return False

    def _scalar_results(self) -> None:
        for out in self.program.token_outputs:
            if is_uniform(out.value) and not self._is_put_off(out.value):
                parts = self.known[out.value]
                self._store(self._argument(out.name), ["b", "t", "h"], "0", parts)
        for total in self.program.sum_outputs:
            if is_uniform(total.value):
                self._add_to_sum(total, "0", self.known[total.value])
        carries = [carry for carry in self.program.carries if is_uniform(carry.value)]
        nexts = [self.known[carry.next] for carry in carries]
        for carry, parts in zip(carries, nexts, strict=True):
            self._set_carry(carry, "0", parts)

    # -- sums over tokens ------------------------------------------------------------------------

    def _clear_sum(self, total: SumOutput) -> None:
        """All groups of the row's sums are zero."""
        zero = f"T.{real_dtype(total.value.type)}(0)"
        with (
            self.writer.block(f"for k in T.serial({total.groups or 1}):"),
            self._over(total.value.type) as j,
            self._by_its_owner(total.value.type),
        ):
            for place in self._sum_places(total, "k", j):
                self.writer.line(f"{place} = {zero}")

    def _add_to_sum(self, total: SumOutput, j: str, parts: Parts) -> None:
        """Add a token's element to the group of its index, or to the only one."""
        (k,) = ("0",) if total.index is None else self.known[total.index]
        with self._by_its_owner(total.value.type):
            self._accumulate(self._sum_places(total, k, j), parts)

    def _by_its_owner(self, type_: Type | None) -> contextlib.AbstractContextManager[None]:
        """What one thread does for an element, where several compute it."""
        return contextlib.nullcontext()

    def _accumulate(self, places: Parts, parts: Parts) -> None:
        """Add to a tensor's memory."""
        self._add(places, parts)

    def _sum_places(self, total: SumOutput, k: str, j: str) -> Parts:
        """Element ``j`` of group ``k`` of the row's sums, part by part."""
        argument = self._argument(total.name)
        own = [] if total.index is None else [k]
        own += [] if isinstance(total.value.type, Scalar) else [j]
        place = self._tensor(argument, [self.axes[axis] for axis in argument.leading], own)
        return (self._part(place, 0), self._part(place, 1)) if argument.complex else (place,)

    # -- values ---------------------------------------------------------------------------------

    def _parts(self, value: Value, j: str) -> Parts:
        """Names of a value's parts at element ``j``, loading them once a loop."""
        if value not in self.known:
            if is_uniform(value):
                raise AssertionError(f"{value} is used before it is known")
            self._bind(value, self._at(value, j))
        return self.known[value]

    def _at(self, value: Value, i: str) -> Parts:
        """Expressions for element ``i`` of a value that is in memory."""
        if value.op == "input":
            return self._load(value.name, i, value.type)
        if value.op == "iota":
            return (i,)
        if value.op == "select":
            table, index = value.args
            (k,) = self.known[index]
            place = self._tensor(self._argument(table.name), ["h"], [k, i])
            if needs_range_check(self.program.input(table.name)):
                return (self._clamped(self._argument(table.name), place),)
            return (f"T.Cast('int32', {place})",)
        if value.op == "carry":
            return self._carry_places(value, i)
        return self._array_places(self.stages.sums.get(value, value), i)

    def _carry_places(self, carry: Value, j: str) -> Parts:
        """Element ``j`` of a carry of the row in ``slot``."""
        if isinstance(carry.type, Scalar):
            place = "slot"
        else:
            place = f"slot * {self.program.state_size} + {j}"
        return tuple(f"{part}[{place}]" for part in part_names(carry.name, carry.type))

    def _set_carry(self, carry: Carry, j: str, parts: Parts) -> None:
        for place, part in zip(self._carry_places(carry.value, j), parts, strict=True):
            self.writer.line(f"{place} = {part}")

    def _bind(self, value: Value, expressions: Parts) -> None:
        names = part_names(f"{self.names[value]}_", value.type)
        for name, expression in zip(names, expressions, strict=True):
            self.writer.line(f"{name}: T.let = {expression}")
        self.known[value] = names

    def _expression(self, value: Value) -> Parts:
        rule = STRUCTURE_RULES.get(value.op)
        args = [self._parts(arg, "j") for arg in value.args]
        return rule(args) if rule else arithmetic(value, args, self.dialect)

    def _array_places(self, value: Value, i: str) -> Parts:
        """Element ``i`` of a value's array, part by part."""
        name = self.names[value]
        if is_complex(value.type):
            return f"{name}[{i}, 0]", f"{name}[{i}, 1]"
        return (f"{name}[{i}]",)

    def _add(self, places: Parts, parts: Parts) -> None:
        for place, part in zip(places, parts, strict=True):
            self.writer.line(f"{place} = {place} + {part}")

    # -- memory ---------------------------------------------------------------------------------

    def _argument(self, name: str) -> Argument:
        return next(a for a in self.signature.arguments if a.name == name)

    def _place(self, argument: Argument, j: str, t: str = "t") -> str:
        """An element of a tensor, the parts of a complex number left open."""
        indices = self.axes | {"L": t}
        own = [] if isinstance(argument.type, Scalar | Index) else [j]
        return self._tensor(argument, [indices[axis] for axis in argument.leading], own)

    def _tensor(self, argument: Argument, leading: list[str], own: list[str]) -> str:
        """A number, a complex one's parts left open, or an integer of a tensor."""
        return f"{argument.name}[{', '.join([*leading, *own])}]"

    def _part(self, place: str, part: int) -> str:
        """A part of a complex number."""
        return f"{place[:-1]}, {part}]"

    def _load(self, name: str, j: str, type_: Type) -> Parts:
        """Expressions for an element of an input, in the dtype it is computed in."""
        argument = self._argument(name)
        if argument.role == "lagged":
            return self._load_lagged(self.program.input(name), argument, j)
        if isinstance(type_, Map):
            return (self._clamped(argument, self._place(argument, j)),)
        return self._cast(argument, self._place(argument, j))

    def _clamped(self, argument: Argument, place: str) -> str:
        """An entry of a map from outside, whatever it holds, as an element's number."""
        wide = "uint64" if argument.dtype == "int64" else "uint32"
        limit = self.program.state_size - 1
        return f"T.Cast('int32', T.min(T.Cast('{wide}', {place}), T.{wide}({limit})))"

    def _cast(self, argument: Argument, place: str) -> Parts:
        places = [self._part(place, p) for p in (0, 1)] if argument.complex else [place]
        return tuple(self._widened(argument, item) for item in places)

    def _widened(self, argument: Argument, place: str) -> str:
        """An element of a tensor in the dtype it is computed in."""
        return widened(argument, place)

    def _load_lagged(self, input_: Input, argument: Argument, j: str) -> Parts:
        """The saved value of this program's following step, or the boundary."""
        forward = self.program.direction == "forward"
        following, inside = ("t + 1", "t + 1 < L") if forward else ("t - 1", "t > 0")
        saved = self._cast(argument, self._place(argument, j, following))
        if input_.boundary is not None:
            outside = self._load(input_.boundary, j, argument.type)
        else:
            outside = tuple(f"T.{real_dtype(argument.type)}(0)" for _ in saved)
        return tuple(
            f"T.if_then_else({inside}, {a}, {b})" for a, b in zip(saved, outside, strict=True)
        )

    def _store(self, argument: Argument, leading: list[str], j: str, parts: Parts) -> None:
        own = [] if isinstance(argument.type, Scalar) else [j]
        self._store_at(argument, self._tensor(argument, leading, own), parts)

    def _store_at(self, argument: Argument, place: str, parts: Parts) -> None:
        """Store a number, or an integer, as its tensor holds it."""
        for number, part in enumerate(parts):
            to = self._part(place, number) if argument.complex else place
            self.writer.line(f"{to} = {self._narrowed(argument, part)}")

    def _narrowed(self, argument: Argument, value: str) -> str:
        """A number in the dtype its tensor stores."""
        return narrowed(argument, value)

    # -- small things ---------------------------------------------------------------------------

    def _over(self, type_: Type | None):  # type: ignore[no-untyped-def]
        """A loop over the elements of a type; None for a vector's. Gives the index."""
        return _ElementLoop(
            self.writer, 1 if isinstance(type_, Scalar) else self.program.state_size
        )

    def _elements(self, stage: int) -> AbstractContextManager[str]:
        """The loop over elements of a stage."""
        return self._over(None)

    def _report(self, subject: str, promise: str, bound: int, token: str) -> None:
        """Write the error word if ``worst[0]`` is not below the bound.

        A map that leaves its range breaks its promise as well: what is said then is the range.
        """
        number = self.signature.check_number(ReportedCheck(subject, promise))
        wrong = f"worst[0] >= T.uint64({bound})"
        if promise != "range":
            wrong = f"{wrong} and error[0] == T.int64(0)"
        with self.writer.block(f"if {wrong}:"):
            self.writer.line(f"error[0] = T.int64({number << CHECK_SHIFT}) + ({token})")


class _ElementLoop:
    """``for j in T.serial(size):``, left out where nothing is in it."""

    def __init__(self, writer: Writer, size: int) -> None:
        self._block = writer.block(f"for j in T.serial({size}):", optional=True)

    def __enter__(self) -> str:
        self._block.__enter__()
        return "j"

    def __exit__(self, *error: object) -> None:
        self._block.__exit__(*error)  # type: ignore[arg-type]


STRUCTURE_RULES: dict[str, Callable[[list[Parts]], Parts]] = {"broadcast": lambda args: args[0]}

# Ops that the class writes itself; with STRUCTURE_RULES and the arithmetic they are all.
WRITTEN_OPS = frozenset({"select", "gather", "scatter_add", "compose", "invert", "iota", "sum"})
SUPPORTED_OPS = ARITHMETIC_OPS | frozenset(STRUCTURE_RULES) | WRITTEN_OPS
