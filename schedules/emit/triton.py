"""One token of any program as block-level Triton.

A tile holds a few whole rows: ``[ROWS, BLOCK]``, ``BLOCK`` the state size rounded up to a power of
two. :class:`TritonBody` knows ops, types and roles, and no program. Skeletons decide where tokens
come from and when inputs are loaded.

Lanes at and beyond the state size map to themselves, so whatever they compute stays among them.
Every index that comes from outside is clamped where it is read, and its range reported through the
error word.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

from pdssm_compiler.ir.passes import carried_sums
from pdssm_compiler.ir.program import Carry, Input, Program, SumOutput
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
from pdssm_compiler.schedules.signature import (
    CHECK_SHIFT,
    Argument,
    ReportedCheck,
    Signature,
    needs_range_check,
    sorted_form,
)
from pdssm_compiler.schedules.source import Writer

DIALECT = Dialect(
    functions={
        "exp": "tl.exp({x})",
        "log": "tl.log({x})",
        "sin": "tl.sin({x})",
        "cos": "tl.cos({x})",
        "tanh": "tanh({x})",
        "sigmoid": "tl.sigmoid({x})",
        "softplus": "softplus({x})",
        "sqrt": "tl.sqrt({x})",
        "reciprocal": "1.0 / {x}",
    },
    literal=lambda value, bits: f"tl.full((ROWS,), {_literal(value)}, tl.float{bits})",
    choose="tl.where({condition}, {x}, 0.0)",
    kept="({k} != 0)[:, None]",
    either="({a} != 0) | ({b} != 0)",
)

# Functions that Triton lacks, or that lose their small values: written into a kernel's source
# when its program uses them.
_TANH = """
@triton.jit
def tanh(x):
    # A continued fraction near zero, where 1 - e^-2x would cancel.
    s = x * x
    top = x * (135135.0 + s * (17325.0 + s * (378.0 + s)))
    near = top / (135135.0 + s * (62370.0 + s * (3150.0 + s * 28.0)))
    decayed = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - decayed) / (1.0 + decayed)
    return tl.where(tl.abs(x) < 0.5, near, tl.where(x < 0.0, -far, far))
"""
_SOFTPLUS = """
@triton.jit
def softplus(x):
    # log(1 + u), by the series of atanh where 1 + u would round u away.
    u = tl.exp(-tl.abs(x))
    r = u / (2.0 + u)
    s = r * r
    tail = 1.0 / 11.0 + s * (1.0 / 13.0 + s * (1.0 / 15.0 + s * (1.0 / 17.0)))
    tail = 1.0 / 5.0 + s * (1.0 / 7.0 + s * (1.0 / 9.0 + s * tail))
    near = 2.0 * r * (1.0 + s * (1.0 / 3.0 + s * tail))
    return tl.maximum(x, 0.0) + tl.where(u < 0.25, near, tl.log(1.0 + u))
"""
_BY_TARGET = """
@triton.jit
def by_target(to, lane):
    # The sources sorted by where they go, and where each of them goes.
    key = tl.sort(to * BLOCK + lane, dim=1)
    return key % BLOCK, key // BLOCK
"""
# A target's sources are neighbours once they are sorted, so their sum is the last of a running sum
# that starts anew with each target. Its cost is the same whatever collides, and so is its order.
_SEGMENTS = """
@triton.jit
def segments(to, lane):
    # For the sorted sources: which they are, and whether each is its target's first. For the
    # targets: where the last source of each is, and whether it has any.
    order, target = by_target(to, lane)
    before = tl.gather(target, tl.maximum(lane - 1, 0), axis=1)
    first = ((lane == 0) | (before != target)).to(tl.int32)
    # How many sources go to this lane or one before it, by bisection.
    count = tl.zeros_like(lane)
    for level in tl.static_range(LEVELS):
        step = BLOCK >> (level + 1)
        probe = tl.gather(target, count + (step - 1), axis=1)
        count = tl.where(probe <= lane, count + step, count)
    count = tl.where(tl.gather(target, count, axis=1) <= lane, count + 1, count)
    last = tl.maximum(count - 1, 0)
    return order, first, last, tl.gather(target, last, axis=1) == lane

@triton.jit
def add_1(first_a, a, first_b, b):
    return first_a | first_b, tl.where(first_b != 0, b, a + b)

