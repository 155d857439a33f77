"""Triton functions over matrices: what a program computes of ``N × N`` numbers a token, added up
where it is used.

A function goes through matrices, laid out as in :mod:`pdssm_compiler.schedules.emit.matrices`, in
one of three ways, and every op has its rule in terms of what stands for a coefficient, an entry or
a vector there:

- *tokens*: a program has a tile ``[tokens, lanes]`` in registers and goes through the looped axis:
  choices, what a softmax needs to know of its column, inner products.
- *entries*: a program has a tile ``[looped, lanes]`` of every matrix and goes through tokens: sums
  over tokens of weighed matrices.
- *few tokens*: a program has such a tile for each of a few tokens and goes through matrices:
  choices, where there are too few tokens for tiles of them.
"""

from collections.abc import Callable, Sequence

from pdssm_compiler.ir.value import Value, topological
from pdssm_compiler.schedules.emit.triton_matrix_few import FewTokens
from pdssm_compiler.schedules.emit.triton_matrix_places import Entries, Tokens
from pdssm_compiler.schedules.emit.triton_matrix_text import LOG2E, MatrixText
from pdssm_compiler.schedules.signature import Argument
from pdssm_compiler.schedules.source import Phase

# Lanes that a thread has side by side without being told: 128 bits of float32.
_WIDEST = 4
_ALL_NAN = "propagate_nan=tl.PropagateNan.ALL"

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


