"""torch-matrices: plain PyTorch for programs over matrices, a block of tokens at a time.

It runs on any device that torch knows: the fallback, and what other templates are held to besides
the interpreter.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pdssm_compiler.ir.program import Program
from pdssm_compiler.schedules.emit import torch_matrices as emit
from pdssm_compiler.schedules.emit.names import in_text_names
from pdssm_compiler.schedules.source import KernelSource, Writer
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Config, Problem, Template

# Numbers of a matrix that are computed together: few enough for a CPU's caches, enough for a GPU.
_ON_CPU, _ELSEWHERE = 2**18, 2**24


@dataclass(frozen=True)
class TorchMatricesConfig(Config):
    """How tokens are run.

    Attributes:
        numbers: of the matrices of a block of tokens; a token's are always together.
    """

    numbers: int


class TorchMatrices(Template[TorchMatricesConfig]):
    """The template; see the module's text."""

    name = "torch-matrices"
    backend = "torch"
    kinds = ("cpu", "cuda", "hip", "other")
    config_type = TorchMatricesConfig
    over_matrices = True

    def space(self, program: Program, target: Target) -> Iterator[TorchMatricesConfig]:
        for bits in range(14, 28, 2):
            yield TorchMatricesConfig(2**bits)

    def heuristic(self, program: Program, target: Target, problem: Problem) -> TorchMatricesConfig:
        return TorchMatricesConfig(_ON_CPU if target.kind == "cpu" else _ELSEWHERE)

    def feasible(
        self, program: Program, target: Target, config: TorchMatricesConfig
    ) -> str | None:
        if config.numbers < 1:
            return f"numbers is at least 1, not {config.numbers}"
        return None

    def lower(self, program: Program, target: Target, config: TorchMatricesConfig) -> KernelSource:
        program = in_text_names(program)
        writer = Writer()
        writer.comment(f"{self.name} {config}\n{program.text}")
        emit.TorchMatrices(program, writer).write(config.numbers)
        return KernelSource(
            self.backend, writer.text, "scan", program, self.name, asdict(config), target
        )
