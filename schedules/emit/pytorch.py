"""A program's body as plain PyTorch, vectorised over rows and tokens.

Every value has the axes ``[B, G, H]`` before its own: a number is a scalar there, a vector or a
map adds ``N``. ``G`` is whatever runs side by side: the tokens of a stretch, or the chunks of one,
each at its own token. The same expressions serve all of these, so :class:`PytorchBody` writes them
into functions that skeletons call as they like. A value that is one for all tokens may lack
leading axes, or have 1 there; broadcasting fills them in.

A complex number is an element of a complex tensor or, where a schedule says ``split``, of two real
ones: about three times the calls, but what ``torch.compile`` generates code for, and what devices
without complex tensors have.

Every index that comes from outside is clamped where it is read, and its range reported through the
error word.

Names cannot clash: inputs are ``in_*``, carries ``carry_*``, outputs ``out_*``, values ``v0, v1,
…``, their real and imaginary parts ``re_*`` and ``im_*``; nothing else in the source looks so.
"""

from collections.abc import Callable, Iterable, Sequence

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
    real_of,
)
from pdssm_compiler.ir.value import Value, topological
from pdssm_compiler.schedules.emit.arithmetic import (
    ARITHMETIC_OPS,
    FUNCTIONS,
    Dialect,
    Parts,
    arithmetic,
)
from pdssm_compiler.schedules.emit.phases import Phases, phases_of
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
        "exp": "torch.exp({x})",
        "log": "torch.log({x})",
        "sin": "torch.sin({x})",
        "cos": "torch.cos({x})",
        "tanh": "torch.tanh({x})",
        "sigmoid": "torch.sigmoid({x})",
        # log1p keeps the small values that log(1 + e^x) rounds away.
        "softplus": "torch.clamp({x}, min=0.0) + torch.log1p(torch.exp(-torch.abs({x})))",
        "sqrt": "torch.sqrt({x})",
        "reciprocal": "torch.reciprocal({x})",
    },
    # A fill, not a copy from the host, which would wait for the device.
    literal=lambda value, bits: (
        f"torch.full((), {_literal(value)}, dtype=torch.float{bits}, device=device)"
    ),
    choose="torch.where({condition}, {x}, 0.0)",
    kept="({k} != 0).unsqueeze(-1)",
    either="({a} != 0) | ({b} != 0)",
)

HELPERS = {
    "gather": """
def gather(x, p):
    # out[..., j] = x[..., p[..., j]]
    if x.shape != p.shape:
        x, p = torch.broadcast_tensors(x, p)
    return x.gather(-1, p)
""",
    "scatter_add": """
def scatter_add(x, p):
    # out[..., i] = the sum of x[..., j] over all j with p[..., j] = i
    if x.shape != p.shape:
        x, p = torch.broadcast_tensors(x, p)
    return torch.zeros_like(x).scatter_add(-1, p, x)
""",
    "invert": """
def invert(p):
    # Of several sources the largest wins, so that a broken promise has one answer everywhere.
    source = torch.arange(p.shape[-1], device=p.device).expand(p.shape)
    return torch.zeros_like(p).scatter_reduce(-1, p, source, "amax")
""",
    "write": """
def write(out, value):
    # Complex numbers are stored as pairs.
    out.copy_(torch.view_as_real(value) if value.is_complex() else value)
""",
    "write_parts": """
def write_parts(out, re, im):
    # Complex numbers are stored as pairs.
    out[..., 0].copy_(re)
    out[..., 1].copy_(im)
""",
    "add_sum": """
def add_sum(out, value, length):
    # out[b, h] += the sum of value[b, t, h] over its tokens
    B, H, *own = out.shape
    out.add_(value.expand(B, length, H, *own).sum(1))
""",
    "add_sums": """
def add_sums(out, value, index, length):
    # out[b, h, k] += the sum of value[b, t, h] over the tokens with index[b, t, h] = k
    B, H, _, *own = out.shape
    value = value.expand(B, length, H, *own).transpose(1, 2)
    index = index.expand(B, length, H).transpose(1, 2)
    for _ in own:
        index = index.unsqueeze(-1)
    out.scatter_add_(2, index.expand(value.shape), value)
""",
    "report": f"""
def report(error, check, bad, place):
    # The last token at which a check failed, behind the check's number.
    found = torch.where(bad, (check << {CHECK_SHIFT}) + place, 0)
    error.copy_(torch.cat([error, found.flatten()]).amax(0, keepdim=True))
""",
}


