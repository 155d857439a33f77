"""torch-tokens: plain PyTorch, one token after the other, vectorised over rows.

It runs any program on any device that torch knows. What needs no carry is computed for all tokens
together before the loop, what no next carry needs for all tokens after it; the loop itself costs a
few torch calls a token, whatever the number of rows.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pdssm_compiler.ir.program import Program
from pdssm_compiler.schedules.emit.pytorch import PytorchBody
from pdssm_compiler.schedules.source import KernelSource, Writer
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Config, Problem, Template
from pdssm_compiler.schedules.templates.torch_scan import SPACE, TorchScan, needs_split

# A token's turn is several launches, each of which waits for the one before it. On an H200 it took
# 17 us replayed from a graph, and 40 to 60 us called.
_TURN_SECONDS = 2e-6


@dataclass(frozen=True)
class TorchTokensConfig(Config):
    """How tokens are run.

    Attributes:
        split: complex numbers as two real tensors; :mod:`~pdssm_compiler.schedules.emit.pytorch`
            says what for.
        compiled: run the source under ``torch.compile``, which unrolls the loop: once for each
            batch, length and number of heads.
    """

    split: bool = False
    compiled: bool = False


class TorchTokens(Template[TorchTokensConfig]):
    """The template; see the module's text."""

    name = "torch-tokens"
    backend = "torch"
    kinds = ("cpu", "cuda", "hip", "other")
    config_type = TorchTokensConfig

    def space(self, program: Program, target: Target) -> Iterator[TorchTokensConfig]:
        for split, compiled in SPACE:
            yield TorchTokensConfig(split, compiled)

    def heuristic(self, program: Program, target: Target, problem: Problem) -> TorchTokensConfig:
        return TorchTokensConfig(split=needs_split(target))

    def feasible(self, program: Program, target: Target, config: TorchTokensConfig) -> str | None:
        return None

    def least_seconds(self, program: Program, target: Target, length: int) -> float:
        if target.kind == "cpu" or not program.carries:
            return 0.0
        return _TURN_SECONDS * length

    def lower(self, program: Program, target: Target, config: TorchTokensConfig) -> KernelSource:
        writer = Writer()
        writer.comment(f"{self.name} {config}\n{program.text}")
        scan = TorchScan(PytorchBody(program, writer, split=config.split))
        scan.preamble()
        with scan.entry():
            if program.carries:
                with writer.block("if L:"):
                    scan.stretch("L", "1")
        return KernelSource(
            self.backend, writer.text, "scan", program, self.name, asdict(config), target
        )
