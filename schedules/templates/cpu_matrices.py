"""cpu-matrices: the maps that mixtures choose, and the gradients of those, on CPUs.

No sum of products is in memory. Where a program chooses, threads share out groups of tokens, and
the entries of a head's matrices are read once for a group: fused multiply-adds bound it. Where it
computes gradients, they share out the lanes of the matrices, so that each sum over tokens has one
thread. What does more is ``torch-matrices``'.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pdssm_compiler.ir.program import Program
from pdssm_compiler.schedules.emit.matrices import (
    WRITTEN_OUT,
    Shape,
    orientation_of,
    tables_of,
)
from pdssm_compiler.schedules.emit.names import in_text_names
from pdssm_compiler.schedules.emit.tvm_matrices import refused, write_choice
from pdssm_compiler.schedules.emit.tvm_matrix_gradients import parts_of, write_gradients
from pdssm_compiler.schedules.source import KernelSource, Writer
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Config, Problem, Template

# Coefficients of the tokens of a group, which a thread has on its stack.
_COEFFICIENTS = 1024
# Bytes of a token's mixture, and of the sums of many matrices, that a thread has there.
_STACK_BYTES = 1 << 19
_X86 = ("x86_64", "AMD64")


@dataclass(frozen=True)
class CpuMatricesConfig(Config):
    """How tokens are grouped.

    Attributes:
        tokens: of a group; 1 for gradients.
        vector: entries that are computed together.
    """

    tokens: int
    vector: int


class CpuMatrices(Template[CpuMatricesConfig]):
    """The template; see the module's text."""

    name = "cpu-matrices"
    backend = "tvm"
    kinds = ("cpu",)
    config_type = CpuMatricesConfig
    over_matrices = True

    def space(self, program: Program, target: Target) -> Iterator[CpuMatricesConfig]:
        for tokens in (1, 2, 4, 8):
            for vector in (8, 16, 32):
                yield CpuMatricesConfig(tokens, vector)

    def heuristic(self, program: Program, target: Target, problem: Problem) -> CpuMatricesConfig:
        vector = 32 if program.state_size >= 32 else 16 if program.state_size >= 16 else 8
        if parts_of(program):
            while vector > 1 and _stack_bytes(program, vector) > _STACK_BYTES:
                vector //= 2
            return CpuMatricesConfig(1, vector)
        return CpuMatricesConfig(4 if _entries(program) <= 64 else 1, vector)

    def feasible(self, program: Program, target: Target, config: CpuMatricesConfig) -> str | None:
        if target.kind != "cpu":
            return f"{self.name} is for CPUs, not for {target}"
        gradients = parts_of(program)
        wrong = None if gradients else refused(program)
        if wrong is not None:
            return f"{self.name} does not take {wrong}"
        if target.arch in _X86 and "fma" not in target.features.split():
            return f"{target} has no fused multiply-add, by which a map is defined"
        for name in ("tokens", "vector"):
            value = getattr(config, name)
            if not 0 < value <= 64 or value & (value - 1):
                return f"{name} is a power of two up to 64, not {value}"
        if config.tokens * _entries(program) > _COEFFICIENTS:
            return (
                f"{config.tokens} tokens of {_entries(program)} matrices take too much of a stack"
            )
        if gradients and config.tokens > 1:
            return f"gradients take one token after the other, not {config.tokens} together"
        if gradients and _stack_bytes(program, config.vector) > _STACK_BYTES:
            return f"{config.vector} lanes of {program.state_size} rows take too much of a stack"
        return None

    def lower(self, program: Program, target: Target, config: CpuMatricesConfig) -> KernelSource:
        program = in_text_names(program)
        writer = Writer()
        writer.comment(f"{self.name} {config}\n{program.text}")
        shape, gradients = cpu_shape(program, config), parts_of(program)
        if gradients:
            write_gradients(program, gradients, writer, shape)
        else:
            write_choice(program, writer, shape)
        return KernelSource(
            self.backend, writer.text, "scan", program, self.name, asdict(config), target
        )


def cpu_shape(program: Program, config: CpuMatricesConfig) -> Shape:
    """How a program's matrices are cut."""
    sizes = (program.state_size, _entries(program), orientation_of(program) or "")
    return Shape(*sizes, config.tokens, config.vector, 1, 1)


def _stack_bytes(program: Program, vector: int) -> int:
    """A vector's part of a token's mixture, at most, and of the sums of many matrices."""
    entries = _entries(program)
    return 8 * (program.state_size + (entries if entries > WRITTEN_OUT else 0)) * vector


def _entries(program: Program) -> int:
    return tables_of(program)[0].type.size  # type: ignore[union-attr]
