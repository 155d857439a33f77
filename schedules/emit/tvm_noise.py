"""TVM text for CPUs: Gumbel noise of a mixture, by Philox as :mod:`pdssm_compiler.ir.ops.noise`
has it.

A call of Philox makes the numbers of four rows of the looped axis, so it is drawn for four at
once, a vector of lanes at a time. Words have 64 bits, as unsigned sums must not overflow in TVM.
"""

from typing import NamedTuple

from pdssm_compiler.ir.ops.noise import FACTORS, ROUNDS, STEPS, TOGETHER
from pdssm_compiler.ir.value import Value
from pdssm_compiler.schedules.emit.matrices import Shape
from pdssm_compiler.schedules.emit.tvm_buffers import write_local, write_strided
from pdssm_compiler.schedules.emit.tvm_functions import Functions
from pdssm_compiler.schedules.source import Writer

_WORD = 0xFFFFFFFF


class NoiseInputs(NamedTuple):
    """What noise is drawn by.

    Attributes:
        scale: how much, a number a head.
        seed: a head's.
        draw: a token's number.
    """

    scale: str
    seed: str
    draw: str


def drawn_by(value: Value, orientation: str | None) -> NoiseInputs | None:
    """What a noisy matrix is made with; None if its noise is by another orientation, or comes from
    what is no input.
    """
    sources = value.args[1:]
    if value.attribute("orientation") != orientation or any(s.op != "input" for s in sources):
        return None
    scale, seed, draw = (source.name for source in sources)
    return NoiseInputs(scale, seed, draw)


class TvmNoise:
    """The noise of a program.

    Args:
        inputs: what it is drawn by.
        functions: of the numbers that are computed.
        shape: how matrices are cut.
    """

    def __init__(self, inputs: NoiseInputs, functions: Functions, shape: Shape) -> None:
        self.inputs, self.functions, self.shape = inputs, functions, shape

    @property
    def _writer(self) -> Writer:
        return self.functions.writer

    def buffers(self) -> None:
        """The inputs, as a function's text has them."""
        write_strided(self._writer, self.inputs.scale, "H", (), self.functions.dtype)
        write_strided(self._writer, self.inputs.seed, "H", (), "int64")
        write_strided(self._writer, self.inputs.draw, "BLH", (), "int64")

    def locals(self) -> None:
        """What a thread draws in; TVM would write out lets wherever they are used."""
        lanes = self.shape.lanes
        for name, size in (("words", TOGETHER * lanes), ("products", 2 * lanes), ("keys", 2)):
            write_local(self._writer, name, size, "uint64")

    def draw(self, into: str, row: str, token: str) -> None:
        """Draw the noise of rows of the looped axis, where the first of ``TOGETHER`` is.

        Args:
            into: local numbers, ``TOGETHER`` times the lanes of a tile.
            row: of the looped axis.
            token: as the number of its draw is indexed.
        """
        line, inputs, lanes = self._writer.line, self.inputs, self.shape.lanes
        functions, number = self.functions, self.functions.number
        with self._writer.block(f"if {row} % {TOGETHER} == 0:"):
            line(f"seed: T.let = {inputs.seed}[h]")
            line(f"drawn: T.let = {inputs.draw}[{token}]")
            for each, key in enumerate((f"seed & T.int64({_WORD})", "seed >> 32")):
                line(f"keys[{each}] = {_unsigned(key)}")
            with self._writer.block(f"for j in T.serial({lanes}):"):
                place = f"T.Cast('int64', {row} // {TOGETHER}) * {self.shape.size}"
                place = f"{place} + tile * {lanes} + j"
                counter = (place, f"drawn & T.int64({_WORD})", "drawn >> 32", "0")
                for each, word in enumerate(counter):
                    line(f"{self._word(each)} = {_unsigned(word)}")
            with self._writer.block(f"for turn in T.serial({ROUNDS}):"):
                self._round()
            with self._writer.block(f"for j in T.serial({TOGETHER * lanes}):"):
                bits = "T.Cast('int32', words[j] >> T.uint64(9))"
                whole = f"T.Cast('{functions.dtype}', {bits})"
                line(f"{into}[j] = ({whole} + {number(0.5)}) * {number(2.0**-23)}")
            for _ in range(2):
                with self._writer.block(f"for j in T.serial({TOGETHER * lanes}):"):
                    functions.logarithm("log", f"{into}[j]")
                    line(f"{into}[j] = {number(0)} - log")

    def _round(self) -> None:
        line = self._writer.line
        with self._writer.block(f"for j in T.serial({self.shape.lanes}):"):
            for each, factor in enumerate(FACTORS):
                line(f"{self._product(each)} = {self._word(2 * each)} * T.uint64({factor})")
            # Of the other's product each pair is made.
            for each in range(2):
                product, old = self._product(1 - each), self._word(2 * each + 1)
                high = f"({product} >> T.uint64(32))"
                line(f"{self._word(2 * each)} = {high} ^ {old} ^ keys[{each}]")
                line(f"{old} = {product} & T.uint64({_WORD})")
        for each, step in enumerate(STEPS):
            line(f"keys[{each}] = (keys[{each}] + T.uint64({step})) & T.uint64({_WORD})")

    def _product(self, each: int) -> str:
        return f"products[{each * self.shape.lanes} + j]"

    def _word(self, each: int) -> str:
        return f"words[{each * self.shape.lanes} + j]"

    def added(self, sum_: str, noise: str, row: str) -> str:
        """A mixture's entry, of this lane, with its noise.

        Args:
            sum_: the entry.
            noise: what :meth:`draw` filled.
            row: of the looped axis.
        """
        at = f"{row} % {TOGETHER} * {self.shape.lanes} + j"
        return f"T.fma({self.inputs.scale}[h], {noise}[{at}], {sum_})"


def _unsigned(value: str) -> str:
    return f"T.Cast('uint64', {value})"
