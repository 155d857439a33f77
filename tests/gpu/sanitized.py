"""``python -m tests.gpu.sanitized TEMPLATE [DEVICE] [racecheck]``: a small run of every kernel of
a template, for a tool to watch; see :mod:`tests.gpu.test_sanitizer`. ``cuda-chunks:clusters`` is
that template with the blocks that share a row as clusters.

Each state size once forward and once backward with the gradients of hard choices: less than a
warp, more than one, and two. Then the last of them by maps of each token, whose sources a team
lists at the token, by exchanges in shared memory. Lengths are of several tiles or chunks, the last
one shorter.
"""

import sys
from collections.abc import Iterator

import torch

from pdssm_compiler import check
from pdssm_compiler.ir import Program
from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime.compile_service import config_text
from pdssm_compiler.runtime.plan import Plan
from pdssm_compiler.schedules.emit.lane_ring import LaneRing
from pdssm_compiler.schedules.templates.cuda_chunks import CudaChunksConfig
from tests.kernels import tensors_of
from tests.strategies import Sizes, arrays_for

STATE_SIZES = (5, 33, 64)
# Kernels that are run.
RUNS = 2 * len(STATE_SIZES) + 1
# B, T, H; few, for a tool that watches every access takes its time.
_SIZES = {"cuda-step": Sizes(2, 2, 3)}
_OTHERS = Sizes(2, 70, 2)


def _for_racecheck(template: str) -> str:
    """The config of a kernel without what the tool takes for a race.

    It counts a thread's own arrivals at a barrier of ``cuda-rows`` and not the warp's, in whose
    name one lane arrives after all have met; here every lane arrives. It knows nothing of words
    that carry a mark and are read until it is there, by which a team of ``cuda-chunks`` hands its
    carry to the next one of its block; here a block has one team, and carries pass through global
    memory.
    """
    LaneRing.releasing = property(lambda ring: ring.lanes)  # type: ignore[assignment]
    return config_text(CudaChunksConfig(2, 4, 1)) if template == "cuda-chunks" else template


def programs() -> Iterator[Program]:
    """What is run, :data:`RUNS` programs."""
    for state_size in STATE_SIZES:
        forward = pd_scan(PdScan(state_size, 4, initial_state=True, final_state=True))
        yield forward
        yield adjoint(forward, surrogate="active").program
    yield pd_scan(PdScan(STATE_SIZES[-1], map_source="token", final_state=True))


def main(asked: str, device: str = "cuda", watched_by: str = "") -> None:
    """Run, wait, and say what ran."""
    template, _, clusters = asked.partition(":")
    config = config_text(CudaChunksConfig(2, 4, 2, clusters=1)) if clusters else template
    if watched_by == "racecheck":
        config = _for_racecheck(template)
    where = torch.device(device)
    if where.type == "cuda":
        where = torch.device("cuda", torch.cuda.current_device())
    sizes = _SIZES.get(template, _OTHERS)
    for program in programs():
        arrays = arrays_for(program, sizes, program.state_size)
        tensors = [tensor.to(where) for tensor in tensors_of(program, arrays, "dense")]
        plan = Plan(program, where, config=config)
        plan.run(tensors)
        check()
        (built,) = plan.kernels.built
        print(f"ran {built.source.template} {program.text.splitlines()[0]}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