def _literal(value: float) -> str:
    return repr(value) if value == value and abs(value) != float("inf") else f'float("{value}")'


def dtype_of(type_: Type) -> str:
    """The torch dtype a value is computed in; int64, which torch indexes by, for maps."""
    if not is_number(type_):
        return "torch.int64"
    bits = precision(type_)
    return f"torch.complex{2 * bits}" if is_complex(type_) else f"torch.float{bits}"


def names(items: Iterable[str]) -> str:
    """A tuple of names."""
    listed = list(items)
    return f"({', '.join(listed)}{',' if len(listed) == 1 else ''})"


class PytorchBody:
    """Writes the parts of a source that depend on the program.

    Args:
        program: the program.
        writer: where lines go.
        split: complex numbers as two real tensors.
        others: programs that functions are written of beside it.
    """

    def __init__(
        self, program: Program, writer: Writer, *, split: bool, others: Sequence[Program] = ()
    ) -> None:
        self.program = program
        self.split = split
        self.signature = Signature(program)
        self.writer = writer
        self.phases: Phases = phases_of(program)
        self._bodies = [value for each in (program, *others) for value in each.body]
        self._numbers = {value: n for n, value in enumerate(dict.fromkeys(self._bodies))}

    # -- names ----------------------------------------------------------------------------------

    def name(self, value: Value) -> str:
        """What a value is called in every function."""
        if value.is_leaf:
            return f"{'in' if value.op == 'input' else 'carry'}_{value.name}"
        return f"v{self._numbers[value]}"

    def parts(self, value: Value) -> Parts:
        """The names of the tensors that hold a value."""
        name = self.name(value)
        return (f"re_{name}", f"im_{name}") if self._is_split(value.type) else (name,)

    def _is_split(self, type_: Type) -> bool:
        return self.split and is_complex(type_)

    def names(self, values: Iterable[Value]) -> str:
        """A tuple of values, part by part."""
        return names(part for value in values for part in self.parts(value))

    def parameters(self) -> list[str]:
        """The entry's parameters: the signature's tensors, then the error word."""
        found = [f"in_{argument.name}" for argument in self.signature.inputs]
        found += [self.output(argument) for argument in self.signature.outputs]
        return [*found, "error"]

    @staticmethod
    def output(argument: Argument) -> str:
        """The parameter of an output."""
        return f"out_{argument.name}"

    @property
    def _written(self) -> tuple[Argument, ...]:
        """The outputs that are not added to."""
        return (*self.signature.token_outputs, *self.signature.final_outputs)

    def helpers(self) -> Iterable[str]:
        """Source of the functions that the others call."""
        used = {value.op for value in self._bodies}
        if "compose" in used:
            used.add("gather")
        used |= {"write_parts" if self._is_split(a.type) else "write" for a in self._written}
        if self.signature.checks:
            used.add("report")
        used |= {self._adder(total) for total in self.program.sum_outputs}
        return [source for name, source in HELPERS.items() if name in used]

    # -- functions ------------------------------------------------------------------------------

    def turn(self, name: str, program: Program, kept: Sequence[Value]) -> None:
        """A function of one token: ``(carries, token, fixed)`` → next carries, and what is kept
        of the turn. ``token`` and ``fixed`` are :func:`turn_reads`.
        """
        phases = phases_of(program)
        token, fixed = turn_reads(program)
        with self.writer.block(f"def {name}(carries, token, fixed):"):
            self._unpack("carries", [carry.value for carry in program.carries])
            self._unpack("token", token)
            self._unpack("fixed", fixed)
            self.compute(phases.turn)
            after: list[str] = []
            for carry in program.carries:
                found = self.parts(carry.next)
                if carry.next in phases.fixed:
                    # It may lack leading axes.
                    shape = self.parts(carry.value)[0]
                    found = tuple(f"{part}.expand_as({shape})" for part in found)
                after += found
            self.writer.line(f"return {names(after)}, {self.names(kept)}")
        self._separate()

    def behind(self, results: Sequence[Value]) -> None:
        """A function of a stretch of tokens: ``(kept, token, fixed)`` → results that need a
        carry. ``kept``, ``token`` and ``fixed`` are :func:`behind_reads`.
        """
        kept, token, fixed = behind_reads(self.phases, results)
        with self.writer.block("def behind(kept, token, fixed):"):
            self._unpack("kept", kept)
            self._unpack("token", token)
            self._unpack("fixed", fixed)
            self.compute(self.phases.behind)
            self.writer.line(f"return {self.names(results)}")
        self._separate()

    def whole(self, name: str, program: Program, results: Sequence[Value]) -> None:
        """A function of one token of another program, all of its body: ``(carries, token)`` →
        results.
        """
        carries = [carry.value for carry in program.carries]
        with self.writer.block(f"def {name}(carries, token):"):
            self._unpack("carries", carries)
            self._unpack("token", [i.value for i in program.inputs if i.role == "token"])
            values = topological(results)
            if any(value.op in ("constant", "iota") for value in values):
                self.writer.line(f"device = {self.parts(carries[0])[0]}.device")
            self.compute(values)
            self.writer.line(f"return {self.names(results)}")
        self._separate()

    def _unpack(self, parameter: str, values: Sequence[Value]) -> None:
        if values:
            self.writer.line(f"{self.names(values)} = {parameter}")

    def _separate(self) -> None:
        self.writer.line()
        self.writer.line()

    def compute(self, values: Iterable[Value]) -> None:
        """A line for each part of each value that is not a leaf."""
        for value in values:
            if value.is_leaf:
                continue
            targets, expressions = self.parts(value), self._expressions(value)
            if len(targets) == 2 and _uneven(value):
                both = f"torch.broadcast_tensors({', '.join(expressions)})"
                self.writer.line(f"{', '.join(targets)} = {both}")
                continue
            for target, expression in zip(targets, expressions, strict=True):
                self.writer.line(f"{target} = {expression}")

    def _expressions(self, value: Value) -> Parts:
        args = [self.parts(arg) for arg in value.args]
        if value.op in ARITHMETIC_OPS and (self.split or value.op not in RULES):
            return arithmetic(value, args, DIALECT)
        if not args:
            return (RULES[value.op](self.program.state_size, []),)
        # What is moved is moved part by part; maps and indices have one.
        others = [part for arg in args[1:] for part in arg]
        return tuple(RULES[value.op](self.program.state_size, [part, *others]) for part in args[0])

    # -- the entry's beginning ------------------------------------------------------------------

    def sizes(self) -> None:
        """``B``, ``L``, ``H``, and what the rest needs of them."""
        write = self.writer.line
        tokens = next(a for a in self.signature.inputs if "L" in a.leading)
        write(f"B, L, H = in_{tokens.name}.shape[:3]")
        write(f"device = in_{tokens.name}.device")
        if any(isinstance(i.type, Table) for i in self.program.inputs):
            write("head = torch.arange(H, device=device)")
        if self.signature.checks:
            write("place = torch.arange(B * L * H, device=device).view(B, L, H)")

    def inputs(self) -> None:
        """Every input as its value: widened, complex, clamped, its ranges reported."""
        # Boundaries first.
        for input_ in sorted(self.program.inputs, key=lambda i: i.role == "lagged"):
            name = f"in_{input_.name}"
            if is_number(input_.type):
                self._number(input_, name)
            elif needs_range_check(input_):
                self._index(input_, name)
            else:
                # An inverted table is our own work.
                self.writer.line(f"{name} = {name}.long()")

    def _number(self, input_: Input, name: str) -> None:
        argument = Argument(input_.name, input_.type, input_.storage, input_.role)
        real = f"float{precision(input_.type)}"
        if self._is_split(input_.type):
            found: Parts = tuple(f"{name}[..., {part}]" for part in (0, 1))
        else:
            found = (name,)
        if argument.dtype != real:
            # What is viewed as complex has its pairs at even offsets.
            dense = ", memory_format=torch.contiguous_format" if argument.complex else ""
            found = tuple(f"{part}.to(torch.{real}{dense})" for part in found)
        if argument.complex and not self.split:
            found = (f"torch.view_as_complex({found[0]})",)
        if input_.role == "row":
            found = tuple(f"{part}.unsqueeze(1)" for part in found)
        edges: Parts = ()
        if input_.boundary is not None:
            edges = self.parts(self.program.input(input_.boundary).value)
        for number, (target, part) in enumerate(zip(self.parts(input_.value), found, strict=True)):
            if target != part:
                self.writer.line(f"{target} = {part}")
            if input_.role == "lagged":
                edge = edges[number] if edges else f"torch.zeros_like({target}[:, :1])"
                self.writer.line(f"{target} = {self._shifted(target, edge)}")

    def _shifted(self, name: str, edge: str) -> str:
        """What was saved of this program's following step, and the edge at its last."""
        # Cut to size afterwards, so that no token at all is no special case.
        if self.program.direction == "forward":
            return f"torch.cat([{name}, {edge}], 1)[:, 1:]"
        return f"torch.cat([{edge}, {name}], 1)[:, :L]"

    def _index(self, input_: Input, name: str) -> None:
        write = self.writer.line
        bound = input_.type.bound if isinstance(input_.type, Index) else self.program.state_size
        write(f"given = {name}.long()")
        write(f"{name} = given.clamp(0, {bound - 1})")
        bad = f"given != {name}"
        own = {Index: 0, Map: 1, Table: 2}[type(input_.type)]
        if own:
            bad = f"({bad}).{'any(-1)' if own == 1 else 'flatten(1).any(-1)'}"
        places = {
            "head": "torch.arange(H, device=device)",
            "row": "torch.arange(B, device=device)[:, None] * (L * H) + "
            "torch.arange(H, device=device)",
        }
        self.report(ReportedCheck(input_.name, "range"), bad, places.get(input_.role, "place"))
        if input_.role == "row":
            write(f"{name} = {name}.unsqueeze(1)")

    def start(self, carry: Carry, groups: str = "1") -> Parts:
        """A carry's first value, ``[B, groups, H, ...]``."""
        if carry.start_input is not None:
            return self.parts(self.program.input(carry.start_input).value)
        own = "" if isinstance(carry.type, Scalar) else f", {self.program.state_size}"
        shape = f"(B, {groups}, H{own})"
        if carry.start == "identity":
            return (f"torch.arange({self.program.state_size}, device=device).expand{shape}",)
        make = "ones" if carry.start == "one" else "zeros"
        type_ = real_of(carry.type) if self._is_split(carry.type) else carry.type
        made = [
            f"torch.{make}({shape}, dtype={dtype_of(type_)}, device=device)"
            for make in (make, "zeros")
        ]
        return tuple(made[: len(self.parts(carry.value))])

    # -- results --------------------------------------------------------------------------------

    def write(self, out: str, parts: Sequence[str]) -> None:
        """Write a value into an output."""
        helper = "write" if len(parts) == 1 else "write_parts"
        self.writer.line(f"{helper}({', '.join([out, *parts])})")

    @staticmethod
    def _adder(total: SumOutput) -> str:
        return "add_sum" if total.index is None else "add_sums"

    def clear_sums(self) -> None:
        """Sums of no token."""
        for argument in self.signature.sum_outputs:
            self.writer.line(f"{self.output(argument)}.zero_()")

    def _add_sums(self, values: Sequence[Value], cut: str) -> None:
        """Add to the sums whose values are among some; see :meth:`results`."""
        length = "last - first" if cut else "L"
        for argument, total in zip(
            self.signature.sum_outputs, self.program.sum_outputs, strict=True
        ):
            if total.value not in values:
                continue
            found = self.parts(total.value)
            index = "" if total.index is None else self._index_of(total.index, cut) + ", "
            out, adder = self.output(argument), self._adder(total)
            if not argument.complex:
                self.writer.line(f"{adder}({out}, {found[0]}, {index}{length})")
                continue
            if len(found) == 1:
                found = (f"{found[0]}.real", f"{found[0]}.imag")
            for number, part in enumerate(found):
                self.writer.line(f"{adder}({out}[..., {number}], {part}, {index}{length})")

    def _index_of(self, index: Value, cut: str) -> str:
        """An input's index at the tokens of a stretch."""
        varies = self.program.input(index.name).role == "token"
        return f"{self.name(index)}{cut if varies else ''}"

    def report(self, check: ReportedCheck, bad: str, place: str) -> None:
        """Report a check where ``bad`` holds."""
        self.writer.line(f"report(error, {self.signature.check_number(check)}, {bad}, {place})")

    def results(self, values: Sequence[Value], cut: str) -> None:
        """Write the token outputs, add to the sums, and report the promises, whose values are
        among some.

        Args:
            values: the values at hand.
            cut: the index of the stretch of tokens they are of, "" for all.
        """
        for argument, out in zip(
            self.signature.token_outputs, self.program.token_outputs, strict=True
        ):
            if out.value in values:
                self.write(f"{self.output(argument)}{cut}", self.parts(out.value))
        self._add_sums(values, cut)
        for check in self.program.checks:
            if check.map in values:
                identity = f"torch.arange({self.program.state_size}, device=device)"
                bad = f"({self.name(check.map)} != {identity}).any(-1)"
                self.report(ReportedCheck(check.subject, check.promise), bad, f"place{cut}")


