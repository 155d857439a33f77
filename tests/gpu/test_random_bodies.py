"""The Triton backend on a GPU, on programs no template was written for."""

import torch
from hypothesis import assume
from hypothesis import strategies as st

from pdssm_compiler import check
from pdssm_compiler.ir import Program, interpret
from pdssm_compiler.ir.passes import Adjoint, adjoint, specialise
from pdssm_compiler.runtime.compile_service import config_text
from pdssm_compiler.runtime.plan import Plan
from pdssm_compiler.schedules.registry import TEMPLATES
from pdssm_compiler.schedules.target import named_target
from pdssm_compiler.schedules.templates.triton_chunks import TritonChunksConfig
from pdssm_compiler.schedules.templates.triton_lookback import TritonLookbackConfig
from tests.ir.agreement import cotangents_for
from tests.kernels import LAYOUTS, assert_runs, few
from tests.strategies import Sizes, affine_programs, arrays_for, programs, seeds

SHAPES = (Sizes(2, 3, 2), Sizes(3, 5, 1), Sizes(1, 1, 3), Sizes(2, 0, 2))


def _run(plan: Plan, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [out.cpu() for out in plan.run([tensor.to(plan.device) for tensor in tensors])]


@few(
    16,
    program=st.sampled_from((32, 64)).flatmap(lambda bits: programs(precision=bits, max_ops=14)),
    seed=seeds(),
)
def test_forward_and_adjoint(program: Program, seed: int) -> None:
    assert_runs_on_gpu(program, adjoint(program, surrogate="active"), seed, "")


CHUNKS = (
    TritonChunksConfig(rows=1, num_warps=1, unroll=1, programs=10**6, least_chunk=1),
    TritonChunksConfig(rows=2, num_warps=1, unroll=2, programs=10**6, least_chunk=2),
    TritonLookbackConfig(rows=1, num_warps=1, tokens=1, window=3),
    TritonLookbackConfig(rows=2, num_warps=1, tokens=2, window=1),
)


@few(24, program=affine_programs(precision=64), seed=seeds(), config=st.sampled_from(CHUNKS))
def test_affine_in_chunks(
    program: Program, seed: int, config: TritonChunksConfig | TritonLookbackConfig
) -> None:
    derived = adjoint(program, surrogate="active")
    target = named_target("sm_90")
    template = next(t for t in TEMPLATES.values() if t.accepts(config))
    for part in (derived.forward, derived.program):
        assume(template.feasible(specialise(part), target, config) is None)
    assert_runs_on_gpu(program, derived, seed, config_text(config))


def assert_runs_on_gpu(program: Program, derived: Adjoint, seed: int, config: str) -> None:
    """A program and its adjoint, in every shape and layout."""
    device = torch.device("cuda", torch.cuda.current_device())
    forward, backward = (
        Plan(p, device, config=config) for p in (derived.forward, derived.program)
    )
    for sizes, layout in zip(SHAPES, LAYOUTS, strict=True):
        arrays = arrays_for(program, sizes, seed)
        assert_runs(lambda _, t, __: _run(forward, t), derived.forward, arrays, sizes, layout)
        results = interpret(derived.forward, arrays)
        arrays |= {name: results[output] for name, output in derived.saved.items()}
        cotangents = cotangents_for(program, sizes, seed)
        arrays |= {f"grad_{name}": array for name, array in cotangents.items()}
        reads = {i.name: arrays[i.name] for i in derived.program.inputs if i.inverse_of is None}
        assert_runs(lambda _, t, __: _run(backward, t), derived.program, reads, sizes, layout)
    check()
