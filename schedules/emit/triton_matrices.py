"""Triton functions over matrices: what a program computes of ``N × N`` numbers a token, added up
where it is used.

One axis of a matrix is *looped* over, the one that a choice is made along; the other lies on a
program's *lanes*. The matrices of a head are laid out for that first, ``[looped, K, lanes]``, with
zeros behind both axes' ends, so that no load needs a mask.

A function goes through matrices in one of two ways, and every op has its rule in terms of what
stands for a coefficient, an entry or a vector there:

- *tokens*: a program has a tile ``[tokens, lanes]`` in registers and goes through the looped axis:
  choices, what a softmax needs to know of its column, inner products.
- *entries*: a program has a tile ``[looped, lanes]`` of every matrix and goes through tokens: sums
  over tokens of weighed matrices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import Coefficients, Matrices, Scalar, is_complex
from pdssm_compiler.ir.value import Value, topological
from pdssm_compiler.schedules.signature import Argument, Signature
from pdssm_compiler.schedules.source import Phase, Writer

# Coefficients of a token that are in registers; of more, entries are loaded with them one by one.
IN_REGISTERS = 16
# Coefficients whose sums are in registers together, where there are more.
_TOGETHER = 8

_HELPERS = """
@triton.jit
def fused(a, b, c):
    return tl.fma(tl.broadcast_to(a, c.shape), tl.broadcast_to(b, c.shape), c)
"""


# Gumbel noise by Philox, as ir/ops/noise.py has it.
_NOISE = """

@triton.jit
def gumbel(m, scale, seed, draw, place, which):
    # tokens or entries [X, lanes]; place and which of each, or of all
    zero = tl.zeros(m.shape, tl.int32)
    place = (place + zero).to(tl.uint32)
    low = tl.broadcast_to((draw & 0xFFFFFFFF).to(tl.uint32), m.shape)
    high = tl.broadcast_to((draw >> 32).to(tl.uint32), m.shape)
    a, b, c, d = tl.philox(seed, place, low, high, tl.zeros_like(low))
    which = which + zero
    word = tl.where(which == 0, a, tl.where(which == 1, b, tl.where(which == 2, c, d)))
    uniform = ((word >> 9).to(tl.int32).to(m.dtype) + 0.5) * 1.1920928955078125e-07
    return m - scale * tl.log(-tl.log(uniform))
