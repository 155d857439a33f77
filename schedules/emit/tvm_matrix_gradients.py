"""TVM text for CPUs over matrices: the gradients of what a choice by a mixture was made of.

A thread takes a vector of the axis that is not chosen along through all tokens of a row. A token
goes through the other axis three times: to add up its mixture and find each lane's largest entry,
to know what a softmax must of its lanes, and to add what reaches each entry to the inner products
and to the weighed sums. So a head's matrices are read from a cache twice a token, and no more than
a vector's part of one token's mixture is in memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from pdssm_compiler.ir.ops.noise import TOGETHER
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import is_complex
from pdssm_compiler.schedules.emit.matrices import WRITTEN_OUT, Shape
from pdssm_compiler.schedules.emit.tvm_buffers import write_local, write_strided
from pdssm_compiler.schedules.emit.tvm_functions import Functions
from pdssm_compiler.schedules.emit.tvm_matrices import write_sum
from pdssm_compiler.schedules.emit.tvm_noise import NoiseInputs, TvmNoise, drawn_by
from pdssm_compiler.schedules.source import Writer

SUPPORTED_OPS = frozenset({"mix", "outer", "straight_through", "inner", "weigh"})


class Parts(NamedTuple):
    """The inputs and outputs of such a program.

    Attributes:
        weights: coefficients of a token.
        looped: of the two vectors of a token, the one along the axis that is chosen along.
        across: the other one.
        table: the head's matrices.
        temperature: of the softmax.
        inner: the token output, inner products with each matrix.
        weighed: the sum, of matrices.
        noise: what the mixture's noise is drawn by; None if it has none.
    """

    weights: str
    looped: str
    across: str
    table: str
    temperature: str
    inner: str
    weighed: str
    noise: NoiseInputs | None

    @property
    def names(self) -> tuple[str, ...]:
        """Of all of them, as a kernel's arguments are."""
        return (*self[:-1], *(self.noise or ()))


def parts_of(program: Program) -> Parts | None:
    """What the program reads and writes; None if it is another one."""
    ops = sorted(value.op for value in program.body if not value.is_leaf)
    is_noisy = "gumbel" in ops
    own = SUPPORTED_OPS | {"gumbel"} if is_noisy else SUPPORTED_OPS
    if ops != sorted(own) or program.carries or program.checks or program.final_outputs:
        return None
    found = {value.op: value for value in program.body if not value.is_leaf}
    soft, mixed, reached = found["straight_through"], found["mix"], found["outer"]
    inner, weigh = found["inner"], found["weigh"]
    roots = [out.value for out in program.token_outputs]
    roots += [total.value for total in program.sum_outputs]
    noisy, noise = mixed, None
    if is_noisy:
        noisy = found["gumbel"]
        noise = drawn_by(noisy, soft.attribute("orientation"))
        if noise is None or noisy.args[0] is not mixed:
            return None
    made_of = (soft.args[0], soft.args[2], inner.args[1], weigh.args[0], inner.args[0])
    if made_of != (noisy, reached, soft, soft, mixed.args[0]) or roots != [inner, weigh]:
        return None
    (coefficients,), (total,) = program.token_outputs, program.sum_outputs
    if weigh.args[1] is not mixed.args[1] or total.index is not None:
        return None
    looped, across = reached.args
    if soft.attribute("orientation") == "row":
        looped, across = across, looped
    sources = (mixed.args[1], looped, across, mixed.args[0], soft.args[3])
    if not all(value.op == "input" for value in sources):
        return None
    weights, one, other, table, temperature = (value.name for value in sources)
    return Parts(weights, one, other, table, temperature, coefficients.name, total.name, noise)


def write_gradients(program: Program, parts: Parts, writer: Writer, shape: Shape) -> None:
    """The module of a program that has such parts."""
    writer.line("@I.ir_module")
    with writer.block("class Kernel:"):
        for entry, loop in (("scan", "T.parallel"), ("scan_serial", "T.serial")):
            _Function(program, parts, writer, shape).write(entry, loop)