@triton.jit
def add_2(first_a, a_re, a_im, first_b, b_re, b_im):
    new = first_b != 0
    return first_a | first_b, tl.where(new, b_re, a_re + b_re), tl.where(new, b_im, a_im + b_im)
"""
HELPERS: dict[str, tuple[str, ...]] = {
    "tanh": (_TANH,),
    "softplus": (_SOFTPLUS,),
    "invert": (_BY_TARGET,),
    "scatter_add": (_BY_TARGET, _SEGMENTS),
}


def _literal(value: float) -> str:
    return repr(value) if value == value and abs(value) != float("inf") else f'float("{value}")'


def real_dtype(type_: Type) -> str:
    """The Triton dtype a number is computed in, part by part; int32 for maps."""
    return f"tl.float{precision(type_)}" if is_number(type_) else "tl.int32"


def _wide(raw: str, storage: str) -> str:
    """A loaded index in a dtype that holds every bound: 256 is no number of eight bits."""
    return f"{raw}.to(tl.int32)" if storage in ("u8", "i16") else raw


@dataclass
class Kept:
    """Tokens' inputs that stay in registers, where several bodies read them.

    Attributes:
        lanes: the ending of the masks, ``inside`` and ``live``, of what is loaded.
        names: what is loaded so far.
        words: 32-bit registers that an element of each takes.
    """

    lanes: str = ""
    names: set[str] = field(default_factory=set)
    words: int = 0


def parameters(arguments: Iterable[Argument]) -> list[str]:
    """Names of a function's parameters before its sizes: each tensor's pointer and its leading
    strides (in elements; complex numbers count as one), then the error word.
    """
    names: list[str] = []
    for argument in arguments:
        names += [argument.name, *(f"{argument.name}_s{axis}" for axis in argument.leading)]
    return [*names, "error"]


class TritonBody:
    """Writes the parts of a kernel that depend on the program.

    Args:
        signature: the kernel's arguments and checks.
        writer: where to.
        split: whether a program runs one chunk of its rows instead of them all.
        axis: the axis that its tokens lie along: ``C`` where they are summaries of chunks, counted
            from this program's own.
        prefix: tells what it computes from what other bodies of the same function do.
    """

    def __init__(
        self,
        signature: Signature,
        writer: Writer,
        split: bool = False,
        axis: Literal["L", "C"] = "L",
        prefix: str = "",
    ) -> None:
        # What is left of its sums are those by an index.
        self.program: Program = carried_sums(signature.program)
        self.signature = signature
        self.writer = writer
        self.split = split
        self.axis = axis
        self.prefix = prefix
        self._numbers = {value: number for number, value in enumerate(self.program.body)}
        self.known: dict[Value, Parts] = {}
        # What the sorted forms of maps were loaded to.
        self.sorted_maps: dict[Value, str] = {}

    # -- declarations ---------------------------------------------------------------------------

    def helpers(self) -> Iterable[str]:
        """Source of the functions the body calls."""
        used = {value.op for value in self.program.body}
        if self.signature.sorted_maps:
            used.add("scatter_add")
        return [source for op, sources in HELPERS.items() if op in used for source in sources]

    def rows(self, block: str = "tl.program_id(0).to(tl.int64)") -> None:
        """Which rows and lanes this program has; needs ``rows`` and ``H``."""
        write = self.writer.line
        write(f"row = {block} * ROWS + tl.arange(0, ROWS)")
        write("live = row < rows")
        write("b = row // H")
        write("h = row % H")
        write("j = tl.arange(0, BLOCK)")
        write("part = tl.arange(0, 2)")
        write(f"inside = live[:, None] & (j < {self.program.state_size})[None, :]")
        write("lane = tl.broadcast_to(j[None, :], (ROWS, BLOCK))")

    def chunk(self) -> None:
        """Which tokens a program has that is split: those of ``chunk``, ``begin`` to ``end``;
        needs ``L`` and ``span``.
        """
        write = self.writer.line
        write("chunk = tl.program_id(1).to(tl.int64)")
        write("begin = chunk * span")
        write("end = tl.minimum(begin + span, L)")
        forward = self.program.direction == "forward"
        write(f"is_last = {'end == L' if forward else 'begin == 0'}")

    def pointers(self, arguments: Iterable[Argument] | None = None) -> None:
        """The tile of addresses of every tensor (its own, if none are given) at token 0."""
        indices = {"B": "b", "C": "chunk", "H": "h"}
        for argument in self.signature.arguments if arguments is None else arguments:
            terms = [
                f"{indices[axis]} * {argument.name}_s{axis}"
                for axis in argument.leading
                if axis != "L"
            ]
            offset = f"({' + '.join(terms)})"
            if not isinstance(argument.type, Scalar | Index):
                offset = f"({offset}[:, None] + j[None, :])"
            if argument.complex:
                rank = 1 if isinstance(argument.type, Scalar) else 2
                open_, parts = ("[:, None]", "[None, :]")
                if rank == 2:
                    open_, parts = ("[:, :, None]", "[None, None, :]")
                offset = f"{offset}{open_} * 2 + part{parts}"
            self.writer.line(f"{argument.name}_at = {argument.name} + {offset}")

    def start_rows(self) -> None:
        """First values of the carries, sums that are empty, constants of the row, and the checks
        of its tables.
        """
        for carry in self.program.carries:
            self.start_carry(carry)
        self.start_constants()

    def start_carry(self, carry: Carry) -> None:
        """The first value of a carry."""
        names = part_names(carry.name, carry.type)
        for name, part in zip(names, self._start(carry), strict=True):
            self.writer.line(f"{name} = {part}")

    def start_constants(self) -> None:
        """All of :meth:`start_rows` but the carries."""
        for input_ in self.program.inputs:
            if isinstance(input_.type, Table):
                if self._is_reported(input_.name, "range"):
                    with self._only("chunk == 0"):
                        self._check_table(input_, input_.type)
            elif input_.role in ("head", "row") and self._is_read(input_):
                self.load(input_.value, "", "0")
                self.finish(input_.value, "", "0")
                self._check_constant(input_)
        for number, (subject, _) in enumerate(self._promises()):
            shape = "(ROWS,)" if self._is_index(subject) else "(ROWS, BLOCK)"
            self.writer.line(f"broken_{number} = tl.full({shape}, -1, tl.int64)")
        self._clear_sums()

    def _is_read(self, input_: Input) -> bool:
        """Whether the body, or a lagged input as its boundary, reads the input."""
        boundary = any(other.boundary == input_.name for other in self.program.inputs)
        return boundary or input_.value in self.program.body

    def _start(self, carry: Carry) -> Parts:
        shape = "(ROWS,)" if isinstance(carry.type, Scalar) else "(ROWS, BLOCK)"
        if carry.start_input is not None:
            value = self.program.input(carry.start_input).value
            self.load(value, "", "0")
            self.finish(value, "", "0")
            return self.known[value]
        if carry.start == "identity":
            return ("lane",)
        dtype = real_dtype(carry.type)
        first = "1.0" if carry.start == "one" else "0.0"
        parts = (first, "0.0") if is_complex(carry.type) else (first,)
        return tuple(f"tl.full({shape}, {part}, {dtype})" for part in parts)

    def _check_table(self, input_: Input, table: Table) -> None:
        """Every entry once: the rows of the first sequence look at their heads' tables."""
        name = input_.name
        write = self.writer
        write.line(f"worst_{name} = tl.zeros((ROWS, BLOCK), tl.int32)")
        with write.block(f"for k in range({table.size}):"):
            mask = "inside & (b == 0)[:, None]"
            write.line(f"entry = tl.load({name}_at + k * {self._n}, mask={mask}, other=0)")
            wrong = self._outside("entry", input_, self._n)
            write.line(f"worst_{name} = worst_{name} | ({wrong}).to(tl.int32)")
        write.line(f"bad = tl.max(worst_{name}, axis=1) > 0")
        self._report(name, "range", "bad", "h")

    def _check_constant(self, input_: Input) -> None:
        """An index or a map that is one for all tokens of a row."""
        if not self._is_reported(input_.name, "range"):
            return
        raw = self.raw_names(input_.value, "")[0]
        bound = input_.type.bound if isinstance(input_.type, Index) else self._n
        bad = self._outside(raw, input_, bound)
        if isinstance(input_.type, Map):
            bad = f"tl.max(({bad}).to(tl.int32), axis=1) > 0"
        place = "h" if input_.role == "head" else "b * L * H + h"
        self._report(input_.name, "range", bad, place)

    def _outside(self, raw: str, input_: Input, bound: int) -> str:
        """Whether an index as it was loaded lies outside ``[0, bound)``."""
        wide = _wide(raw, input_.storage)
        wrong = f"{wide} >= {bound}"
        return wrong if input_.storage == "u8" else f"({wide} < 0) | ({wrong})"

    @contextmanager
    def _only(self, condition: str) -> Iterator[None]:
        """What one chunk does for all of its row."""
        if not self.split:
            yield
            return
        with self.writer.block(f"if {condition}:"):
            yield

    def _name(self, value: Value) -> str:
        if value.op == "select":
            # Named alike by all bodies that read it.
            return "_".join(["select", *(arg.name for arg in value.args)])
        return value.name if value.is_leaf else f"{self.prefix}v{self._numbers[value]}"

    # -- inputs of a token ----------------------------------------------------------------------

    def ahead(self) -> list[Value]:
        """What a token needs that no token before it computes: its inputs, and the maps that its
        indices select. Skeletons may load these early.
        """
        maps = [v for v in self.program.body if v.op == "select"]
        return [*self._token_leaves(numbers_and_maps=True), *maps]

    def indices(self) -> list[Value]:
        """The indices among a token's inputs, which selected maps wait for."""
        return self._token_leaves(numbers_and_maps=False)

    def _token_leaves(self, *, numbers_and_maps: bool) -> list[Value]:
        return [
            input_.value
            for input_ in self.program.inputs
            if input_.role in ("token", "lagged")
            and input_.value in self.program.body
            and isinstance(input_.type, Index) != numbers_and_maps
        ]

    def raw_names(self, value: Value, slot: str) -> Parts:
        """The names of what :meth:`load` loads; ``slot`` tells the tokens loaded early apart."""
        return part_names(f"{self._name(value)}_raw{slot}", value.type)

    def load(self, value: Value, slot: str, t: str, kept: Kept | None = None) -> None:
        """Load one of :meth:`ahead` or :meth:`indices` for the token ``t``, unless it is kept.

        Nothing waits for the memory here: what has to be computed from it is left to
        :meth:`finish`, when the token's turn has come. (A selected map does wait for its index.)
        """
        if isinstance(value.type, Map):
            self._load_map(value, slot, t, kept)
            return
        names = self.raw_names(value, slot)
        input_ = self.program.input(value.name)
        argument = self._argument(input_.name)
        place, mask = f"{input_.name}_at", self._mask(argument, kept)
        if self.axis in argument.leading:
            if input_.role == "lagged":
                t, within = self._following(t)
                mask = f"{mask} & {within}"
            place = f"{place} + ({t}) * {self._step(argument)}"
        other = "0.0" if is_number(value.type) else "0"
        loaded = f"tl.load({place}, mask={mask}, other={other})"
        if argument.complex:
            loaded = f"tl.split({loaded})"
        self._load(argument, names, loaded, kept)

    def _load(self, argument: Argument, names: Parts, loaded: str, kept: Kept | None) -> None:
        if kept is not None:
            if kept.names.issuperset(names):
                return
            kept.names.update(names)
            kept.words += len(names) * (2 if argument.dtype.endswith("64") else 1)
        self.writer.line(f"{', '.join(names)} = {loaded}")

    def _load_map(self, value: Value, slot: str, t: str, kept: Kept | None) -> None:
        """A map as it is, its sorted form, or both, as the body needs them."""
        name, offset = value.args[0].name if value.op == "select" else value.name, ""
        if value.op == "select":
            index = value.args[1]
            k = self._clamped(self.raw_names(index, slot)[0], self._bound(index), index)
            offset = f" + {k}[:, None] * {self._n}"
        (raw,) = self.raw_names(value, slot)
        for part, filler in (("", 0), ("_order", 0), ("_last", -1)):
            if not self._needs(value, part != ""):
                continue
            argument = self._argument(f"{name}{part}")
            if self.axis in argument.leading:
                offset = f" + ({t}) * {self._step(argument)}"
            place, mask = f"{argument.name}_at{offset}", self._mask(argument, kept)
            loaded = f"tl.load({place}, mask={mask}, other={filler})"
            self._load(argument, (f"{raw}{part}",), loaded, kept)

    def _needs(self, map_: Value, sorted_: bool) -> bool:
        """Whether the body reads a map in its sorted form (a scatter does, where there is one), or
        as it is.
        """
        name = map_.args[0].name if map_.op == "select" else map_.name
        if name not in self.signature.sorted_maps:
            return not sorted_
        users = {value.op for value in self.program.body if map_ in value.args}
        if sorted_:
            return "scatter_add" in users
        return users != {"scatter_add"} or map_ in self.program.roots

    def finish(self, value: Value, slot: str, t: str) -> None:
        """Make the parts of a loaded value known: widened, clamped, or the boundary's."""
        names = self.raw_names(value, slot)
        if isinstance(value.type, Map) and self._needs(value, True):
            self.sorted_maps[value] = names[0]
            if not self._needs(value, False):
                # Nothing asks for it, but it is not to be computed either.
                self.known[value] = ()
                return
        if isinstance(value.type, Index):
            self._bind(value, (self._clamped(names[0], self._bound(value), value),))
        elif isinstance(value.type, Map):
            source = f"{names[0]}.to(tl.int32)"
            if not self._is_trusted(value):
                table = value.args[0] if value.op == "select" else value
                source = self._clamped(names[0], self._n, table)
            self._bind(value, (f"tl.where(inside, {source}, lane)",))
        else:
            argument = self._argument(value.name)
            compute = real_dtype(value.type)
            parts = names
            if f"tl.{argument.dtype}" != compute:
                parts = tuple(f"{name}.to({compute})" for name in names)
            boundary = self.program.input(value.name).boundary
            if boundary is not None:
                _, within = self._following(t)
                outside = self.known[self.program.input(boundary).value]
                parts = tuple(
                    f"tl.where({within}, {part}, {edge})"
                    for part, edge in zip(parts, outside, strict=True)
                )
            if parts == names:
                self.known[value] = names
            else:
                self._bind(value, parts)

    def _bind(self, value: Value, expressions: Parts) -> None:
        # A leaf's own name is its pointer's or its carry's.
        names = part_names(f"{self._name(value)}{'_now' if value.is_leaf else ''}", value.type)
        for name, expression in zip(names, expressions, strict=True):
            self.writer.line(f"{name} = {expression}")
        self.known[value] = names

    def _bound(self, index: Value) -> int:
        assert isinstance(index.type, Index)
        return index.type.bound

    def _clamped(self, raw: str, bound: int, leaf: Value) -> str:
        """An index as it was loaded, whatever it holds, inside ``[0, bound)``."""
        wide = _wide(raw, self.program.input(leaf.name).storage)
        return f"tl.minimum(tl.maximum({wide}, 0), {bound - 1}).to(tl.int32)"

    def _is_trusted(self, map_: Value) -> bool:
        """Whether a map needs no clamping: an inverted table is our own work."""
        name = map_.args[0].name if map_.op == "select" else map_.name
        return not needs_range_check(self.program.input(name))

    def _following(self, t: str) -> tuple[str, str]:
        """This program's following step, whose saved value a lagged input reads, and whether there
        is one.
        """
        if self.program.direction == "forward":
            return f"({t}) + 1", f"(({t}) + 1 < L)"
        return f"({t}) - 1", f"(({t}) > 0)"

    def _step(self, argument: Argument) -> str:
        """Elements from one token to the next."""
        step = f"{argument.name}_s{self.axis}"
        return f"({step} * 2)" if argument.complex else step

    def _mask(self, argument: Argument, kept: Kept | None = None) -> str:
        lanes = "" if kept is None else kept.lanes
        if isinstance(argument.type, Scalar | Index):
            return f"live{lanes}[:, None]" if argument.complex else f"live{lanes}"
        return f"inside{lanes}[:, :, None]" if argument.complex else f"inside{lanes}"

    # -- one token ------------------------------------------------------------------------------

    def token(self, slot: str, given: Mapping[Value, str] | None = None) -> None:
        """The body of token ``t``, whose inputs :meth:`load` put in ``slot``, or which are
        ``given``: the names of values that are known already, and of maps in their sorted form.
        """
        constant = dict(self.known)
        for value, name in (given or {}).items():
            self.known[value] = part_names(name, value.type)
            self.sorted_maps[value] = name
        for value in [*self.indices(), *self.ahead()]:
            if value not in self.known:
                self.finish(value, slot, "t")
        for carry in self.program.carries:
            self.known[carry.value] = part_names(carry.name, carry.type)
        self._range_checks(slot)
        for value in self.program.body:
            if value not in self.known:
                self._compute(value)
        self._promise_checks()
        for out in self.program.token_outputs:
            argument = self._argument(out.name)
            place = f"{out.name}_at + t * {self._step(argument)}"
            self._store(argument, place, self.known[out.value])
        for total in self.program.sum_outputs:
            self._add_to_sum(total)
        # All next values, then all carries: one may be another's present value.
        nexts = [name for carry in self.program.carries for name in self.known[carry.next]]
        carried = [
            name for carry in self.program.carries for name in part_names(carry.name, carry.type)
        ]
        if carried:
            self.writer.line(f"{', '.join(carried)} = {', '.join(nexts)}")
        self.known = constant

    def _compute(self, value: Value) -> None:
        if isinstance(value.type, Table):
            # Read through `select`.
            return
        rule = STRUCTURE_RULES.get(value.op)
        args = [self.known[arg] for arg in value.args]
        self._bind(value, rule(self, value, args) if rule else arithmetic(value, args, DIALECT))

    def end_rows(self) -> None:
        """Final outputs, and the reports of what was checked over all tokens."""
        for final in self.program.final_outputs:
            carry = self.program.carry(final.carry)
            argument = self._argument(final.name)
            with nullcontext() if argument.role == "chunk" else self._only("is_last"):
                self._store(argument, f"{final.name}_at", part_names(carry.name, carry.type))
                if final.name in self.signature.sorted_maps:
                    self._store_sorted(argument, carry.name)
        # Ranges last: a map that leaves its range breaks its promise as well, and the word that
        # is written last stays.
        for number, (subject, promise) in reversed(list(enumerate(self._promises()))):
            broken = f"broken_{number}"
            at = broken if self._is_index(subject) else f"tl.max({broken}, axis=1)"
            self.writer.line(f"at = {at}")
            self._report(subject, promise, "at >= 0", "b * L * H + at * H + h")

    def _store_sorted(self, maps: Argument, name: str) -> None:
        """The sorted form of a map."""
        self.sort(name)
        for argument, part in zip(sorted_form(maps), ("order", "last"), strict=True):
            self._store(argument, f"{argument.name}_at", (f"{name}_{part}",))

    def sort(self, name: str) -> None:
        """Make the sorted form of a map, ``<name>_order`` and ``<name>_last``."""
        self.writer.line(f"order, first_of, last_of, hit = segments({name}, lane)")
        self.writer.line(f"{name}_order = order * 2 + first_of")
        self.writer.line(f"{name}_last = tl.where(hit, last_of, -1)")

    # -- sums by an index -----------------------------------------------------------------------

    def _clear_sums(self) -> None:
        """All groups of the rows' sums are zero, before any thread adds to them."""
        for total in self.program.sum_outputs:
            argument = self._argument(total.name)
            with self.writer.block(f"for k in range({total.groups}):"):
                place = f"{total.name}_at + k * {self._group_step(total)}"
                self.writer.line(f"tl.store({place}, 0.0, mask={self._mask(argument)})")
        if self.program.sum_outputs:
            self.writer.line("tl.debug_barrier()")

    def _add_to_sum(self, total: SumOutput) -> None:
        """Add a token's values to the groups of its index.

        Only this program adds to its rows' sums, an element always by the same thread, in the
        order of the tokens, so sums repeat bit by bit. Nothing waits for an atomic addition.
        """
        assert total.index is not None
        argument, parts = self._argument(total.name), self.known[total.value]
        (k,) = self.known[total.index]
        axes = (0 if isinstance(total.value.type, Scalar) else 1) + argument.complex
        spread = f"{k}[:{', None' * axes}]" if axes else k
        place = f"{total.name}_at + {spread} * {self._group_step(total)}"
        value = f"tl.join({parts[0]}, {parts[1]})" if argument.complex else parts[0]
        mask = f'mask={self._mask(argument)}, sem="relaxed"'
        self.writer.line(f"tl.atomic_add({place}, {value}, {mask})")

    def _group_step(self, total: SumOutput) -> int:
        """Numbers of one group, the parts of a complex one counted."""
        size = 1 if isinstance(total.value.type, Scalar) else self._n
        return size * 2 if is_complex(total.value.type) else size

    # -- checks ---------------------------------------------------------------------------------

    def _promises(self) -> list[tuple[str, str]]:
        """Checks made over all tokens, of maps element by element: ranges, then promises."""
        if not self.signature.reports:
            return []
        ranges = [
            (i.name, "range")
            for i in self.program.inputs
            if isinstance(i.type, Map | Index) and i.role == "token" and self._is_read(i)
        ]
        return ranges + [(check.subject, check.promise) for check in self.program.checks]

    def _is_index(self, subject: str) -> bool:
        return isinstance(self.program.input(subject).type, Index)

    def _is_reported(self, subject: str, promise: str) -> bool:
        return ReportedCheck(subject, promise) in self.signature.checks

    def _range_checks(self, slot: str) -> None:
        for number, (subject, promise) in enumerate(self._promises()):
            if promise == "range":
                input_ = self.program.input(subject)
                bound = self._bound(input_.value) if self._is_index(subject) else self._n
                bad = self._outside(self.raw_names(input_.value, slot)[0], input_, bound)
                self.writer.line(f"broken_{number} = tl.where({bad}, t, broken_{number})")

    def _promise_checks(self) -> None:
        if not self.signature.reports:
            return
        first = len(self._promises()) - len(self.program.checks)
        for number, check in enumerate(self.program.checks, start=first):
            (name,) = self.known[check.map]
            self.writer.line(f"broken_{number} = tl.where({name} != lane, t, broken_{number})")

    def _report(self, subject: str, promise: str, bad: str, token: str) -> None:
        number = self.signature.check_number(ReportedCheck(subject, promise))
        code = f"{number << CHECK_SHIFT} + {token}"
        self.writer.line(f"tl.store(error + 0 * row, {code}, mask=live & ({bad}))")

    # -- memory ---------------------------------------------------------------------------------

    @property
    def _n(self) -> int:
        return self.program.state_size

    def _argument(self, name: str) -> Argument:
        return next(a for a in self.signature.arguments if a.name == name)

    def _store(self, argument: Argument, place: str, parts: Parts) -> None:
        value = f"tl.join({parts[0]}, {parts[1]})" if argument.complex else parts[0]
        mask = self._mask(argument)
        # A store casts to the pointer's own dtype.
        self.writer.line(f"tl.store({place}, {value}, mask={mask})")


