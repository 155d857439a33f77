"""One token of any program as block-level Triton.

A tile holds a few whole rows: ``[ROWS, BLOCK]``, ``BLOCK`` the state size rounded up to a power of
two. :class:`TritonBody` knows ops, types and roles, and no program. Skeletons decide where tokens
come from and when inputs are loaded.

Lanes at and beyond the state size map to themselves, so whatever they compute stays among them.
Every index that comes from outside is clamped where it is read, and its range reported through the
error word.
"""

from collections.abc import Callable, Iterable

from pdssm_compiler.ir.program import Carry, Input, Program
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
from pdssm_compiler.schedules.emit.arithmetic import ARITHMETIC_OPS, Dialect, Parts, arithmetic
from pdssm_compiler.schedules.signature import (
    CHECK_SHIFT,
    Argument,
    ReportedCheck,
    Signature,
    needs_range_check,
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
)

# Functions that Triton lacks, or that lose their small values: written into a kernel's source
# when its program uses them.
HELPERS = {
    "tanh": """
@triton.jit
def tanh(x):
    # A continued fraction near zero, where 1 - e^-2x would cancel.
    s = x * x
    top = x * (135135.0 + s * (17325.0 + s * (378.0 + s)))
    near = top / (135135.0 + s * (62370.0 + s * (3150.0 + s * 28.0)))
    decayed = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - decayed) / (1.0 + decayed)
    return tl.where(tl.abs(x) < 0.5, near, tl.where(x < 0.0, -far, far))
""",
    "softplus": """
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
""",
}

_SUFFIXES = {1: ("",), 2: ("_re", "_im")}


def _literal(value: float) -> str:
    return repr(value) if value == value and abs(value) != float("inf") else f'float("{value}")'


def real_dtype(type_: Type) -> str:
    """The Triton dtype a number is computed in, part by part; int32 for maps."""
    return f"tl.float{precision(type_)}" if is_number(type_) else "tl.int32"


def part_names(name: str, type_: Type) -> Parts:
    """The names of a value's parts."""
    return tuple(name + suffix for suffix in _SUFFIXES[2 if is_complex(type_) else 1])


