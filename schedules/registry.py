"""Every template, and which can run a program on a target."""

from typing import Any

from pdssm_compiler.ir.program import Program
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Problem, Template
from pdssm_compiler.schedules.templates.cpu_rows import CpuRows
from pdssm_compiler.schedules.templates.triton_chunks import TritonChunks
from pdssm_compiler.schedules.templates.triton_rows import TritonRows

TEMPLATES: dict[str, Template[Any]] = {
    template.name: template for template in (CpuRows(), TritonChunks(), TritonRows())
}


def candidates(
    program: Program, target: Target, problem: Problem | None = None
) -> list[tuple[Template[Any], str | None]]:
    """Each template for the target's kind of device, those for problems of this size first, with
    the reason its heuristic config cannot run the program there, None if it can.
    """
    problem = problem or Problem()
    found = []
    for template in TEMPLATES.values():
        if target.kind in template.kinds:
            config = template.heuristic(program, target, problem)
            found.append((template, template.feasible(program, target, config)))
    return sorted(found, key=lambda entry: not entry[0].suits(program, target, problem))
