"""What functions over matrices name: tensors, and where tokens and columns are in them."""

from collections.abc import Iterable, Sequence

from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import Coefficients, Scalar, is_complex
from pdssm_compiler.ir.value import Value
from pdssm_compiler.schedules.emit.matrices import IN_REGISTERS, Shape, tables_of
from pdssm_compiler.schedules.signature import Argument, Signature
from pdssm_compiler.schedules.source import Writer

LOG2E = "1.4426950408889634"


class MatrixText:
    """A program's tensors, those between its functions too.

    Args:
        program: what is computed.
        writer: where it is written.
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
        # Of more, entries are loaded where they are used.
        self.ahead = shape.ahead and self.in_registers
        # Rows that are computed together, and lanes that a thread has side by side, of a function.
        self.rows, self.vector = shape.rows, shape.vector
        # Where a turn of the loop over rows begins.
        self.turn = "i"

    def _scratch(self, name: str) -> Argument:
        """A tensor between two functions, laid out as they know."""
        return Argument(name, Scalar(self.storage), self.storage, "signal", True)

    def sides(self, outer: Value) -> tuple[Value, Value]:
        """The vectors of a product, that along the loop and that along the lanes."""
        left, right = outer.args
        return (left, right) if self.shape.orientation == "column" else (right, left)

    def parts_across(self, soft: Value) -> int:
        """Where a product of two vectors arrives at a softmax, how many real numbers a lane of
        the one along the lanes has; elsewhere 0.

        That one is laid out beside the softmax's own numbers. Read as callers have it, as complex
        numbers, it would give threads another shape of tile than those, and every row of the loop
        would go from one to the other by shared memory.
        """
        reached = soft.args[2]
        if reached.op != "outer":
            return 0
        return 2 if is_complex(reached.args[0].type) else 1

    def stats_of(self, soft: Value) -> Argument:
        """What is known of each column of a softmax, ``[B, L, H, parts, lanes]``: less the
        largest, less the mean of what arrives, and what is across (:meth:`parts_across`), the last
        two times what all is multiplied by; where nothing is across that factor itself.
        """
        parts = Coefficients(2 + max(1, self.parts_across(soft)), self.storage)
        name = f"columns_{self.softs.index(soft)}"
        return Argument(name, parts, self.storage, "signal", True)

    def parts_of(self, soft: Value) -> int:
        """How many numbers of a column that is."""
        return self.stats_of(soft).type.size  # type: ignore[union-attr]

    def needed(self, roots: Iterable[Value]) -> list[Value]:
        """The values that functions compute or read for some; of a softmax its matrix and what
        arrives, or that along the loop if the rest is laid out.
        """
        found: dict[Value, None] = {}
        stack = list(roots)
        while stack:
            value = stack.pop()
            if value not in found:
                found[value] = None
                stack += self._reads(value)
        return list(found)

    def _reads(self, value: Value) -> Sequence[Value]:
        if value.op != "straight_through":
            return value.args
        matrix, _, reached, temperature = value.args
        if self.parts_across(value):
            reached = self.sides(reached)[0]
        return matrix, reached, temperature

    def partial_of(self, name: str) -> Argument:
        """An output's sums, before they are added up."""
        return self._scratch(f"partial_{name}")

    def scratch(self) -> list[Argument]:
        """All of it, in the order of the phases."""
        found = [self.table]
        for soft in self.softs:
            found.append(self.stats_of(soft))
        found += [
            self.partial_of(o.name) for o in self.program.token_outputs if o.value.op == "inner"
        ]
        return [*found, *(self.partial_of(o.name) for o in self.program.sum_outputs)]

    def within(self, row: int) -> str:
        """That a row of the loop is one, where the last step has others."""
        if self.shape.size % self.rows == 0:
            return ""
        return f" & ({self.turn} + {row} < {self.shape.size})"

    def tile(self, name: str, value: str) -> None:
        size = f"({self.shape.tokens}, {self.shape.lanes})"
        self.writer.line(f"{name} = tl.full({size}, {value}, {self.dtype})")

    def token_at(self, argument: Argument) -> str:
        """Where a tensor's token is, without its own axes; complex numbers count as one."""
        name = argument.name
        return f"(b * {name}_sB + t * {name}_sL + h * {name}_sH)"

    def stats_at(self, soft: Value, tokens: str) -> str:
        """Where the first of what is known of a softmax's columns is."""
        step = self.parts_of(soft) * self.shape.padded
        if tokens == "n":
            return f"((n * H + h) * {step})[:, None] + lane[None, :]"
        return f"((b * L + t) * H + h) * {step} + lane"

    def inverse_temperature(self, soft: Value) -> None:
        argument = self.arguments[soft.args[3].name]
        at = f"tl.load({argument.name} + h * {argument.name}_sH)"
        self.writer.line(f"sharp = {LOG2E} / {at}")
