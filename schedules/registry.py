"""Every template, and which can run a program on a target."""

from typing import Any, NamedTuple

from pdssm_compiler.ir.program import Program
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Problem, Template
from pdssm_compiler.schedules.templates.cpu_rows import CpuRows
from pdssm_compiler.schedules.templates.cuda_rows import CudaRows
from pdssm_compiler.schedules.templates.triton_chunks import TritonChunks
from pdssm_compiler.schedules.templates.triton_rows import TritonRows

TEMPLATES: dict[str, Template[Any]] = {
    template.name: template for template in (CpuRows(), CudaRows(), TritonChunks(), TritonRows())
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


def candidates(program: Program, target: Target, problem: Problem) -> list[Candidate]:
    """Each template for the target's kind of device, those for problems of this size first."""
    found = []
    for template in TEMPLATES.values():
        if target.kind in template.kinds:
            config = template.heuristic(program, target, problem)
            refused = template.feasible(program, target, config)
            found.append(Candidate(template, config, refused))
    return sorted(found, key=lambda entry: not entry.template.suits(program, target, problem))
