"""Every template, and which can run a program on a target."""

from typing import Any, NamedTuple

from pdssm_compiler.ir.program import Program
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Problem, Template
from pdssm_compiler.schedules.templates.cpu_matrices import CpuMatrices
from pdssm_compiler.schedules.templates.cpu_rows import CpuRows
from pdssm_compiler.schedules.templates.cuda_chunks import CudaChunks
from pdssm_compiler.schedules.templates.cuda_rows import CudaRows
from pdssm_compiler.schedules.templates.cuda_step import CudaStep
from pdssm_compiler.schedules.templates.torch_chunks import TorchChunks
from pdssm_compiler.schedules.templates.torch_matrices import TorchMatrices
from pdssm_compiler.schedules.templates.torch_tokens import TorchTokens
from pdssm_compiler.schedules.templates.triton_chunks import TritonChunks
from pdssm_compiler.schedules.templates.triton_lookback import TritonLookback
from pdssm_compiler.schedules.templates.triton_matrices import TritonMatrices
from pdssm_compiler.schedules.templates.triton_rows import TritonRows

_COMPILED: tuple[Template[Any], ...] = (
    CpuRows(),
    CpuMatrices(),
    CudaChunks(),
    CudaRows(),
    CudaStep(),
    TritonLookback(),
    TritonChunks(),
    TritonRows(),
    TritonMatrices(),
    # Plain PyTorch, where nothing else can run a program over matrices.
    TorchMatrices(),
)
# Plain PyTorch: runs anywhere, and is taken by itself only where nothing else can be had.
_FALLBACKS: tuple[Template[Any], ...] = (TorchChunks(), TorchTokens())

TEMPLATES: dict[str, Template[Any]] = {
    template.name: template for template in (*_COMPILED, *_FALLBACKS)
}


class Candidate(NamedTuple):
    """A template for a kind of device, and how it would run a program there.

    Attributes:
        template: the template.
        config: what its heuristic says.
        problem: None if it can run the program so, otherwise the reason it cannot.
    """

    template: Template[Any]
    config: Any
    problem: str | None


def candidates(
    program: Program, target: Target, problem: Problem, *, fallback: bool = False
) -> list[Candidate]:
    """Each template for the target's kind of device, those for problems of this size first.

    Args:
        program: the specialised program.
        target: where it shall run.
        problem: the sizes, as far as they are known.
        fallback: the templates for devices that no compiled one serves, instead of those.
    """
    found = []
    for template in _FALLBACKS if fallback else _COMPILED:
        if target.kind in template.kinds and template.takes(program) is None:
            config = template.heuristic(program, target, problem)
            refused = template.feasible(program, target, config)
            found.append(Candidate(template, config, refused))
    return sorted(found, key=lambda entry: not entry.template.suits(program, target, problem))
