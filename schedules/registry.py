"""Every template, and which can run a program on a target."""

from typing import Any

from pdssm_compiler.ir.program import Program
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Template
from pdssm_compiler.schedules.templates.cpu_rows import CpuRows
from pdssm_compiler.schedules.templates.torch_chunks import TorchChunks
from pdssm_compiler.schedules.templates.torch_tokens import TorchTokens
from pdssm_compiler.schedules.templates.triton_rows import TritonRows

_COMPILED = (CpuRows(), TritonRows())
# Plain PyTorch: runs anywhere, and is taken by itself only where nothing else can be had.
_FALLBACKS = (TorchChunks(), TorchTokens())

TEMPLATES: dict[str, Template[Any]] = {
    template.name: template for template in (*_COMPILED, *_FALLBACKS)
}


def candidates(
    program: Program, target: Target, *, fallback: bool = False
) -> list[tuple[Template[Any], str | None]]:
    """Each template for the target's kind of device, with the reason its heuristic config cannot
    run the program there, None if it can.

    Args:
        program: the specialised program.
        target: where it shall run.
        fallback: the templates for devices that no compiled one serves, instead of those.
    """
    from pdssm_compiler.schedules.templates.base import Problem

    found = []
    for template in _FALLBACKS if fallback else _COMPILED:
        if target.kind in template.kinds:
            config = template.heuristic(program, target, Problem())
            found.append((template, template.feasible(program, target, config)))
    return found
