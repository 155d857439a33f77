"""What reaches a state is never added up by atomic operations on floating-point numbers, whose
order, and so whose result, is another one each time.

By the text of every GPU kernel, and by what CUDA's compiler makes of it, which is all that runs.
"""

import re
from typing import Any

import pytest

from pdssm_compiler.ir import Program
from pdssm_compiler.ir.passes import adjoint, specialise
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime.backends import tvm_cuda
from pdssm_compiler.runtime.backends.cuda_compilers import compile_cuda
from pdssm_compiler.schedules.registry import TEMPLATES
from pdssm_compiler.schedules.templates.base import Problem, Template
from tests.kernels import under_stress
from tests.schedules.cuda import H100, lowered

# Integers: tickets and flags by which programs of triton-lookback wait for one another.
SIGNALS = ("(word, bit, ", "(word, 0, ", "(signals, 1, ")
COLLECTS = [
    PdScan(state_size, size, map_source=source, initial_state=True, final_state=True)
    for state_size in (5, 32, 40)
    for source, size in (("dictionary", 4), ("token", None))
]
COMPILED = [
    name
    for name, template in TEMPLATES.items()
    if template.backend in ("tvm-cuda", "triton") and not template.over_matrices
]


def programs(spec: PdScan) -> list[Program]:
    """What scatters, where sources share targets: forward, and backward of the other orientation.
    Neither has sums over tokens.
    """
    turned = PdScan(
        spec.state_size, spec.dictionary_size, map_source=spec.map_source, orientation="row"
    )
    found = [pd_scan(spec), adjoint(pd_scan(turned)).program]
    assert all(any(value.op == "scatter_add" for value in each.body) for each in found)
    assert not any(each.sum_outputs for each in found)
    return found


def text_of(template: Template[Any], program: Program) -> str:
    program = specialise(program)
    config = template.heuristic(program, H100, Problem())
    return template.lower(program, H100, config).text


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("spec", COLLECTS, ids=lambda spec: f"{spec.state_size}-{spec.map_source}")
def test_no_text_asks_for_one(spec: PdScan, name: str) -> None:
    for program in programs(spec):
        text = text_of(TEMPLATES[name], program)
        assert "lane_add" not in text
        asked = re.findall(r"tl\.atomic_\w+(\(.*)", text)
        assert all(arguments.startswith(SIGNALS) for arguments in asked), asked
        assert bool(asked) is (name == "triton-lookback")


def test_sums_over_tokens_do() -> None:
    """So the test above looks for the right words; whose these are is told in schedules.md."""
    program = adjoint(pd_scan(PdScan(5, 3)), surrogate="active").program
    assert program.sum_outputs
    for name in COMPILED:
        text = text_of(TEMPLATES[name], program)
        assert re.search(r"\blane_add\b|tl\.atomic_add\(\w*out_grad_dictionary", text), name


@pytest.mark.parametrize("name", ["cuda-rows", "cuda-chunks", *under_stress("cuda-step")])
@pytest.mark.parametrize("state_size", [40, *under_stress(5, 128)])
def test_the_compiler_makes_none(name: str, state_size: int) -> None:
    """Teams of several warps make lists by atomic operations on integers."""
    source = lowered(TEMPLATES[name], pd_scan(PdScan(state_size, 4, final_state=True)))
    ptx = compile_cuda(tvm_cuda.cuda_text(source), "sm_90", "ptx").decode()
    found = re.findall(r"\b(?:atom|red)\.[\w.]+", ptx)
    assert not [each for each in found if re.search(r"\.(f|bf)\d", each)], found
