"""``python -m tests.gpu.sanitized TEMPLATE [DEVICE]``: a small run of every kernel of a template,
for a tool to watch; see :mod:`tests.gpu.test_sanitizer`.

Each state size once forward and once backward with the gradients of hard choices: less than a
warp, more than one, and two. Lengths are of several tiles or chunks, the last one shorter.
"""

import sys

import torch

from pdssm_compiler import check
from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime.plan import Plan
from tests.kernels import tensors_of
from tests.strategies import Sizes, arrays_for

STATE_SIZES = (5, 33, 64)
# B, T, H; few, for a tool that watches every access takes its time.
_SIZES = {"cuda-step": Sizes(2, 2, 3)}
_OTHERS = Sizes(2, 70, 2)


def main(template: str, device: str = "cuda") -> None:
    """Run, wait, and say what ran."""
    where = torch.device(device)
    if where.type == "cuda":
        where = torch.device("cuda", torch.cuda.current_device())
    sizes = _SIZES.get(template, _OTHERS)
    for state_size in STATE_SIZES:
        forward = pd_scan(PdScan(state_size, 4, initial_state=True, final_state=True))
        for program in (forward, adjoint(forward, surrogate="active").program):
            arrays = arrays_for(program, sizes, state_size)
            tensors = [tensor.to(where) for tensor in tensors_of(program, arrays, "dense")]
            plan = Plan(program, where, config=template)
            plan.run(tensors)
            check()
            (built,) = plan.kernels.built
            print(f"ran {built.source.template} {program.text.splitlines()[0]}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