class TritonMatrices(MatrixText):
    """The text of a program's functions.

    Args:
        program: what they compute.
        writer: where they are written.
        shape: how.
    """

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
                choose = self._choose_of_few if self.shape.matrices else self._choose
                phases.append(choose(out.name, out.value))
        for number, soft in enumerate(self.softs):
            phases += [self._top(number, soft), self._soft(number, soft)]
        for out in self.program.token_outputs:
            if out.value.op == "inner":
                phases.append(self._inner(out.name, out.value))
        phases += [self._weigh(out.name, out.value) for out in self.program.sum_outputs]
        return phases

    def _function(
        self,
        entry: str,
        roots: Sequence[Value],
        others: Sequence[Argument],
        body: "_Walk",
        rows: int = 0,
        vector: int = 0,
    ) -> Phase:
        """One function, of the tensors that some values need, and with rows and lanes of its own,
        where they are not 0.
        """
        read = {v.name for v in self.needed(roots) if v.op == "input"}
        tensors = [a for a in self.signature.inputs if a.name in read and a != self.matrices]
        arguments = (*tensors, self.table, *others)
        names = []
        for argument in arguments:
            names += [argument.name, *(f"{argument.name}_s{axis}" for axis in argument.leading)]
        names += ["error", "rows", "L", "H", "span"]
        self.writer.line()
        self.writer.line()
        self.writer.line("@triton.jit")
        self.rows, self.vector = rows or self.shape.rows, vector or self.shape.vector
        with self.writer.block(f"def {entry}({', '.join(names)}):"):
            body(self)
        return Phase(entry, arguments, "matrices")

    def _choose(self, name: str, value: Value) -> Phase:
        shape, (matrix,) = self.shape, value.args
        out = self.arguments[name]

        def body(_: TritonMatrices) -> None:
            write = self.writer.line
            self._token_tile()
            place = Tokens(self)
            place.prepare([matrix])
            self.tile("best", 'float("-inf")')
            write(f"index = tl.zeros(({shape.tokens}, {shape.lanes}), tl.int32)")

            def turn() -> None:
                for row in range(self.rows):
                    entry, at = place.matrix(matrix, row), f"{self.turn} + {row}"
                    within = self.within(row)
                    write(f"index = tl.where(({entry} > best){within}, {at}, index)")
                    if within:
                        write(f"{entry} = tl.where({at} < {shape.size}, {entry}, best)")
                    # A NaN stays.
                    write(f"best = tl.maximum(best, {entry}, {_ALL_NAN})")

            self._over_rows(place, [matrix], turn)
            write("index = tl.where(best == best, index, -1)")
            at = f"{self.token_at(out)}[:, None] + lane[None, :]"
            mask = f"inside[:, None] & (lane < {shape.size})[None, :]"
            write(f"tl.store({name} + {at}, index, mask={mask})")

        return self._function(f"choose_{name}", [matrix], [out], body)

    def _choose_of_few(self, name: str, value: Value) -> Phase:
        shape, (matrix,) = self.shape, value.args
        out = self.arguments[name]

        def body(_: TritonMatrices) -> None:
            write = self.writer.line
            write("column = tl.program_id(1)")
            write("h = tl.program_id(2).to(tl.int64)")
            self._lanes()
            place = FewTokens(self, matrix)
            place.begin(out)
            with self.writer.block(f"for first in range(0, {shape.looped}, {shape.tile}):"):
                write(f"i = first + tl.arange(0, {shape.tile})")
                place.choose()
            place.end()

        vector = shape.tile_vector
        return self._function(f"choose_{name}", [matrix], [out], body, vector=vector)

    def _top(self, number: int, soft: Value) -> Phase:
        """The largest entry of each column, by where it is, times the inverse temperature.

        A function of its own: what it gathers would tell the compiler to give threads another
        shape of tile, for which every entry of a head's matrices is loaded several times.
        """
        matrix, largest, reached, _ = soft.args
        shape, stats = self.shape, self.stats_of(soft)
        argument = self.arguments[largest.name]
        (mixed,) = (value for value in topological([matrix]) if value.op == "mix")
        _, coefficients = mixed.args

        def body(_: TritonMatrices) -> None:
            write = self.writer.line
            self._token_tile()
            place = Tokens(self)
            place.prepare([matrix])
            self.inverse_temperature(soft)
            write(f"found = {self.token_at(argument)}[:, None] + lane[None, :]")
            mask = f"inside[:, None] & (lane < {shape.size})[None, :]"
            write(f"found = tl.load({argument.name} + found, mask={mask}, other=0)")
            write(f"found = tl.minimum(tl.maximum(found, 0), {shape.size - 1}).to(tl.int64)")
            write(f"here = found * {shape.row_step} + beside[None, :]")
            self.tile("top", "0.0")
            if self.in_registers:
                for k in range(shape.entries):
                    write(f"d = tl.load(table + here + {k * shape.entry_step})")
                    write(f"top = fused({place.coefficient(coefficients, k)}, d, top)")
            else:
                with self.writer.block(f"for k in range(0, {shape.entries}):"):
                    write(f"d = tl.load(table + here + k * {shape.entry_step})")
                    write(f"top = fused({place.loaded_coefficient(coefficients)}, d, top)")
            if matrix.op == "gumbel":
                write(f"top = {place.noisy(matrix, 'top', 'found')}")
            place.keep(soft, 0, "top * -sharp")
            for part in range(self.parts_across(soft)):
                place.keep(soft, 2 + part, place.loaded_lanes(self.sides(reached)[1], part))

        needed = [matrix, *soft.args[1::2]]
        if self.parts_across(soft):
            needed.append(self.sides(reached)[1])
        return self._function(f"top_{number}", needed, [stats], body, vector=_WIDEST)

    def _soft(self, number: int, soft: Value) -> Phase:
        """What a softmax needs to know of its columns, and the mean of what arrives at it."""
        matrix, shape, stats = soft.args[0], self.shape, self.stats_of(soft)
        across = range(2, 2 + self.parts_across(soft))

        def body(_: TritonMatrices) -> None:
            write = self.writer.line
            self._token_tile()
            place = Tokens(self)
            place.prepare([soft], (0, *across))
            for name in ("total", "mean"):
                self.tile(name, "0.0")

            def turn() -> None:
                for row in range(self.rows):
                    entry = place.matrix(matrix, row)
                    write(f"e = tl.exp2(fused(sharp, {entry}, {place.stat(soft, 0)}))")
                    if self.within(row):
                        write(f"e = tl.where({self.turn} + {row} < {shape.size}, e, 0.0)")
                    write("total += e")
                    start = f"tl.zeros(({shape.tokens}, {shape.lanes}), {self.dtype})"
                    write(f"mean = fused(e, {place.reached(soft, row, start)}, mean)")

            self._over_rows(place, [soft], turn)
            write(f"scale = (sharp / {LOG2E}) / total")
            place.keep(soft, 1, f"-mean / total{' * scale' if across else ''}")
            for part in across:
                place.keep(soft, part, f"{place.stat(soft, part)} * scale")
            if not across:
                place.keep(soft, 2, "scale")

        return self._function(f"soft_{number}", [soft], [stats], body, rows=shape.soft_rows)

    def _inner(self, name: str, value: Value) -> Phase:
        """Inner products with each of a head's matrices, of a tile's lanes alone."""
        _, matrix = value.args
        shape, partial = self.shape, self.partial_of(name)
        stats = [self.stats_of(soft) for soft in self._softs_in(matrix)]

        def body(_: TritonMatrices) -> None:
            write = self.writer.line
            self._token_tile(chunked=True)
            place = Tokens(self)
            place.prepare([matrix])
            for k in range(shape.chunk):
                self.tile(f"sum_{k}", "0.0")

            def turn() -> None:
                for row in range(self.rows):
                    write(f"x = {place.matrix(matrix, row)}")
                    for k in range(shape.chunk):
                        write(f"sum_{k} = fused(x, {place.chunk_entry(row, k)}, sum_{k})")

            self._over_rows(place, [matrix], turn, entries=True)
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
        stats = [self.stats_of(soft) for soft in self._softs_in(matrix)]

        def body(_: TritonMatrices) -> None:
            write, n = self.writer.line, shape
            write("part = tl.program_id(1).to(tl.int64)")
            write(f"row = tl.program_id(2).to(tl.int64) // {n.chunks}")
            write(f"first = (tl.program_id(2) % {n.chunks}) * {n.chunk}")
            write("b = row // H")
            write("h = row % H")
            write(f"column = tl.program_id(0) % {n.columns}")
            write(f"i = (tl.program_id(0) // {n.columns}) * {n.tile} + tl.arange(0, {n.tile})")
            self._lanes()
            write(f"here = i.to(tl.int64)[:, None] * {n.row_step} + beside[None, :]")
            place = Entries(self)
            place.prepare([matrix, coefficients])
            for k in range(n.chunk):
                write(f"sum_{k} = tl.zeros(({n.tile}, {n.lanes}), {self.dtype})")
            write("begin = part * span")
            write("end = tl.minimum(begin + span, L)")
            write(f"whole = begin + (end - begin) // {n.together} * {n.together}")
            values = [matrix, coefficients]

            def turn(together: int) -> None:
                for number in range(together):
                    place.turn_to(number)
                    write(f"x = {place.matrix(matrix, 0)}{place.later(matrix)}")
                    for k in range(n.chunk):
                        weight = place.weight(coefficients, k)
                        write(f"sum_{k} = fused(x, {weight}, sum_{k})")

            # What is loaded of some tokens is waited for once.
            if self.ahead:
                with self.writer.block("if begin < whole:"):
                    place.load(values, n.together, "begin")
                    last = f"whole - {n.together}"
                    with self.writer.block(
                        f"for step in tl.range(begin, {last}, {n.together}, loop_unroll_factor=2):"
                    ):
                        with place.loading_ahead():
                            place.load(values, n.together, f"step + {n.together}")
                        turn(n.together)
                        place.advance()
                    turn(n.together)
            else:
                with self.writer.block(f"for step in range(begin, whole, {n.together}):"):
                    place.load(values, n.together, "step")
                    turn(n.together)
            if n.together > 1:
                with self.writer.block("for step in range(whole, end):"):
                    place.load(values, 1, "step")
                    turn(1)
            write(f"at = (part * rows + row) * {n.numbers} + first_lane + here")
            for k in range(n.chunk):
                mask = f", mask=(first + {k} < {n.entries}) & (i >= 0)[:, None]"
                mask = mask if n.entries % n.chunk else ""
                target = f"{partial.name} + at + (first + {k}) * {n.entry_step}"
                write(f"tl.store({target}, sum_{k}{mask})")

        reads = [matrix, coefficients]
        vector = shape.tile_vector
        return self._function(f"weigh_{name}", reads, [*stats, partial], body, vector=vector)

    # Parts of them.

    def _softs_in(self, matrix: Value) -> list[Value]:
        """The softmaxes whose columns must be known."""
        return [soft for soft in self.softs if soft in self.needed([matrix])]

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
        self._lanes()

    def _lanes(self) -> None:
        """A program's lanes, and where they begin in the matrices of its head."""
        write, shape = self.writer.line, self.shape
        write(f"beside = tl.arange(0, {shape.lanes})")
        if self.vector < _WIDEST:
            # What lies side by side is given to one thread, as much as it is told of.
            write(f"beside = tl.multiple_of(beside, {self.vector})")
        write(f"lane = column * {shape.lanes} + beside")
        if self.vector < _WIDEST:
            write(f"lane = tl.multiple_of(lane, {self.vector})")
        write(f"first_lane = column.to(tl.int64) * {shape.column_step}")
        write(f"table = {self.table.name} + h * {shape.numbers} + first_lane")

    def _over_rows(
        self,
        place: Tokens,
        values: Sequence[Value],
        turn: Callable[[], None],
        entries: bool = False,
    ) -> None:
        """A loop over the looped axis.

        Args:
            place: where it is.
            values: what is loaded of some rows together.
            turn: writes what is done with them.
            entries: see :meth:`Tokens.rows`.
        """
        shape, write = self.shape, self.writer.line
        last = (-(-shape.size // self.rows) - 1) * self.rows
        write("at_row = table")
        if not self.ahead:
            with self.writer.block(f"for i in range(0, {last + self.rows}, {self.rows}):"):
                place.made = {}
                place.rows(values, entries)
                turn()
            return
        self.turn = "0"
        place.rows(values, entries)
        with self.writer.block(
            f"for i in tl.range(0, {last}, {self.rows}, loop_unroll_factor=2):"
        ):
            self.turn = f"(i + {self.rows})"
            with place.loading_ahead():
                place.rows(values, entries)
            self.turn, place.made = "i", {}
            turn()
            place.advance()
        self.turn, place.made = str(last), {}
        turn()
        self.turn = "i"


_Walk = Callable[[TritonMatrices], None]
