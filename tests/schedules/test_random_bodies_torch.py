"""The PyTorch backend on programs no template was written for: what the interpreter computes."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from pdssm_compiler.ir import Program, interpret
from pdssm_compiler.ir.passes import adjoint, specialise
from pdssm_compiler.runtime.compile_service import config_text
from pdssm_compiler.runtime.plan import Plan
from pdssm_compiler.schedules.target import cpu_target
from pdssm_compiler.schedules.templates.torch_chunks import TorchChunks, TorchChunksConfig
from pdssm_compiler.schedules.templates.torch_tokens import TorchTokensConfig
from tests.ir.agreement import cotangents_for
from tests.kernels import LAYOUTS, assert_runs, few
from tests.strategies import Sizes, affine_programs, arrays_for, programs, seeds
from tests.torch_only import torch_only

# With chunks of 1, 2 and 3 tokens: none, one short of one, whole ones, and a rest.
SHAPES = (Sizes(2, 3, 2), Sizes(3, 8, 1), Sizes(1, 1, 3), Sizes(2, 0, 2))
TOKENS = [TorchTokensConfig(split) for split in (False, True)]
CHUNKS = [TorchChunksConfig(*each) for each in ((None, True), (1, False), (2, True), (3, False))]


@pytest.fixture(autouse=True, scope="module")
def no_tvm() -> Iterator[None]:
    """The helper programs run in PyTorch as well."""
    with torch_only():
        yield


def configs(program: Program) -> list[Any]:
    """A config of each template that can run the program."""
    fits = TorchChunks().feasible(specialise(program), cpu_target(), CHUNKS[0]) is None
    return [*TOKENS, *(CHUNKS if fits else [])]


def assert_agrees(program: Program, seed: int) -> None:
    """Forward and backward, by every template, in every shape and layout."""
    derived = adjoint(program, surrogate="active")
    plans = {
        each: [Plan(each, torch.device("cpu"), 0, None, config_text(c)) for c in configs(each)]
        for each in (derived.forward, derived.program)
    }
    for sizes, layout in zip(SHAPES, LAYOUTS, strict=True):
        arrays = arrays_for(program, sizes, seed)
        results = interpret(derived.forward, arrays)
        reads = arrays | {name: results[output] for name, output in derived.saved.items()}
        cotangents = cotangents_for(program, sizes, seed)
        reads |= {f"grad_{name}": array for name, array in cotangents.items()}
        for each, made in plans.items():
            given = {i.name: reads[i.name] for i in each.inputs if i.inverse_of is None}
            for plan in made:
                assert_runs(lambda _, t, __, plan=plan: plan.run(t), each, given, sizes, layout)
                assert {b.source.backend for b in plan.kernels.built} == {"torch"}


@few(8, program=programs(precision=32, max_ops=14), seed=seeds())
def test_float32(program: Program, seed: int) -> None:
    assert_agrees(program, seed)


@few(8, program=programs(precision=64), seed=seeds())
def test_float64(program: Program, seed: int) -> None:
    assert_agrees(program, seed)


@few(
    8,
    program=st.sampled_from((32, 64)).flatmap(lambda bits: affine_programs(precision=bits)),
    seed=seeds(),
)
def test_affine(program: Program, seed: int) -> None:
    assert CHUNKS[0] in configs(program)
    assert_agrees(program, seed)


@few(
    5,
    program=affine_programs(starts=["input"]),
    seed=seeds(),
)
def test_affine_adjoints_in_chunks(program: Program, seed: int) -> None:
    """Without the read-out, the adjoint is affine in its one carry."""
    backward = adjoint(program, cotangents=["last", "states"], surrogate="active").program
    assert CHUNKS[0] in configs(backward)
    for sizes, layout in zip(SHAPES, LAYOUTS, strict=True):
        arrays = arrays_for(backward, sizes, seed)
        for config in configs(backward):
            plan = Plan(backward, torch.device("cpu"), 0, None, config_text(config))
            assert_runs(lambda _, t, __, p=plan: p.run(t), backward, arrays, sizes, layout)
