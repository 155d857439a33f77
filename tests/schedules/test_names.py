"""Whatever a program calls its tensors, generated text keeps them apart from its own names."""

import re
from functools import reduce
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdssm_compiler.ir import Program, ProgramBuilder
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.passes import specialise
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.ir.types import Scalar, Vector
from pdssm_compiler.runtime.plan import Plan
from pdssm_compiler.schedules.emit.names import in_text_names, text_name
from pdssm_compiler.schedules.registry import TEMPLATES
from pdssm_compiler.schedules.target import cpu_target
from pdssm_compiler.schedules.templates.base import Config, Problem
from pdssm_compiler.schedules.templates.cuda_chunks import CudaChunksConfig
from pdssm_compiler.schedules.templates.cuda_rows import CudaRowsConfig
from pdssm_compiler.schedules.templates.cuda_step import CudaStepConfig
from tests.kernels import assert_runs
from tests.schedules.cuda import H100
from tests.schedules.test_cuda_on_cpu import assert_agrees
from tests.strategies import Sizes, arrays_for

# Letters of names and of what text puts before and behind them, to make likenesses likely.
NAMES = st.from_regex(r"[a_z0][a_z0]{0,5}", fullmatch=True)
BEFORE = st.sampled_from(["", "ring_", "in_", "x_", "a_"])
BEHIND = st.sampled_from(["", "_", "_a", "_z", "_a0", "_0", "_re"])
COMPILED = [
    name for name in TEMPLATES if not name.startswith("torch") and not name.endswith("matrices")
]
CONFIGS: dict[str, Config] = {
    "cuda-rows": CudaRowsConfig(2, 3),
    "cuda-chunks": CudaChunksConfig(2, 2, 2),
    "cuda-step": CudaStepConfig(2),
}
# What assigns, in TVMScript and in Triton: parameters, variables, loops, functions.
ASSIGNED = re.compile(r"(\w+): T\.|(\w+) = |(?:for|def|class) (\w+)|(\w+)(?=[,)].*:$)")

MADE = re.compile(r"(in|out)_\w+0|(applied|joined|fold|chunk|summary)_|v\d|_raw_|_(s[BCHL]|n|)$")


@given(
    st.tuples(BEFORE, NAMES, st.booleans(), BEHIND),
    st.tuples(BEFORE, NAMES, st.booleans(), BEHIND),
)
def test_no_two_names_meet(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    def made(before: str, name: str, written: bool, behind: str) -> str:
        return f"{before}{text_name(name, written)}{behind}"

    # What text puts before a name is no beginning of one.
    if {one[0], other[0]} <= {"", "ring_", "x_"}:
        assert (made(*one) == made(*other)) == (one == other)


@given(st.lists(NAMES, unique=True))
def test_names_keep_their_order(names: list[str]) -> None:
    assert sorted(names) == sorted(names, key=text_name)


def test_all_names_of_a_program_are_replaced() -> None:
    program = specialise(pd_scan(PdScan(5, 3, map_class="permutation", initial_state=True)))
    renamed = in_text_names(program)
    assert re.sub(r"\b(?:in|out)_(\w+?)0\b", r"\1", renamed.text) == program.text
    assert all(re.fullmatch(r"in_\w+0", i.name) for i in (*renamed.inputs, *renamed.carries))
    assert all(re.fullmatch(r"out_\w+0", out.name) for out in renamed.token_outputs)


def text_of(name: str, program: Program) -> str:
    template, target = TEMPLATES[name], cpu_target() if name == "cpu-rows" else H100
    config = template.heuristic(program, target, Problem())
    return template.lower(program, target, config).text


def own_names(name: str) -> list[str]:
    """What a template's text calls its own variables, but for those made of others' names."""
    text = text_of(name, specialise(pd_scan(PdScan(5, 3, final_state=True))))
    found = {word for match in ASSIGNED.finditer(text) for word in match.groups() if word}
    return sorted(n for n in found if n.isidentifier() and not MADE.search(n))


def called(names: list[str]) -> Program:
    """A scan whose inputs, carry and outputs have these names. Most are a number a row: as many
    vectors a token would take minutes to compile.
    """
    build = ProgramBuilder(3)
    carry = build.carry(names[0], Vector("f32"))
    total = b.mul(carry, b.broadcast(build.input(names[1], Scalar("f32"))))
    each = [build.input(name, Scalar("f32"), role="row") for name in names[3:]]
    total = b.add(total, b.broadcast(reduce(b.add, each)))
    total = b.add(total, build.input(names[2], Vector("f32")))
    build.next(names[0], total)
    build.emit(names[1], total)
    build.final(names[0], names[0])
    return build.build()


@pytest.mark.parametrize("name", COMPILED)
def test_names_of_the_skeleton_are_free(name: str) -> None:
    own = own_names(name)
    expected = {"cpu": {"slot"}, "cud": {"lane", "thread", "row"}, "tri": {"row", "lane"}}
    assert expected[name[:3]] <= set(own)
    program = called([*own, "for", "T", "tl"])
    if name == "cpu-rows":
        plan = Plan(program, torch.device("cpu"), 0, None, "cpu-rows")
        sizes = Sizes(2, 5, 2)
        assert_runs(
            lambda _, t, __: plan.run(t), program, arrays_for(program, sizes, 0), sizes, "dense"
        )
    elif name.startswith("cuda"):
        assert_agrees(TEMPLATES[name], CONFIGS[name], program, Sizes(1, 9, 2))
    else:
        compile(text_of(name, specialise(program)), name, "exec")