class TritonBody:
    """Writes the parts of a kernel that depend on the program."""

    def __init__(self, program: Program, writer: Writer) -> None:
        self.program = program
        self.signature = Signature(program)
        self.writer = writer
        self.names = {
            value: (value.name if value.is_leaf else f"v{number}")
            for number, value in enumerate(program.body)
        }
        self.known: dict[Value, Parts] = {}

    # -- declarations ---------------------------------------------------------------------------

    def helpers(self) -> Iterable[str]:
        """Source of the functions the body calls."""
        used = {value.op for value in self.program.body}
        return [source for op, source in HELPERS.items() if op in used]

    def parameters(self) -> list[str]:
        """Names of the kernel's parameters before the skeleton's own: each tensor's pointer and
        its leading strides (in elements; complex numbers count as one), then the error word.
        """
        names: list[str] = []
        for argument in self.signature.arguments:
            names.append(argument.name)
            names += [f"{argument.name}_s{axis}" for axis in argument.leading]
        return [*names, "error"]

    def rows(self) -> None:
        """Which rows and lanes this program has; needs ``rows`` and ``H``."""
        write = self.writer.line
        write("row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)")
        write("live = row < rows")
        write("b = row // H")
        write("h = row % H")
        write("j = tl.arange(0, BLOCK)")
        write("part = tl.arange(0, 2)")
        write(f"inside = live[:, None] & (j < {self.program.state_size})[None, :]")
        write("lane = tl.broadcast_to(j[None, :], (ROWS, BLOCK))")

    def pointers(self) -> None:
        """The tile of addresses of every tensor at token 0."""
        indices = {"B": "b", "H": "h"}
        for argument in self.signature.arguments:
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
        """First values of the carries, constants of the row, and the checks of its tables."""
        for carry in self.program.carries:
            names = part_names(carry.name, carry.type)
            for name, part in zip(names, self._start(carry), strict=True):
                self.writer.line(f"{name} = {part}")
        for input_ in self.program.inputs:
            if isinstance(input_.type, Table):
                if needs_range_check(input_):
                    self._check_table(input_, input_.type)
            elif input_.role in ("head", "row") and self._is_read(input_):
                self.load(input_, input_.name, "0", "True")
        for number, _ in enumerate(self._promises()):
            self.writer.line(f"broken_{number} = tl.full((ROWS, BLOCK), -1, tl.int64)")

    def _is_read(self, input_: Input) -> bool:
        """Whether the body, or a lagged input as its boundary, reads the input."""
        boundary = any(other.boundary == input_.name for other in self.program.inputs)
        return boundary or input_.value in self.program.body

    def _start(self, carry: Carry) -> Parts:
        shape = "(ROWS,)" if isinstance(carry.type, Scalar) else "(ROWS, BLOCK)"
        if carry.start_input is not None:
            name = f"start_{carry.name}"
            self.load(self.program.input(carry.start_input), name, "0", "True")
            return part_names(name, carry.type)
        if carry.start == "identity":
            return ("lane",)
        dtype = real_dtype(carry.type)
        first = "1.0" if carry.start == "one" else "0.0"
        parts = (first, "0.0") if is_complex(carry.type) else (first,)
        return tuple(f"tl.full({shape}, {part}, {dtype})" for part in parts)

    def _check_table(self, input_: Input, table: Table) -> None:
        """Every entry once: the rows of the first sequence look at their heads' tables."""
        n, name = self.program.state_size, input_.name
        write = self.writer
        write.line(f"worst_{name} = tl.zeros((ROWS, BLOCK), tl.int32)")
        with write.block(f"for k in range({table.size}):"):
            write.line(
                f"entry = tl.load({name}_at + k * {n}, mask=inside & (b == 0)[:, None], other=0)"
            )
            wrong = "entry >= " + str(n)
            if input_.storage != "u8":
                wrong = f"(entry < 0) | ({wrong})"
            write.line(f"worst_{name} = worst_{name} | ({wrong}).to(tl.int32)")
        write.line(f"bad = tl.max(worst_{name}, axis=1) > 0")
        self._report(name, "range", "bad", "h")

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

    def name_of(self, value: Value, slot: str) -> str:
        """The name of a value loaded early; ``slot`` tells tokens apart."""
        return f"{self.names[value]}{slot}"

    def loaded_names(self, value: Value, slot: str) -> Parts:
        """Every name that :meth:`load_ahead` gives a value: its parts, and what is checked."""
        name = self.name_of(value, slot)
        checked = isinstance(value.type, Map | Index) and value.op == "input"
        return (*part_names(name, value.type), *((f"{name}_raw",) if checked else ()))

    def load_ahead(self, value: Value, slot: str, t: str, exists: str) -> None:
        """Load one of :meth:`ahead` or :meth:`indices` for the token ``t``, if it exists."""
        name = self.name_of(value, slot)
        if value.op == "select":
            table, index = value.args
            argument = self._argument(table.name)
            place = f"{table.name}_at + {self.name_of(index, slot)}[:, None] * {self._n}"
            checked = not needs_range_check(self.program.input(table.name))
            self._load_map(argument, name, place, f"inside & {exists}", trusted=checked)
        else:
            self.load(self.program.input(value.name), name, t, exists)

    def load(self, input_: Input, name: str, t: str, exists: str) -> None:
        """Load an input into ``name``'s parts."""
        argument = self._argument(input_.name)
        place = f"{input_.name}_at"
        if "L" in argument.leading:
            step = f"{input_.name}_sL * 2" if argument.complex else f"{input_.name}_sL"
            place = f"{place} + ({t}) * ({step})"
        if input_.role == "lagged":
            self._load_lagged(input_, argument, name, t, exists)
        elif isinstance(input_.type, Map):
            self._load_map(argument, name, place, f"inside & {exists}", trusted=False)
        elif isinstance(input_.type, Index):
            self.writer.line(f"{name}_raw = tl.load({place}, mask=live & {exists}, other=0)")
            clamped = f"tl.minimum(tl.maximum({name}_raw, 0), {input_.type.bound - 1})"
            self.writer.line(f"{name} = {clamped}.to(tl.int32)")
        else:
            self._load_number(argument, name, place, exists)

    def _load_number(self, argument: Argument, name: str, place: str, exists: str) -> None:
        mask = "live" if isinstance(argument.type, Scalar) else "inside"
        if argument.complex:
            rank = 1 if isinstance(argument.type, Scalar) else 2
            mask = f"{mask}{'[:, None]' if rank == 1 else '[:, :, None]'}"
        cast = f".to({real_dtype(argument.type)})"
        loaded = f"tl.load({place}, mask={mask} & {exists}, other=0.0){cast}"
        if argument.complex:
            re, im = part_names(name, argument.type)
            self.writer.line(f"{re}, {im} = tl.split({loaded})")
        else:
            self.writer.line(f"{name} = {loaded}")

    def _load_map(
        self, argument: Argument, name: str, place: str, mask: str, *, trusted: bool
    ) -> None:
        self.writer.line(f"{name}_raw = tl.load({place}, mask={mask}, other=0)")
        limit = self._n - 1
        source = f"{name}_raw.to(tl.int32)"
        if not trusted:
            source = f"tl.minimum(tl.maximum({name}_raw, 0), {limit}).to(tl.int32)"
        self.writer.line(f"{name} = tl.where({mask}, {source}, lane)")

    def _load_lagged(
        self, input_: Input, argument: Argument, name: str, t: str, exists: str
    ) -> None:
        """The saved value of this program's following step, or the boundary."""
        forward = self.program.direction == "forward"
        following, inside = (
            (f"({t}) + 1", f"(({t}) + 1 < L)")
            if forward
            else (
                f"({t}) - 1",
                f"(({t}) > 0)",
            )
        )
        step = f"{input_.name}_sL * 2" if argument.complex else f"{input_.name}_sL"
        place = f"{input_.name}_at + ({following}) * ({step})"
        self._load_number(argument, name, place, f"{inside} & {exists}")
        if input_.boundary is not None:
            names = part_names(name, argument.type)
            for part, outside in zip(
                names, part_names(input_.boundary, argument.type), strict=True
            ):
                self.writer.line(f"{part} = tl.where({inside}, {part}, {outside})")

    # -- one token ------------------------------------------------------------------------------

    def token(self, slot: str) -> None:
        """The body of token ``t``, whose inputs :meth:`load_ahead` put in ``slot``."""
        self.known = {}
        for value in [*self.indices(), *self.ahead()]:
            self.known[value] = part_names(self.name_of(value, slot), value.type)
        for input_ in self.program.inputs:
            if input_.role in ("head", "row") and not isinstance(input_.type, Table):
                self.known[input_.value] = part_names(input_.name, input_.type)
        for carry in self.program.carries:
            self.known[carry.value] = part_names(carry.name, carry.type)
        self._range_checks(slot)
        for value in self.program.body:
            if value not in self.known and not value.is_leaf:
                self._compute(value)
        self._promise_checks()
        for out in self.program.token_outputs:
            argument = self._argument(out.name)
            step = f"{out.name}_sL * 2" if argument.complex else f"{out.name}_sL"
            self._store(argument, f"{out.name}_at + t * ({step})", self.known[out.value])
        # All next values, then all carries: one may be another's present value.
        nexts = [name for carry in self.program.carries for name in self.known[carry.next]]
        carried = [
            name for carry in self.program.carries for name in part_names(carry.name, carry.type)
        ]
        if carried:
            self.writer.line(f"{', '.join(carried)} = {', '.join(nexts)}")

    def _compute(self, value: Value) -> None:
        rule = STRUCTURE_RULES.get(value.op)
        args = [self.known[arg] for arg in value.args]
        if value.op in ("scatter_add", "invert"):
            self._hits(value.args[-1])
        expressions = rule(self, value, args) if rule else arithmetic(value, args, DIALECT)
        names = part_names(self.names[value], value.type)
        for name, expression in zip(names, expressions, strict=True):
            self.writer.line(f"{name} = {expression}")
        self.known[value] = names

    def _hits(self, map_: Value) -> None:
        """Where source ``j`` (axis 1) goes to row ``i`` (axis 2)."""
        (name,) = self.known[map_]
        self.writer.line(f"hits = {name}[:, :, None] == j[None, None, :]")

    def end_rows(self) -> None:
        """Final outputs, and the reports of what was checked over all tokens."""
        for final in self.program.final_outputs:
            carry = self.program.carry(final.carry)
            argument = self._argument(final.name)
            self._store(argument, f"{final.name}_at", part_names(carry.name, carry.type))
        for number, (subject, promise) in enumerate(self._promises()):
            self.writer.line(f"at = tl.max(broken_{number}, axis=1)")
            self._report(subject, promise, "at >= 0", "b * L * H + at * H + h")

    # -- checks ---------------------------------------------------------------------------------

    def _promises(self) -> list[tuple[str, str]]:
        """Checks made element by element over all tokens: maps' ranges, then promises."""
        maps = [
            (i.name, "range")
            for i in self.program.inputs
            if isinstance(i.type, Map) and needs_range_check(i)
        ]
        return maps + [(check.subject, check.promise) for check in self.program.checks]

    def _range_checks(self, slot: str) -> None:
        for value in self.indices():
            assert isinstance(value.type, Index)
            raw = f"{self.name_of(value, slot)}_raw"
            wrong = f"{raw} >= {value.type.bound}"
            if self.program.input(value.name).storage != "u8":
                wrong = f"({raw} < 0) | ({wrong})"
            self.writer.line(f"bad = {wrong}")
            self._report(value.name, "range", "bad", "b * L * H + t * H + h")
        for number, (subject, promise) in enumerate(self._promises()):
            if promise == "range":
                value = self.program.input(subject).value
                if value not in self.known:
                    continue
                raw = f"{self.name_of(value, slot)}_raw"
                wrong = f"{raw} >= {self._n}"
                if self.program.input(subject).storage != "u8":
                    wrong = f"({raw} < 0) | ({wrong})"
                self.writer.line(f"broken_{number} = tl.where({wrong}, t, broken_{number})")

    def _promise_checks(self) -> None:
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
        mask = "live" if isinstance(argument.type, Scalar) else "inside"
        value = parts[0]
        if argument.complex:
            rank = 1 if isinstance(argument.type, Scalar) else 2
            mask = f"{mask}{'[:, None]' if rank == 1 else '[:, :, None]'}"
            value = f"tl.join({parts[0]}, {parts[1]})"
        # A store casts to the pointer's own dtype.
        self.writer.line(f"tl.store({place}, {value}, mask={mask})")


Rule = Callable[[TritonBody, Value, list[Parts]], Parts]


def _gather(body: TritonBody, value: Value, args: list[Parts]) -> Parts:
    return tuple(f"tl.gather({part}, {args[1][0]}, axis=1)" for part in args[0])


def _scatter_add(body: TritonBody, value: Value, args: list[Parts]) -> Parts:
    return tuple(f"tl.sum(tl.where(hits, {part}[:, :, None], 0.0), axis=1)" for part in args[0])


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
    "invert": lambda body, value, args: ("tl.max(tl.where(hits, j[None, :, None], 0), axis=1)",),
    "iota": lambda body, value, args: ("lane",),
}

# `select` is loaded with the inputs.
SUPPORTED_OPS = ARITHMETIC_OPS | frozenset(STRUCTURE_RULES) | {"select"}
