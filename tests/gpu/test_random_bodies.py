"""The Triton backend on a GPU, on programs no template was written for."""

import torch
from hypothesis import strategies as st

from pdssm_compiler import check
from pdssm_compiler.ir import Program, interpret
from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.runtime.plan import Plan
from tests.ir.agreement import cotangents_for
from tests.kernels import LAYOUTS, assert_runs, few
from tests.strategies import Sizes, arrays_for, programs, seeds

SHAPES = (Sizes(2, 3, 2), Sizes(3, 5, 1), Sizes(1, 1, 3), Sizes(2, 0, 2))


def _run(plan: Plan, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [out.cpu() for out in plan.run([tensor.to(plan.device) for tensor in tensors])]


@few(
    16,
    program=st.sampled_from((32, 64)).flatmap(lambda bits: programs(precision=bits, max_ops=14)),
    seed=seeds(),
)
def test_forward_and_adjoint(program: Program, seed: int) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    derived = adjoint(program)
    forward, backward = (Plan(p, device) for p in (derived.forward, derived.program))
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