Rule = Callable[[TritonBody, Value, list[Parts]], Parts]


def _gather(body: TritonBody, value: Value, args: list[Parts]) -> Parts:
    return tuple(f"tl.gather({part}, {args[1][0]}, axis=1)" for part in args[0])


def _scatter_add(body: TritonBody, value: Value, args: list[Parts]) -> Parts:
    parts, map_ = args
    if body.program.state_size == 1:
        return parts
    write = body.writer.line
    raw = body.sorted_maps.get(value.args[1])
    if raw is None:
        write(f"order, first_of, last_of, hit = segments({map_[0]}, lane)")
    else:
        write(f"order, first_of = {raw}_order >> 1, {raw}_order & 1")
        write(f"last_of, hit = tl.maximum({raw}_last, 0), {raw}_last >= 0")
    names = tuple(f"summed_{number}" for number, _ in enumerate(parts))
    moved = [f"tl.gather({part}, order, axis=1)" for part in parts]
    scanned = f"tl.associative_scan((first_of, {', '.join(moved)}), 1, add_{len(parts)})"
    write(f"_, {', '.join(names)} = {scanned}")
    return tuple(f"tl.where(hit, tl.gather({name}, last_of, axis=1), 0.0)" for name in names)


def _invert(body: TritonBody, value: Value, args: list[Parts]) -> Parts:
    ((map_,),) = args
    return (map_,) if body.program.state_size == 1 else (f"by_target({map_}, lane)[0]",)


STRUCTURE_RULES: dict[str, Rule] = {
    "broadcast": lambda body, value, args: tuple(
        f"tl.broadcast_to({part}[:, None], (ROWS, BLOCK))" for part in args[0]
    ),
    "sum": lambda body, value, args: tuple(
        f"tl.sum(tl.where(inside, {part}, 0.0), axis=1)" for part in args[0]
    ),
    "gather": _gather,
    "compose": _gather,
    "scatter_add": _scatter_add,
    "invert": _invert,
    "iota": lambda body, value, args: ("lane",),
}

# `select` is loaded with the inputs.
SUPPORTED_OPS = ARITHMETIC_OPS | frozenset(STRUCTURE_RULES) | {"select"}
