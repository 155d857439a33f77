"""cpu-matrices: the maps that mixtures choose, on CPUs.

Threads share out groups of tokens. What bounds it are fused multiply-adds: no sum of products is
in memory, and the entries of a head's matrices are read once for a group. Gradients are
``torch-matrices``': there every entry counts, and matrix products are the fastest a CPU has.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pdssm_compiler.ir.program import Program
from pdssm_compiler.schedules.emit.matrices import Shape, orientation_of, tables_of
from pdssm_compiler.schedules.emit.names import in_text_names
from pdssm_compiler.schedules.emit.tvm_matrices import refused, write_choice
from pdssm_compiler.schedules.source import KernelSource, Writer
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Config, Problem, Template

# A program's text has one product for each token and matrix.
_LONGEST = 1024
_X86 = ("x86_64", "AMD64")


@dataclass(frozen=True)
class CpuMatricesConfig(Config):
    """How tokens are grouped.

    Attributes:
        tokens: of a group.
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
        return CpuMatricesConfig(4 if _entries(program) <= 64 else 1, vector)

    def feasible(self, program: Program, target: Target, config: CpuMatricesConfig) -> str | None:
        if target.kind != "cpu":
            return f"{self.name} is for CPUs, not for {target}"
        wrong = refused(program)
        if wrong is not None:
            return f"{self.name} does not take {wrong}"
        if target.arch in _X86 and "fma" not in target.features.split():
            return f"{target} has no fused multiply-add, by which a map is defined"
        for name in ("tokens", "vector"):
            value = getattr(config, name)
            if not 0 < value <= 64 or value & (value - 1):
                return f"{name} is a power of two up to 64, not {value}"
        if config.tokens * _entries(program) > _LONGEST:
            return f"{config.tokens} tokens of {_entries(program)} matrices are too long a text"
        return None

    def lower(self, program: Program, target: Target, config: CpuMatricesConfig) -> KernelSource:
        program = in_text_names(program)
        writer = Writer()
        writer.comment(f"{self.name} {config}\n{program.text}")
        write_choice(program, writer, cpu_shape(program, config))
        return KernelSource(
            self.backend, writer.text, "scan", program, self.name, asdict(config), target
        )


def cpu_shape(program: Program, config: CpuMatricesConfig) -> Shape:
    """How a program's matrices are cut."""
    sizes = (program.state_size, _entries(program), orientation_of(program) or "")
    return Shape(*sizes, config.tokens, config.vector, 1, 1)


def _entries(program: Program) -> int:
    return tables_of(program)[0].type.size  # type: ignore[union-attr]
