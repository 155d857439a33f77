"""What functions over matrices name: tensors, and where tokens and columns are in them."""

from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import Scalar
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

    def within(self, row: int) -> str:
        """That a row of the loop is one, where the last step has others."""
        if self.shape.size % self.shape.rows == 0:
            return ""
        return f" & (i + {row} < {self.shape.size})"

    def tile(self, name: str, value: str) -> None:
        size = f"({self.shape.tokens}, {self.shape.lanes})"
        self.writer.line(f"{name} = tl.full({size}, {value}, {self.dtype})")

    def token_at(self, argument: Argument) -> str:
        """Where a tensor's token is, without its own axes; complex numbers count as one."""
        name = argument.name
        return f"(b * {name}_sB + t * {name}_sL + h * {name}_sH)"

    def stats_at(self, tokens: str) -> str:
        padded = self.shape.padded
        if tokens == "n":
            return f"((n * H + h) * {padded})[:, None] + lane[None, :]"
        return f"((b * L + t) * H + h) * {padded} + lane"

    def inverse_temperature(self, soft: Value) -> None:
        argument = self.arguments[soft.args[3].name]
        at = f"tl.load({argument.name} + h * {argument.name}_sH)"
        self.writer.line(f"sharp = {LOG2E} / {at}")
