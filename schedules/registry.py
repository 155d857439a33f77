"""Every template, and which can run a program on a target."""

from typing import Any

from pdssm_compiler.ir.program import Program
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Template
from pdssm_compiler.schedules.templates.cpu_rows import CpuRows
from pdssm_compiler.schedules.templates.cuda_rows import CudaRows
from pdssm_compiler.schedules.templates.triton_rows import TritonRows

TEMPLATES: dict[str, Template[Any]] = {
    template.name: template for template in (CpuRows(), CudaRows(), TritonRows())
}


def candidates(program: Program, target: Target) -> list[tuple[Template[Any], str | None]]:
    """Each template for the target's kind of device, with the reason its heuristic config cannot
    run the program there, None if it can.
    """
    from pdssm_compiler.schedules.templates.base import Problem

    found = []
    for template in TEMPLATES.values():
        if target.kind in template.kinds:
            config = template.heuristic(program, target, Problem())
            found.append((template, template.feasible(program, target, config)))
    return found