def turn_reads(program: Program) -> tuple[list[Value], list[Value]]:
    """What a token's turn reads besides carries: the token's own values, and those of all."""
    phases = phases_of(program)
    read = phases.read(phases.turn, tuple(carry.next for carry in program.carries))
    return [v for v in read if v in phases.ahead], [v for v in read if v in phases.fixed]


def behind_reads(
    phases: Phases, results: Sequence[Value]
) -> tuple[list[Value], list[Value], list[Value]]:
    """What is read after all turns: what they keep, the tokens' own values, and those of all."""
    read = phases.read(phases.behind, tuple(results))
    return (
        [value for value in phases.turn if value in read],
        [value for value in read if value in phases.ahead],
        [value for value in read if value in phases.fixed],
    )


def _uneven(value: Value) -> bool:
    """Whether the imaginary part comes from another argument than the real one, maybe of another
    shape.
    """
    mixed = len({is_complex(arg.type) for arg in value.args}) > 1
    return value.op == "complex" or (value.op in ("add", "sub") and mixed)


Rule = Callable[[int, list[str]], str]


def _of(template: str) -> Rule:
    return lambda n, args: template.format(*args, n=n)


RULES: dict[str, Rule] = {
    "add": _of("{0} + {1}"),
    "sub": _of("{0} - {1}"),
    "mul": _of("{0} * {1}"),
    "scale": _of("torch.where({0} != 0, {0} * {1}, 0.0)"),
    "neg": _of("-{0}"),
    "conj": _of("torch.conj_physical({0})"),
    "real": _of("{0}.real"),
    "imag": _of("{0}.imag"),
    "complex": _of("torch.complex({0}, {1})"),
    "broadcast": _of("{0}.unsqueeze(-1).expand(*{0}.shape, {n})"),
    "sum": _of("{0}.sum(-1)"),
    "select": _of("{0}[head, {1}]"),
    "gather": _of("gather({0}, {1})"),
    "compose": _of("gather({0}, {1})"),
    "scatter_add": _of("scatter_add({0}, {1})"),
    "invert": _of("invert({0})"),
    "iota": _of("torch.arange({n}, device=device)"),
}

SUPPORTED_OPS = frozenset(RULES) | frozenset(FUNCTIONS) | {"constant", "keep"}