"""


@dataclass(frozen=True)
class Shape:
    """How matrices are laid out and cut.

    Attributes:
        size: ``N``.
        entries: ``K``.
        orientation: ``column``: rows are looped over, columns on the lanes; or ``row``.
        tokens: of a tile of tokens and lanes.
        lanes: of a tile.
        rows: of the looped axis, computed together.
        tile: of the looped axis in a tile of entries.
        together: tokens that are loaded together there.
    """

    size: int
    entries: int
    orientation: str
    tokens: int
    lanes: int
    rows: int
    tile: int
    together: int = 1

    @property
    def looped(self) -> int:
        """The looped axis with its end."""
        step = max(self.rows, self.tile)
        return -(-self.size // step) * step

    @property
    def padded(self) -> int:
        """The axis on lanes with its end."""
        return -(-self.size // self.lanes) * self.lanes

    @property
    def columns(self) -> int:
        """Tiles of lanes."""
        return self.padded // self.lanes

    @property
    def chunk(self) -> int:
        """Coefficients whose sums are in registers together."""
        return self.entries if self.entries <= IN_REGISTERS else _TOGETHER

    @property
    def chunks(self) -> int:
        """How many times so many."""
        return -(-self.entries // self.chunk)

    @property
    def order(self) -> tuple[int, int, int, int]:
        """The axes of ``[H, K, N, N]``, as they are laid out."""
        return (0, 2, 1, 3) if self.orientation == "column" else (0, 3, 1, 2)


def orientation_of(program: Program) -> str | None:
    """Which axis is chosen along, the same for all choices; None if they differ."""
    found = {dict(v.attributes)["orientation"] for v in program.body if _has_orientation(v)}
    return found.pop() if len(found) == 1 else None


def _has_orientation(value: Value) -> bool:
    return "orientation" in dict(value.attributes)


def tables_of(program: Program) -> list[Argument]:
    """The matrices that a program reads."""
    return [a for a in Signature(program).inputs if isinstance(a.type, Matrices)]


def refused(program: Program) -> str | None:
    """Why the functions cannot run a program, or None."""
    if orientation_of(program) is None:
        return "all choices of a program must be by columns, or by rows"
    if program.carries or program.checks or program.final_outputs:
        return "a program over matrices that has carries or checks"
    if len(tables_of(program)) != 1:
        return "a program of one head's matrices is wanted"
    for out in program.token_outputs:
        if out.value.op not in ("argmax", "inner"):
            return f"a token output that is neither argmax nor inner, but {out.value.op}"
    for value in program.body:
        if value.op in ("argmax", "straight_through"):
            mixes = [v for v in topological(value.args[:1]) if v.op == "mix"]
            if len(mixes) != 1:
                return f"a choice of what is no mixture, but of {value.args[0].op}"
    for total in program.sum_outputs:
        if total.value.op != "weigh" or total.index is not None:
            return f"a sum that is not of weigh, but of {total.value.op}"
    return None


class TritonMatrices:
    """The text of a program's functions.

    Args:
        program: what they compute.
        writer: where they are written.
        shape: how.
    """

    def __init__(self, program: Program, writer: Writer, shape: Shape) -> None:
        self.program = program
        self.writer = writer
        self.shape = shape
        self.signature = Signature(program)
        self.arguments = {argument.name: argument for argument in self.signature.arguments}
        (self.matrices,) = tables_of(program)
        element = self.matrices.type.element  # type: ignore[union-attr]
        self.storage = element
        self.dtype = f"tl.float{32 if element == 'f32' else 64}"
        self.table = self._scratch(f"table_{self.matrices.name}")
        self.softs = [v for v in program.body if v.op == "straight_through"]
        self.in_registers = shape.entries <= IN_REGISTERS

    def _scratch(self, name: str) -> Argument:
        """A tensor between two functions, laid out as they know."""
        return Argument(name, Scalar(self.storage), self.storage, "signal", True)

    def stats_of(self, soft: Value) -> list[Argument]:
        """What is known of each column of a softmax: the largest, the mean of what arrives, and
        what all is multiplied by; ``[B, L, H, lanes]``.
        """
        number = self.softs.index(soft)
        return [self._scratch(f"{part}_{number}") for part in ("top", "mean", "scale")]

    def partial_of(self, name: str) -> Argument:
        """An output's sums, before they are added up."""
        return self._scratch(f"partial_{name}")

    def scratch(self) -> list[Argument]:
        """All of it, in the order of the phases."""
        found = [self.table]
        for soft in self.softs:
            found += self.stats_of(soft)
        found += [
            self.partial_of(o.name) for o in self.program.token_outputs if o.value.op == "inner"
        ]
        return [*found, *(self.partial_of(o.name) for o in self.program.sum_outputs)]

    # Functions.

    def write(self) -> list[Phase]:
        """All functions, in the order they run."""
        write = self.writer.line
        write("import triton")
        write("import triton.language as tl")
        noisy = any(value.op == "gumbel" for value in self.program.body)
        for helper in (_HELPERS, _NOISE) if noisy else (_HELPERS,):
            for line in helper.rstrip("\n").splitlines():
                write(line)
        phases = []
        for out in self.program.token_outputs:
            if out.value.op == "argmax":
                phases.append(self._choose(out.name, out.value))
        for number, soft in enumerate(self.softs):
            phases += [self._top(number, soft), self._soft(number, soft)]
        for out in self.program.token_outputs:
            if out.value.op == "inner":
                phases.append(self._inner(out.name, out.value))
        phases += [self._weigh(out.name, out.value) for out in self.program.sum_outputs]
        return phases

    def _function(
        self, entry: str, roots: Sequence[Value], others: Sequence[Argument], body: "_Walk"
    ) -> Phase:
        """One function, of the tensors that some values need."""
        read = {v.name for v in topological(roots) if v.op == "input"}
        tensors = [a for a in self.signature.inputs if a.name in read and a != self.matrices]
        arguments = (*tensors, self.table, *others)
        names = []
        for argument in arguments:
            names += [argument.name, *(f"{argument.name}_s{axis}" for axis in argument.leading)]
        names += ["error", "rows", "L", "H", "span"]
        self.writer.line()
        self.writer.line()
        self.writer.line("@triton.jit")
        with self.writer.block(f"def {entry}({', '.join(names)}):"):
            body(self)
        return Phase(entry, arguments, "matrices")

    def _choose(self, name: str, value: Value) -> Phase:
        shape, (matrix,) = self.shape, value.args
        out = self.arguments[name]

        def body(_: TritonMatrices) -> None:
            write = self.writer.line
            self._token_tile()
            place = _Tokens(self)
            place.prepare([matrix])
            self._tile("best", 'float("-inf")')
            write(f"index = tl.zeros(({shape.tokens}, {shape.lanes}), tl.int32)")
            with self._rows():
                place.rows([matrix])
                for row in range(shape.rows):
                    entry = place.matrix(matrix, row)
                    within = self._within(row)
                    larger = f"({entry} > best)"
                    write(f"index = tl.where({larger}{within}, i + {row}, index)")
                    if within:
                        write(f"{entry} = tl.where(i + {row} < {shape.size}, {entry}, best)")
                    # A NaN stays.
                    write(f"best = tl.maximum(best, {entry}, {_ALL_NAN})")
            write("index = tl.where(best == best, index, -1)")
            at = f"{self._token_at(out)}[:, None] + lane[None, :]"
            mask = f"inside[:, None] & (lane < {shape.size})[None, :]"
            write(f"tl.store({name} + {at}, index, mask={mask})")

        return self._function(f"choose_{name}", [matrix], [out], body)

    def _top(self, number: int, soft: Value) -> Phase:
        """The largest entry of each column, by where it is, times the inverse temperature.

        A function of its own: what it gathers would tell the compiler to give threads another
        shape of tile, for which every entry of a head's matrices is loaded several times.
        """
        matrix, largest, _, _ = soft.args
        shape, (top, _, _) = self.shape, self.stats_of(soft)
        argument = self.arguments[largest.name]
        (mixed,) = (value for value in topological([matrix]) if value.op == "mix")
        _, coefficients = mixed.args

        def body(_: TritonMatrices) -> None:
            write = self.writer.line
            self._token_tile()
            place = _Tokens(self)
            place.prepare([matrix])
            self._inverse_temperature(soft)
            write(f"found = {self._token_at(argument)}[:, None] + lane[None, :]")
            mask = f"inside[:, None] & (lane < {shape.size})[None, :]"
            write(f"found = tl.load({argument.name} + found, mask={mask}, other=0)")
            write(f"found = tl.minimum(tl.maximum(found, 0), {shape.size - 1}).to(tl.int64)")
            write(f"here = found * {shape.entries * shape.padded} + lane[None, :]")
            self._tile("top", "0.0")
            if self.in_registers:
                for k in range(shape.entries):
                    write(f"d = tl.load(table + here + {k * shape.padded})")
                    write(f"top = fused({place.coefficient(coefficients, k)}, d, top)")
            else:
                with self.writer.block(f"for k in range(0, {shape.entries}):"):
                    write(f"d = tl.load(table + here + k * {shape.padded})")
                    write(f"top = fused({place.loaded_coefficient(coefficients)}, d, top)")
            if matrix.op == "gumbel":
                write(f"top = {place.noisy(matrix, 'top', 'found')}")
            write(f"at = {self._stats_at('n')}")
            write(f"tl.store({top.name} + at, top * sharp, mask=inside[:, None])")

        return self._function(f"top_{number}", [matrix, *soft.args[1::2]], [top], body)

    def _soft(self, number: int, soft: Value) -> Phase:
        """What a softmax needs to know of its columns, and the mean of what arrives at it."""
        matrix, _, reached, temperature = soft.args
        shape, stats = self.shape, self.stats_of(soft)
        _, mean, scale = (argument.name for argument in stats)

        def body(_: TritonMatrices) -> None:
            write = self.writer.line
            self._token_tile()
            place = _Tokens(self)
            place.prepare([matrix, reached])
            self._inverse_temperature(soft)
            write(f"at = {self._stats_at('n')}")
            write(f"top = tl.load({stats[0].name} + at, mask=inside[:, None], other=0.0)")
            for name in ("total", "mean"):
                self._tile(name, "0.0")
            with self._rows():
                place.rows([matrix, reached])
                for row in range(shape.rows):
                    entry = place.matrix(matrix, row)
                    write(f"e = tl.exp2(fused(sharp, {entry}, -top))")
                    if self._within(row):
                        write(f"e = tl.where(i + {row} < {shape.size}, e, 0.0)")
                    write("total += e")
                    start = f"tl.zeros(({shape.tokens}, {shape.lanes}), {self.dtype})"
                    write(f"mean = fused(e, {place.reached(reached, row, start)}, mean)")
            write(f"tl.store({mean} + at, mean / total, mask=inside[:, None])")
            write(f"scale = (sharp / {_LOG2E}) / total")
            write(f"tl.store({scale} + at, scale, mask=inside[:, None])")

        needed = [matrix, reached, temperature]
        return self._function(f"soft_{number}", needed, stats, body)

    def _inner(self, name: str, value: Value) -> Phase:
        """Inner products with each of a head's matrices, of a tile's lanes alone."""
        _, matrix = value.args
        shape, partial = self.shape, self.partial_of(name)
        stats = [argument for soft in self._softs_in(matrix) for argument in self.stats_of(soft)]

        def body(_: TritonMatrices) -> None:
            write = self.writer.line
            self._token_tile(chunked=True)
            place = _Tokens(self)
            place.prepare([matrix])
            for k in range(shape.chunk):
                self._tile(f"sum_{k}", "0.0")
            with self._rows():
                place.rows([matrix], entries=True)
                for row in range(shape.rows):
                    write(f"x = {place.matrix(matrix, row)}")
                    for k in range(shape.chunk):
                        write(f"sum_{k} = fused(x, {place.chunk_entry(row, k)}, sum_{k})")
            write(f"at = (n * H + h) * {shape.columns} + column")
            for k in range(shape.chunk):
                mask = "inside"
                if shape.entries % shape.chunk:
                    mask += f" & (first + {k} < {shape.entries})"
                factor = place.later(matrix)
                write(f"found = tl.sum(sum_{k}{factor}, axis=1)")
                write(f"tl.store({partial.name} + at * {shape.entries} + first + {k}, found,")
                write(f"         mask={mask})")

        return self._function(f"inner_{name}", [matrix], [*stats, partial], body)

    def _weigh(self, name: str, value: Value) -> Phase:
        """Sums over some of the tokens of a matrix times each of its coefficients."""
        matrix, coefficients = value.args
        shape, partial = self.shape, self.partial_of(name)
        stats = [argument for soft in self._softs_in(matrix) for argument in self.stats_of(soft)]

        def body(_: TritonMatrices) -> None:
            write, n = self.writer.line, shape
            write("part = tl.program_id(1).to(tl.int64)")
            write(f"row = tl.program_id(2).to(tl.int64) // {n.chunks}")
            write(f"first = (tl.program_id(2) % {n.chunks}) * {n.chunk}")
            write("b = row // H")
            write("h = row % H")
            write(f"column = tl.program_id(0) % {n.columns}")
            write(f"i = (tl.program_id(0) // {n.columns}) * {n.tile} + tl.arange(0, {n.tile})")
            write(f"lane = column * {n.lanes} + tl.arange(0, {n.lanes})")
            write(f"table = {self.table.name} + h * {n.looped * n.entries * n.padded}")
            write(f"here = i.to(tl.int64)[:, None] * {n.entries * n.padded} + lane[None, :]")
            place = _Entries(self)
            place.prepare([matrix, coefficients])
            for k in range(n.chunk):
                write(f"sum_{k} = tl.zeros(({n.tile}, {n.lanes}), {self.dtype})")
            write("begin = part * span")
            write("end = tl.minimum(begin + span, L)")
            with self.writer.block(f"for step in range(begin, end, {n.together}):"):
                # What is loaded of some tokens is waited for once.
                for number in range(n.together):
                    place.load([matrix, coefficients], number)
                for number in range(n.together):
                    place.turn_to(number)
                    write(f"x = {place.matrix(matrix, 0)}{place.later(matrix)}")
                    for k in range(n.chunk):
                        write(f"sum_{k} = fused(x, {place.weight(coefficients, k)}, sum_{k})")
            per_row = n.looped * n.entries * n.padded
            write(f"at = (part * rows + row) * {per_row} + here")
            for k in range(n.chunk):
                mask = f", mask=(first + {k} < {n.entries}) & (i >= 0)[:, None]"
                mask = mask if n.entries % n.chunk else ""
                target = f"{partial.name} + at + (first + {k}) * {n.padded}"
                write(f"tl.store({target}, sum_{k}{mask})")

        return self._function(f"weigh_{name}", [matrix, coefficients], [*stats, partial], body)

    # Parts of them.

    def _softs_in(self, matrix: Value) -> list[Value]:
        """The softmaxes whose columns must be known."""
        return [soft for soft in self.softs if soft in topological([matrix])]

    def _token_tile(self, chunked: bool = False) -> None:
        write, shape = self.writer.line, self.shape
        write(f"n = tl.program_id(0).to(tl.int64) * {shape.tokens} + tl.arange(0, {shape.tokens})")
        write("inside = n < (rows // H) * L")
        write("b = n // L")
        write("t = n - b * L")
        write("column = tl.program_id(1)")
        if chunked:
            write(f"h = tl.program_id(2).to(tl.int64) // {shape.chunks}")
            write(f"first = (tl.program_id(2) % {shape.chunks}) * {shape.chunk}")
        else:
            write("h = tl.program_id(2).to(tl.int64)")
        write(f"lane = column * {shape.lanes} + tl.arange(0, {shape.lanes})")
        write(f"table = {self.table.name} + h * {shape.looped * shape.entries * shape.padded}")

    def _rows(self):  # type: ignore[no-untyped-def]
        """A loop over the looped axis."""
        shape = self.shape
        steps = -(-shape.size // shape.rows) * shape.rows
        self.writer.line("at_row = table")
        return self.writer.block(f"for i in range(0, {steps}, {shape.rows}):")

    def _within(self, row: int) -> str:
        """That a row of the loop is one, where the last step has others."""
        if self.shape.size % self.shape.rows == 0:
            return ""
        return f" & (i + {row} < {self.shape.size})"

    def _tile(self, name: str, value: str) -> None:
        size = f"({self.shape.tokens}, {self.shape.lanes})"
        self.writer.line(f"{name} = tl.full({size}, {value}, {self.dtype})")

    def _token_at(self, argument: Argument) -> str:
        """Where a tensor's token is, without its own axes; complex numbers count as one."""
        name = argument.name
        return f"(b * {name}_sB + t * {name}_sL + h * {name}_sH)"

    def _stats_at(self, tokens: str) -> str:
        padded = self.shape.padded
        if tokens == "n":
            return f"((n * H + h) * {padded})[:, None] + lane[None, :]"
        return f"((b * L + t) * H + h) * {padded} + lane"

    def _inverse_temperature(self, soft: Value) -> None:
        argument = self.arguments[soft.args[3].name]
        at = f"tl.load({argument.name} + h * {argument.name}_sH)"
        self.writer.line(f"sharp = {_LOG2E} / {at}")


_LOG2E = "1.4426950408889634"
_ALL_NAN = "propagate_nan=tl.PropagateNan.ALL"
_Walk = Callable[[TritonMatrices], None]


class _Place:
    """What stands for the values of a program where a function is."""

    def __init__(self, text: TritonMatrices) -> None:
        self.text = text
        self.shape = text.shape
        self.write = text.writer.line
        self.made: dict[tuple[Value, int], str] = {}

    def matrix(self, value: Value, row: int) -> str:
        """The name of a tile with the entries of a matrix; written where it is first asked for."""
        key = (value, row)
        if key not in self.made:
            self.made[key] = RULES[value.op](self, value, row)
        return self.made[key]

    def outer(self, value: Value, row: int, start: str) -> str:
        """A product of two vectors, one along the loop and one along the lanes."""
        along_loop, along_lanes = self._sides(value)
        for part in range(2 if is_complex(along_loop.type) else 1):
            pair = (
                f"{self.along_loop(along_loop, part, row)}, {self.along_lanes(along_lanes, part)}"
            )
            start = f"fused({pair}, {start})"
        return start

    def _sides(self, value: Value) -> tuple[Value, Value]:
        left, right = value.args
        return (left, right) if self.shape.orientation == "column" else (right, left)

    def reached(self, value: Value, row: int, start: str) -> str:
        """What arrives at a softmax, added to something."""
        if value.op == "outer":
            return self.outer(value, row, start)
        return f"({self.matrix(value, row)} + {start})"

    def straight_through(self, value: Value, row: int) -> str:
        """``e (G - mean)``; what :meth:`later` says is multiplied later."""
        matrix, _, reached, _ = value.args
        top, mean, _ = (self.stat(value, part) for part in range(3))
        entry = self.matrix(matrix, row)
        sharp = "sharp"
        self.write(f"e = tl.exp2(fused({sharp}, {entry}, {self.negative(top)}))")
        self.write(f"x = e * {self.reached(reached, row, self.negative(mean))}")
        return "x"

    def later(self, value: Value) -> str:
        """A factor of a softmax's that is the same for a column."""
        return f" * {self.stat(value, 2)}" if value.op == "straight_through" else ""

    def noisy(self, value: Value, tile: str, looped: str) -> str:
        """A tile with its noise.

        Args:
            value: the op.
            tile: its numbers.
            looped: where they are on the looped axis.
        """
        _, scale, seed, draw = (arg.name if arg.is_leaf else "" for arg in value.args)
        at = f"({looped} // 4) * {self.shape.size} + lane[None, :]"
        return f"gumbel({tile}, {scale}_all, {seed}_all, {self.draw(draw)}, {at}, ({looped}) % 4)"

    def gumbel(self, value: Value, row: int) -> str:
        """A matrix and its noise."""
        name = self.matrix(value.args[0], row)
        self.write(f"{name} = {self.noisy(value, name, self.looped(row))}")
        return name

    def draw(self, name: str) -> str:
        """The numbers of the tokens' draws."""
        raise NotImplementedError

    def looped(self, row: int) -> str:
        """Where entries are on the looped axis."""
        raise NotImplementedError

    def prepare_noise(self, values: Sequence[Value]) -> None:
        """What all tokens of a head have."""
        for value in topological(values):
            if value.op == "gumbel":
                for leaf in value.args[1:3]:
                    at = f"{leaf.name} + h * {leaf.name}_sH"
                    self.write(f"{leaf.name}_all = tl.load({at})")

    def draws(self, values: Sequence[Value]) -> list[str]:
        """The inputs that number draws."""
        return [v.args[3].name for v in topological(values) if v.op == "gumbel"]

    def coefficient(self, value: Value, k: int) -> str:
        raise NotImplementedError

    def loaded_coefficient(self, value: Value) -> str:
        raise NotImplementedError

    def entry(self, row: int, k: int) -> str:
        raise NotImplementedError

    def along_loop(self, value: Value, part: int, row: int) -> str:
        raise NotImplementedError

    def along_lanes(self, value: Value, part: int) -> str:
        raise NotImplementedError

    def stat(self, value: Value, part: int) -> str:
        raise NotImplementedError

    def negative(self, name: str) -> str:
        """A tile of the negative."""
        raise NotImplementedError

    def mix(self, value: Value, row: int) -> str:
        raise NotImplementedError

    def vectors(self, values: Sequence[Value]) -> tuple[list[Value], list[Value]]:
        """Vectors along the loop and along the lanes that values need."""
        sides = [self._sides(v) for v in topological(values) if v.op == "outer"]
        return [s[0] for s in sides], [s[1] for s in sides]

    def softs(self, values: Sequence[Value]) -> list[Value]:
        return [v for v in topological(values) if v.op == "straight_through"]

    def coefficients(self, values: Sequence[Value]) -> list[Value]:
        return [v for v in topological(values) if isinstance(v.type, Coefficients)]


class _Tokens(_Place):
    """A tile of tokens and lanes, going through rows."""

    def prepare(self, values: Sequence[Value]) -> None:
        """What stays the same in all rows."""
        text, shape = self.text, self.shape
        self.prepare_noise(values)
        for name in self.draws(values):
            at = f"{name} + {text._token_at(text.arguments[name])}"
            self.write(f"{name}_draw = tl.load({at}, mask=inside, other=0)")
        for value in self.coefficients(values):
            argument = text.arguments[value.name]
            self.write(f"{value.name}_at = {value.name} + {text._token_at(argument)}")
            if text.in_registers:
                for k in range(shape.entries):
                    load = f"tl.load({value.name}_at + {k}, mask=inside, other=0.0)"
                    self.write(f"{value.name}_{k} = {load}")
        along_loop, along_lanes = self.vectors(values)
        for value in along_loop:
            step = 2 if is_complex(value.type) else 1
            at = text._token_at(text.arguments[value.name])
            self.write(f"{value.name}_at = {value.name} + {at} * {step}")
        for value in along_lanes:
            step = 2 if is_complex(value.type) else 1
            at = text._token_at(text.arguments[value.name])
            where = f"({at}[:, None] + lane[None, :]) * {step}"
            mask = f"inside[:, None] & (lane < {shape.size})[None, :]"
            for part in range(step):
                load = f"tl.load({value.name} + {where} + {part}, mask={mask}, other=0.0)"
                self.write(f"{value.name}_lanes_{part} = {load}")
        for value in self.softs(values):
            text._inverse_temperature(value)
            self.write(f"at = {text._stats_at('n')}")
            for argument in text.stats_of(value):
                load = f"tl.load({argument.name} + at, mask=inside[:, None], other=0.0)"
                self.write(f"{argument.name}_tile = {load}")

    def rows(self, values: Sequence[Value], entries: bool = False) -> None:
        """What is loaded of the rows of a step, and their mixtures."""
        text, shape = self.text, self.shape
        self.made = {}
        step = shape.entries * shape.padded
        mixes = [v for v in topological(values) if v.op == "mix"]
        if text.in_registers:
            for row in range(shape.rows):
                for k in range(shape.entries):
                    load = f"tl.load(at_row + {row * step + k * shape.padded} + lane)"
                    self.write(f"d_{row}_{k} = {load}")
        else:
            for number, mix in enumerate(mixes):
                for row in range(shape.rows):
                    text._tile(f"m_{number}_{row}", "0.0")
                with text.writer.block(f"for k in range(0, {shape.entries}):"):
                    self.write(f"w = {self.loaded_coefficient(mix.args[1])}")
                    for row in range(shape.rows):
                        load = f"tl.load(at_row + {row * step} + k * {shape.padded} + lane)"
                        name = f"m_{number}_{row}"
                        self.write(f"{name} = fused(w, {load}[None, :], {name})")
                for row in range(shape.rows):
                    self.made[mix, row] = f"m_{number}_{row}"
            if entries:
                for row in range(shape.rows):
                    for k in range(shape.chunk):
                        at = f"at_row + {row * step} + (first + {k}) * {shape.padded} + lane"
                        known = f", mask=(first + {k} < {shape.entries}) & (lane >= 0), other=0.0"
                        known = known if shape.entries % shape.chunk else ""
                        self.write(f"d_{row}_{k} = tl.load({at}{known})")
        for value in self.vectors(values)[0]:
            parts = 2 if is_complex(value.type) else 1
            for row in range(shape.rows):
                for part in range(parts):
                    at = f"{value.name}_at + (i + {row}) * {parts} + {part}"
                    mask = f"inside{text._within(row)}"
                    load = f"tl.load({at}, mask={mask}, other=0.0)"
                    self.write(f"{value.name}_loop_{part}_{row} = {load}")
        self.write(f"at_row += {shape.rows * step}")

    def chunk_entry(self, row: int, k: int) -> str:
        """The entry of a matrix of the chunk."""
        return f"d_{row}_{k}[None, :]"

    def coefficient(self, value: Value, k: int) -> str:
        return f"{value.name}_{k}[:, None]"

    def loaded_coefficient(self, value: Value) -> str:
        return f"tl.load({value.name}_at + k, mask=inside, other=0.0)[:, None]"

    def mix(self, value: Value, row: int) -> str:
        name = f"m_{row}"
        self.write(f"{name} = {self.coefficient(value.args[1], 0)} * d_{row}_0[None, :]")
        for k in range(1, self.shape.entries):
            pair = f"{self.coefficient(value.args[1], k)}, d_{row}_{k}[None, :]"
            self.write(f"{name} = fused({pair}, {name})")
        return name

    def draw(self, name: str) -> str:
        return f"{name}_draw[:, None]"

    def looped(self, row: int) -> str:
        return f"(i + {row})"

    def along_loop(self, value: Value, part: int, row: int) -> str:
        return f"{value.name}_loop_{part}_{row}[:, None]"

    def along_lanes(self, value: Value, part: int) -> str:
        return f"{value.name}_lanes_{part}"

    def stat(self, value: Value, part: int) -> str:
        return f"{self.text.stats_of(value)[part].name}_tile"

    def negative(self, name: str) -> str:
        return f"-{name}"


class _Entries(_Place):
    """A tile of every matrix, going through tokens."""

    slot = "_0"

    def prepare(self, values: Sequence[Value]) -> None:
        """What stays the same for all tokens."""
        text, shape = self.text, self.shape
        self.prepare_noise(values)
        if text.in_registers:
            for k in range(shape.entries):
                self.write(f"d_{k} = tl.load(table + here + {k * shape.padded})")
        for value in self.softs(values):
            text._inverse_temperature(value)

    def load(self, values: Sequence[Value], number: int) -> None:
        """What is loaded of a token, the ``number``-th of those together; zeros behind the last,
        which add nothing.
        """
        text, shape = self.text, self.shape
        slot, known = f"_{number}", "True"
        self.write(f"t = step + {number}" if number else "t = step")
        if shape.together > 1:
            known = f"known{slot}"
            self.write(f"{known} = t < end")
        for value in self.coefficients(values):
            argument = text.arguments[value.name]
            self.write(f"{value.name}_at{slot} = {value.name} + {text._token_at(argument)}")
            if text.in_registers:
                for k in range(shape.entries):
                    load = self._masked(f"{value.name}_at{slot} + {k}", known)
                    self.write(f"{value.name}_{k}{slot} = {load}")
        for name in self.draws(values):
            at = f"{name} + {text._token_at(text.arguments[name])}"
            self.write(f"{name}_draw{slot} = {self._masked(at, known, '0')}")
        along_loop, along_lanes = self.vectors(values)
        for kind, index, vectors in (("loop", "i", along_loop), ("lanes", "lane", along_lanes)):
            for value in vectors:
                step = 2 if is_complex(value.type) else 1
                at = f"({text._token_at(text.arguments[value.name])} + {index}) * {step}"
                for part in range(step):
                    mask = f"({index} < {shape.size})"
                    mask = mask if known == "True" else f"{mask} & {known}"
                    load = self._masked(f"{value.name} + {at} + {part}", mask)
                    self.write(f"{value.name}_{kind}_{part}{slot} = {load}")
        for value in self.softs(values):
            self.write(f"at = {text._stats_at('t')}")
            for argument in text.stats_of(value):
                mask = known if known == "True" else f"(lane >= 0) & {known}"
                load = self._masked(f"{argument.name} + at", mask)
                self.write(f"{argument.name}_lanes{slot} = {load}")

    @staticmethod
    def _masked(at: str, mask: str, other: str = "0.0") -> str:
        return f"tl.load({at})" if mask == "True" else f"tl.load({at}, mask={mask}, other={other})"

    def turn_to(self, number: int) -> None:
        """What follows is of this one of the tokens that were loaded."""
        self.slot = f"_{number}"
        self.made = {}

    def coefficient(self, value: Value, k: int) -> str:
        return f"{value.name}_{k}{self.slot}"

    def loaded_coefficient(self, value: Value) -> str:
        return self._loaded(value, "k", "")

    def weight(self, value: Value, k: int) -> str:
        """The coefficient of the chunk that a sum is weighed by."""
        if self.text.in_registers:
            return self.coefficient(value, k)
        known = f"(first + {k} < {self.shape.entries})"
        return self._loaded(
            value, f"first + {k}", known if self.shape.entries % self.shape.chunk else ""
        )

    def _loaded(self, value: Value, k: str, mask: str) -> str:
        masks = [mask] if mask else []
        if self.shape.together > 1:
            masks.append(f"known{self.slot}")
        return self._masked(f"{value.name}_at{self.slot} + {k}", " & ".join(masks) or "True")

    def mix(self, value: Value, row: int) -> str:
        shape = self.shape
        self.write(f"m = tl.zeros(({shape.tile}, {shape.lanes}), {self.text.dtype})")
        if self.text.in_registers:
            for k in range(shape.entries):
                self.write(f"m = fused({self.coefficient(value.args[1], k)}, d_{k}, m)")
        else:
            with self.text.writer.block(f"for k in range(0, {shape.entries}):"):
                self.write(f"d = tl.load(table + here + k * {shape.padded})")
                self.write(f"m = fused({self.loaded_coefficient(value.args[1])}, d, m)")
        return "m"

    def draw(self, name: str) -> str:
        return f"{name}_draw{self.slot}"

    def looped(self, row: int) -> str:
        return "i[:, None]"

    def along_loop(self, value: Value, part: int, row: int) -> str:
        return f"{value.name}_loop_{part}{self.slot}[:, None]"

    def along_lanes(self, value: Value, part: int) -> str:
        return f"{value.name}_lanes_{part}{self.slot}[None, :]"

    def stat(self, value: Value, part: int) -> str:
        return f"{self.text.stats_of(value)[part].name}_lanes{self.slot}[None, :]"

    def negative(self, name: str) -> str:
        return f"tl.broadcast_to(-{name}, ({self.shape.tile}, {self.shape.lanes}))"


def _outer(place: _Place, value: Value, row: int) -> str:
    shape = place.shape
    size = shape.tokens if isinstance(place, _Tokens) else shape.tile
    return place.outer(value, row, f"tl.zeros(({size}, {shape.lanes}), {place.text.dtype})")


# How the entries of a matrix come about.
RULES: dict[str, Callable[[_Place, Value, int], str]] = {
    "mix": lambda place, value, row: place.mix(value, row),
    "outer": _outer,
    "gumbel": lambda place, value, row: place.gumbel(value, row),
    "straight_through": lambda place, value, row: place.straight_through(value, row),
}
SUPPORTED_OPS = frozenset(RULES) | {"argmax", "inner", "weigh"}
