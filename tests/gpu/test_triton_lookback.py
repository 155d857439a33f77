"""``triton-lookback`` on a GPU: programs that wait for one another give what the plain loop gives,
the same bits each time, however many more of them there are than run at once.
"""

import pytest
import torch

from pdssm_compiler.ir import Program
from pdssm_compiler.schedules.templates.triton_lookback import TritonLookbackConfig
from pdssm_compiler.schedules.templates.triton_rows import TritonRowsConfig
from tests.gpu.agreement import assert_agrees
from tests.gpu.test_cuda_chunks import (
    BACKWARD,
    BOTH,
    DRAWS,
    FORWARD,
    assert_close,
    assert_same_bits,
    compiled,
    plan_of,
    tensors_for,
)
from tests.public.scans import Case
from tests.strategies import Sizes

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# Chunks of 2 tokens, so that short scans have many windows and few tokens have many programs.
SMALL = TritonLookbackConfig(rows=1, num_warps=1, tokens=2, window=4)
# Several rows and warps a program, and a window that is a chunk.
OTHER = TritonLookbackConfig(rows=4, num_warps=2, tokens=3, window=1)
ROWS = TritonRowsConfig(1, 1, 2)
CONFIGS = pytest.mark.parametrize("config", [SMALL, OTHER], ids=["small", "other"])

CASES = (
    Case(1, "dictionary"),
    Case(32, "dictionary"),
    Case(32, "dictionary", "row"),
    Case(40, "token"),
    Case(33, "dictionary", map_class="permutation"),
    Case(16, "token", "row", dtype=torch.complex128),
    Case(48, "none"),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case: Case, device: torch.device) -> None:
    # The heuristic's tokens take a compiler a quarter of a minute a kernel where they collide, and
    # lengths as different as these want eight of them.
    heuristic = case.orientation == "row" or case.state_size == 1
    scan = compiled(case, device, "triton-lookback" if heuristic else SMALL)
    assert scan.schedule.template.name == "triton-lookback"
    for draw in DRAWS:
        maps = draw.maps
        if case.map_class == "permutation" and maps in ("random", "collide"):
            maps = "permutation"
        assert_agrees(scan, case, draw._replace(maps=maps), device)


@BOTH
@CONFIGS
def test_every_length_about_chunks_and_windows(
    program: Program, config: TritonLookbackConfig, device: torch.device
) -> None:
    chunks, rows = plan_of(program, device, config), plan_of(program, device, ROWS)
    for length in (*range(18), 23, 24, 25, 95, 96, 97, 1000, 3001):
        tensors = tensors_for(program, Sizes(2, length, 3), device)
        assert_close(chunks.run(tensors), rows.run(tensors))


@BOTH
@CONFIGS
@pytest.mark.parametrize("sizes", [Sizes(1, 12001, 3), Sizes(40, 130, 90)], ids=["few", "many"])
def test_many_more_programs_than_run_at_once(
    program: Program, config: TritonLookbackConfig, sizes: Sizes, device: torch.device
) -> None:
    """Up to a quarter of a million programs: they end, agree, and repeat to the bit."""
    tensors = tensors_for(program, sizes, device)
    plan = plan_of(program, device, config)
    want = plan.run(tensors)
    assert_close(want, plan_of(program, device, ROWS).run(tensors))
    for _ in range(20):
        assert_same_bits(plan.run(tensors), want)


def test_launches_of_several_streams_at_once(device: torch.device) -> None:
    """Programs of one launch keep those of others from a processor, and none waits for ever."""
    plans = [plan_of(program, device, SMALL) for program in (FORWARD, BACKWARD)]
    calls = [
        (plan, tensors_for(plan.program, Sizes(2, 6000, 20), device, seed))
        for seed in range(4)
        for plan in plans
    ]
    want = [plan.run(tensors) for plan, tensors in calls]
    streams = [torch.cuda.Stream(device) for _ in calls]
    torch.cuda.synchronize()
    for _ in range(5):
        got = []
        for stream, (plan, tensors) in zip(streams, calls, strict=True):
            with torch.cuda.stream(stream):
                got.append(plan.run(tensors))
        torch.cuda.synchronize()
        for mine, theirs in zip(got, want, strict=True):
            assert_same_bits(mine, theirs)


@BOTH
def test_graph_replay_clears_what_programs_told_one_another(
    program: Program, device: torch.device
) -> None:
    plan = plan_of(program, device, SMALL)
    held = tensors_for(program, Sizes(1, 2050, 2), device)
    side = torch.cuda.Stream(device)
    with torch.cuda.stream(side):
        plan.run(held)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        captured = plan.run(held)
    for seed in (4, 5, 6):
        for mine, new in zip(
            held, tensors_for(program, Sizes(1, 2050, 2), device, seed), strict=True
        ):
            mine.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        found = [tensor.clone() for tensor in captured]
        assert_same_bits(found, plan.run(held))
