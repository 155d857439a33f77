"""The TVM backend on programs no template was written for: what the interpreter computes."""

import torch
from hypothesis import strategies as st

from pdssm_compiler.ir import Program, interpret
from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.runtime.plan import Plan
from tests.ir.agreement import cotangents_for
from tests.kernels import LAYOUTS, assert_runs, few
from tests.strategies import Sizes, affine_programs, arrays_for, programs, seeds

SHAPES = (Sizes(2, 3, 2), Sizes(3, 5, 1), Sizes(1, 1, 3), Sizes(2, 0, 2))


def assert_compiled(program: Program, seed: int) -> None:
    """Forward and backward, each compiled once, in every shape and layout."""
    derived = adjoint(program, surrogate="active")
    forward, backward = (Plan(p, torch.device("cpu")) for p in (derived.forward, derived.program))
    for sizes, layout in zip(SHAPES, LAYOUTS, strict=True):
        arrays = arrays_for(program, sizes, seed)
        assert_runs(lambda _, t, __: forward.run(t), derived.forward, arrays, sizes, layout)
        results = interpret(derived.forward, arrays)
        arrays |= {name: results[output] for name, output in derived.saved.items()}
        cotangents = cotangents_for(program, sizes, seed)
        arrays |= {f"grad_{name}": array for name, array in cotangents.items()}
        reads = {i.name: arrays[i.name] for i in derived.program.inputs if i.inverse_of is None}
        assert_runs(lambda _, t, __: backward.run(t), derived.program, reads, sizes, layout)


@few(4, program=programs(precision=32, max_ops=14), seed=seeds())
def test_float32(program: Program, seed: int) -> None:
    assert_compiled(program, seed)


@few(2, program=programs(precision=64), seed=seeds())
def test_float64(program: Program, seed: int) -> None:
    assert_compiled(program, seed)


@few(
    3,
    program=st.sampled_from((32, 64)).flatmap(lambda bits: affine_programs(precision=bits)),
    seed=seeds(),
)
def test_affine(program: Program, seed: int) -> None:
    assert_compiled(program, seed)