class _Function:
    def __init__(self, program: Program, parts: Parts, writer: Writer, shape: Shape) -> None:
        self.writer, self.parts, self.shape = writer, parts, shape
        self.reals = {
            name: 2 if is_complex(program.input(name).type) else 1
            for name in (parts.looped, parts.across)
        }
        self.bits = 32 if program.input(parts.table).type.element == "f32" else 64  # type: ignore[union-attr]
        self.functions = Functions(writer, self.bits)
        self.dtype, drawn = self.functions.dtype, parts.noise
        self.noise = drawn and TvmNoise(drawn, self.functions, shape)

    def write(self, entry: str, loop: str) -> None:
        line = self.writer.line
        line("@T.prim_func")
        handles = [f"{name}_: T.handle" for name in self.parts.names]
        with self.writer.block(f"def {entry}({', '.join([*handles, 'tasks: T.int32'])}):"):
            line(f'T.func_attr({{"global_symbol": "{entry}", "tirx.noalias": True}})')
            for size in "BLH":
                line(f"{size} = T.int64()")
            self._buffers()
            with self.writer.block(f"for task in {loop}(tasks):"):
                self._task()
        line()

    def _buffers(self) -> None:
        line, shape, parts = self.writer.line, self.shape, self.parts
        each = f'"{self.dtype}", align={self.bits // 8}'
        of_tokens = (
            (parts.weights, shape.entries),
            *((v, n * shape.size) for v, n in self.reals.items()),
        )
        for name, own in of_tokens:
            write_strided(self.writer, name, "BLH", (own,), self.dtype)
        write_strided(self.writer, parts.temperature, "H", (), self.dtype)
        matrices = f"T.int64({shape.looped}), T.int64({shape.entries}), T.int64({shape.padded})"
        for name, axes in (
            (parts.table, f"H, {matrices}"),
            (parts.inner, f"T.int64({shape.columns}), B, L, H, T.int64({shape.entries})"),
            (parts.weighed, f"B, H, {matrices}"),
        ):
            line(f"{name} = T.match_buffer({name}_, ({axes}), {each})")
        if self.noise:
            self.noise.buffers()

    def _task(self) -> None:
        line, shape = self.writer.line, self.shape
        n, vector, columns = shape.size, shape.lanes, shape.columns
        self._local("w", shape.entries)
        self._local("mixed", n * vector)
        names = [*self._names("across"), "best", "total", "mean", "scale", "x"]
        if self._written_out:
            names += [f"sum_{k}" for k in range(shape.entries)]
        else:
            self._local("sums", shape.entries * vector)
        for name in names:
            self._local(name, vector)
        if self.noise:
            self.noise.locals()
            self._local("noise", TOGETHER * vector)
        for name in ("sharp", "added", *self._names("looped")):
            self._local(name, 1)
        for name in ("share", "first"):
            self._local(name, 1, "int64")
        line(f"share[0] = (B * H * {columns} + tasks - 1) // tasks")
        line("first[0] = share[0] * task")
        count = f"T.max(T.min(share[0], B * H * {columns} - first[0]), T.int64(0))"
        with self.writer.block(f"for number in T.serial({count}):"):
            line(f"tile: T.let = (first[0] + number) % {columns}")
            line(f"h: T.let = (first[0] + number) // {columns} % H")
            line(f"b: T.let = (first[0] + number) // {columns} // H")
            line(f"sharp[0] = T.{self.dtype}(1) / {self.parts.temperature}[h]")
            with (
                self.writer.block(f"for i in T.serial({shape.looped}):"),
                self.writer.block(f"for k in T.serial({shape.entries}):"),
                self.writer.block(f"for j in T.serial({vector}):"),
            ):
                line(f"{self._weighed('k')} = {self.functions.number(0)}")
            with self.writer.block("for t in T.serial(L):"):
                self._token()

    def _token(self) -> None:
        line, parts, n = self.writer.line, self.parts, self.shape.size
        vector, entries = self.shape.lanes, self.shape.entries
        with self.writer.block(f"for k in T.serial({entries}):"):
            line(f"w[k] = {parts.weights}[b, t, h, k]")
        with self._lanes():
            # Lanes behind the last element count for nothing.
            line(f"lane: T.let = tile * {vector} + j")
            for part, name in enumerate(self._names("across")):
                step = self.reals[parts.across]
                at = f"T.min(lane, T.int64({n - 1})) * {step} + {part}"
                found = f"{parts.across}[b, t, h, {at}]"
                line(f"{name}[j] = T.Select(lane < {n}, {found}, {self.functions.number(0)})")
            line(f'best[j] = T.{self.dtype}("-inf")')
            for name in ("total", "mean"):
                line(f"{name}[j] = {self.functions.number(0)}")
        with self._matrices() as ks:
            for k in ks:
                with self._lanes():
                    line(f"{self._sum(k)} = {self.functions.number(0)}")
        with self.writer.block(f"for i in T.serial({n}):"):
            if self.noise:
                self.noise.draw("noise", "i", "b, t, h")
            here = f"mixed[i * {vector} + j]"
            sum_ = write_sum(self.writer, self.shape, here, 0, self._entry("{}"))
            with self._lanes():
                if self.noise:
                    sum_ = self.noise.added(sum_, "noise", "i")
                line(f"m: T.let = {sum_}")
                line(f"mixed[i * {vector} + j] = m")
                line("best[j] = T.max(best[j], m)")
        with self.writer.block(f"for i in T.serial({n}):"):
            self._load_looped()
            with self._lanes():
                self.functions.exponential("e", f"(mixed[i * {vector} + j] - best[j]) * sharp[0]")
                line(f"mixed[i * {vector} + j] = e")
                line("total[j] = total[j] + e")
                line(f"mean[j] = T.fma(e, {self._reached}, mean[j])")
        with self._lanes():
            line("mean[j] = mean[j] / total[j]")
            line("scale[j] = sharp[0] / total[j]")
        with self.writer.block(f"for i in T.serial({n}):"):
            self._load_looped()
            with self._lanes():
                here = f"mixed[i * {vector} + j] * scale[j]"
                line(f"x[j] = ({self._reached} - mean[j]) * ({here})")
            with self._matrices() as ks:
                for k in ks:
                    with self._lanes():
                        line(f"{self._sum(k)} = T.fma(x[j], {self._entry(k)}, {self._sum(k)})")
                        weighed = self._weighed(k)
                        line(f"{weighed} = T.fma(w[{k}], x[j], {weighed})")
        with self._matrices() as ks:
            for k in ks:
                line(f"added[0] = {self.functions.number(0)}")
                with self._lanes():
                    line(f"added[0] = added[0] + {self._sum(k)}")
                line(f"{parts.inner}[tile, b, t, h, {k}] = added[0]")

    @property
    def _reached(self) -> str:
        """What reaches this lane's entry of row ``i``: the real part of a product."""
        pairs = zip(self._names("looped"), self._names("across"), strict=True)
        products = [f"{one}[0] * {other}[j]" for one, other in pairs]
        return f"({' + '.join(products)})"

    def _load_looped(self) -> None:
        step = self.reals[self.parts.looped]
        for part, name in enumerate(self._names("looped")):
            self.writer.line(f"{name}[0] = {self.parts.looped}[b, t, h, i * {step} + {part}]")

    def _names(self, vector: str) -> list[str]:
        """The parts of both vectors that matter: a real one knows no other's imaginary part."""
        return [f"{vector}_{part}" for part in ("re", "im")[: min(self.reals.values())]]

    @property
    def _written_out(self) -> bool:
        return self.shape.entries <= WRITTEN_OUT

    @contextmanager
    def _matrices(self) -> Iterator[Sequence[int | str]]:
        """What to write out for each matrix: all of them, or a loop's one."""
        if self._written_out:
            yield range(self.shape.entries)
            return
        with self.writer.block(f"for k in T.serial({self.shape.entries}):"):
            yield ("k",)

    def _sum(self, k: int | str) -> str:
        return f"sum_{k}[j]" if self._written_out else f"sums[{k} * {self.shape.lanes} + j]"

    def _entry(self, k: int | str) -> str:
        return f"{self.parts.table}[h, i, {k}, tile * {self.shape.lanes} + j]"

    def _weighed(self, k: int | str) -> str:
        return f"{self.parts.weighed}[b, h, i, {k}, tile * {self.shape.lanes} + j]"

    def _lanes(self):  # type: ignore[no-untyped-def]
        return self.writer.block(f"for j in T.serial({self.shape.lanes}):")

    def _local(self, name: str, size: int, dtype: str = "") -> None:
        write_local(self.writer, name, size, dtype or self.dtype)
