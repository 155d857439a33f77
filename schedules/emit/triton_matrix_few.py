"""Choices of few tokens: a program has a tile of a matrix for each of some tokens, and goes
through matrices.

A tile of many tokens goes through rows, one after the other, and of few tokens there are few such
tiles: the device waits for one load after another. Here the axis that is chosen along lies across
a program's threads, each of which asks for what it needs of several matrices before it adds.
"""

from pdssm_compiler.ir.value import Value
from pdssm_compiler.schedules.emit.triton_matrix_places import Entries
from pdssm_compiler.schedules.emit.triton_matrix_text import MatrixText
from pdssm_compiler.schedules.signature import Argument


class FewTokens(Entries):
    """Some tokens, each with a tile ``[tile, lanes]`` of its matrix.

    Args:
        text: of the program; ``lane`` and ``table`` are written.
        matrix: what is chosen from.
    """

    def __init__(self, text: MatrixText, matrix: Value) -> None:
        super().__init__(text)
        self._matrix = matrix
        (self._coefficients,) = self.coefficients([matrix])

    def begin(self, out: Argument) -> None:
        """Where each token is, in what is read and in what is written."""
        write, text = self.write, self.text
        self.prepare_noise([self._matrix])
        weights = self._coefficients.name
        for number in range(self.shape.together):
            token = f"tl.program_id(0).to(tl.int64) * {self.shape.together} + {number}"
            write(f"n = {token}")
            write(f"inside_{number} = n < (rows // H) * L")
            # Behind the last token that one again, which nothing is stored of.
            write("n = tl.minimum(n, (rows // H) * L - 1)")
            write("b = n // L")
            write("t = n - b * L")
            at = text.token_at(text.arguments[weights])
            write(f"{weights}_at_{number} = {weights} + {at}")
            for name in self.draws([self._matrix]):
                at = text.token_at(text.arguments[name])
                write(f"{name}_draw_{number} = tl.load({name} + {at})")
            write(f"out_{number} = {out.name} + {text.token_at(out)}")
            write(f'best_{number} = tl.full(({self.shape.lanes},), float("-inf"), {text.dtype})')
            write(f"index_{number} = tl.zeros(({self.shape.lanes},), tl.int32)")

    def choose(self) -> None:
        """What all tokens choose of the tile's rows, ``i``, beside what they chose before."""
        write, shape = self.write, self.shape
        write(f"here = i.to(tl.int64)[:, None] * {shape.row_step} + beside[None, :]")
        for number in range(shape.together):
            write(f"m_{number} = tl.zeros(({shape.tile}, {shape.lanes}), {self.text.dtype})")
        whole = shape.entries // shape.matrices * shape.matrices
        if whole:
            self._load_some("0", shape.matrices)
            # Compilers that know how often a loop goes round write its turns one after the other,
            # and each load where it is used, with two under way at a time instead of all of a
            # turn's. They do not know that there are rows.
            write(f"stop = tl.minimum({whole}, rows * {whole})")
            step = shape.matrices
            with self.text.writer.block(f"for k in range({step}, stop, {step}):"):
                with self.loading_ahead():
                    self._load_some("k", shape.matrices)
                self._add(shape.matrices)
                self.advance()
            self._add(shape.matrices)
        if whole < shape.entries:
            self._load_some(str(whole), shape.entries - whole)
            self._add(shape.entries - whole)
        for number in range(shape.together):
            self.turn_to(number)
            x = self.matrix(self._matrix, 0)
            if shape.size < shape.looped:
                write(f'{x} = tl.where((i < {shape.size})[:, None], {x}, float("-inf"))')
            # Of equal ones the first; a NaN, which is no number, stays.
            write(f"wrong = tl.max(({x} != {x}).to(tl.int32), 0) > 0")
            write(f"largest = tl.max({x}, 0)")
            write(f"at = tl.where({x} == largest[None, :], i[:, None], {shape.looped})")
            write("at = tl.where(wrong, -1, tl.min(at, 0))")
            best, index = f"best_{number}", f"index_{number}"
            write(f"new = ({index} >= 0) & (wrong | (largest > {best}))")
            write(f"{index} = tl.where(new, at, {index})")
            write(f"{best} = tl.maximum({best}, largest)")

    def _load_some(self, first: str, count: int) -> None:
        """Load entries of some matrices, and what each token weighs them by."""
        weights = self._coefficients.name
        for k in range(count):
            at = f"({first} + {k}) * {self.shape.entry_step}"
            self.keep_loaded(f"d_{k}", f"tl.load(table + here + {at})")
            for number in range(self.shape.together):
                load = f"tl.load({weights}_at_{number} + {first} + {k})"
                self.keep_loaded(f"w_{k}_{number}", load)

    def _add(self, count: int) -> None:
        """Add what was loaded."""
        for k in range(count):
            for number in range(self.shape.together):
                self.write(f"m_{number} = fused(w_{k}_{number}, d_{k}, m_{number})")

    def end(self) -> None:
        """Store what was chosen."""
        for number in range(self.shape.together):
            mask = f"inside_{number} & (lane < {self.shape.size})"
            self.write(f"tl.store(out_{number} + lane, index_{number}, mask={mask})")

    def mix(self, value: Value, row: int) -> str:
        return f"m{self.slot}"
