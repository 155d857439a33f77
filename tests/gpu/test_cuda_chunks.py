"""``cuda-chunks``, and teams of ``cuda-rows``, on a GPU: blocks that wait for one another give
what the plain loop gives, the same bits each time, whatever runs beside them.
"""

from dataclasses import replace

import pytest
import torch

import pdssm_compiler
from pdssm_compiler.ir import Program
from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime.compile_service import config_text
from pdssm_compiler.runtime.devices import target_of
from pdssm_compiler.runtime.plan import Plan
from pdssm_compiler.schedules.emit.cuda_kernel import has_clusters
from pdssm_compiler.schedules.templates.cuda_chunks import CudaChunksConfig
from pdssm_compiler.schedules.templates.cuda_rows import CudaRowsConfig
from tests.gpu.agreement import assert_agrees
from tests.kernels import tensors_of
from tests.public.scans import Case, Draw, inputs
from tests.strategies import Sizes, arrays_for

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# Chunks of 8 tokens, so that short scans have many windows.
SMALL = CudaChunksConfig(4, 2, 3)
ROWS = CudaRowsConfig(2, 3)
FORWARD = pd_scan(PdScan(32, 4, initial_state=True, final_state=True))
# Two warps a team, of which the second is not full, and sums by an index.
BACKWARD = adjoint(pd_scan(PdScan(40, 3)), surrogate="active").program
BOTH = pytest.mark.parametrize("program", [FORWARD, BACKWARD], ids=["forward", "backward"])

CASES = (
    Case(1, "dictionary"),
    Case(32, "dictionary", "row"),
    Case(33, "dictionary"),
    Case(40, "token"),
    Case(100, "dictionary", map_class="permutation"),
    Case(16, "token", "row", dtype=torch.complex128),
    Case(48, "none"),
    Case(256, "dictionary"),
)
# Lengths that end at a chunk's end, inside one, inside a window; none; many windows.
DRAWS = (
    Draw(2, 64, 3, "random", "disk", 1),
    Draw(1, 301, 2, "collide", "disk", 2),
    Draw(2, 0, 3, "identity", "zero", 3),
    Draw(1, 1, 1, "permutation", "one", 4),
    Draw(1, 1999, 1, "permutation", "nearly one", 5),
)


def compiled(case: Case, device: torch.device, config: object) -> pdssm_compiler.CompiledScan:
    size = case.dictionary_size if case.source == "dictionary" else None
    spec = pdssm_compiler.ScanSpec(
        case.state_size,
        size,
        dtype=case.dtype,
        map_source=case.source,
        map_class=case.map_class,
        orientation=case.orientation,
    )
    return pdssm_compiler.compile(
        spec, device, config=config, initial_state=True, output_final_state=True
    )


def plan_of(program: Program, device: torch.device, config: object) -> Plan:
    return Plan(program, device, 16, config=config_text(config))


def small(device: torch.device) -> list[CudaChunksConfig]:
    """Small chunks by each way that the device has to hand carries on."""
    clusters = (0, 1) if has_clusters(target_of(device)) else (0,)
    return [replace(SMALL, clusters=each) for each in clusters]


def tensors_for(
    program: Program, sizes: Sizes, device: torch.device, seed: int = 9
) -> list[torch.Tensor]:
    arrays = arrays_for(program, sizes, seed)
    return [tensor.to(device) for tensor in tensors_of(program, arrays, "dense")]


def assert_same_bits(got: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    for mine, theirs in zip(got, want, strict=True):
        assert not mine.isnan().any()
        assert torch.equal(mine, theirs)


def assert_close(got: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("template", ["cuda-chunks", "cuda-rows"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case: Case, template: str, device: torch.device) -> None:
    scan = compiled(case, device, template)
    assert scan.schedule.template.name == template
    for draw in DRAWS:
        maps = draw.maps
        if case.map_class == "permutation" and maps in ("random", "collide"):
            maps = "permutation"
        assert_agrees(scan, case, draw._replace(maps=maps), device)


@BOTH
def test_every_length_about_chunks_and_windows(program: Program, device: torch.device) -> None:
    chunks = [plan_of(program, device, config) for config in small(device)]
    rows = plan_of(program, device, ROWS)
    for length in (*range(18), 23, 24, 25, 95, 96, 97, 383, 384, 385, 1000, 3001):
        tensors = tensors_for(program, Sizes(2, length, 2), device)
        want = rows.run(tensors)
        for plan in chunks:
            assert_close(plan.run(tensors), want)


@BOTH
@pytest.mark.parametrize("rows", [131, 132, 133, 5000])
def test_more_rows_than_blocks(program: Program, rows: int, device: torch.device) -> None:
    """Blocks go from row to row; what they leave for one another is each row's own."""
    tensors = tensors_for(program, Sizes(1, 45, rows), device)
    want = plan_of(program, device, ROWS).run(tensors)
    for config in small(device):
        assert_close(plan_of(program, device, config).run(tensors), want)


@BOTH
@pytest.mark.parametrize("sizes", [Sizes(1, 4001, 3), Sizes(40, 130, 9)], ids=["few", "many"])
def test_twenty_runs_give_the_same_bits(
    program: Program, sizes: Sizes, device: torch.device
) -> None:
    tensors = tensors_for(program, sizes, device)
    for config in ("cuda-chunks", *small(device), "cuda-rows"):
        plan = plan_of(program, device, config)
        want = plan.run(tensors)
        for _ in range(20):
            assert_same_bits(plan.run(tensors), want)


def test_launches_of_several_streams_at_once(device: torch.device) -> None:
    """Kernels, each with as many blocks as the device runs at once: they take turns."""
    configs = ("cuda-chunks", small(device)[-1])
    plans = [plan_of(each, device, config) for each in (FORWARD, BACKWARD) for config in configs]
    calls = [
        (plan, tensors_for(plan.program, Sizes(1, 6000, 2), device, seed))
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
def test_graph_replay_of_every_way_to_hand_carries_on(
    program: Program, device: torch.device
) -> None:
    """Captured, with what a launch asks the driver for asked before."""
    for config in small(device):
        plan, sizes = plan_of(program, device, config), Sizes(1, 999, 2)
        tensors = tensors_for(program, sizes, device)
        plan.run(tensors)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = plan.run(tensors)
        for seed in (4, 5):
            others = tensors_for(program, sizes, device, seed)
            for tensor, other in zip(tensors, others, strict=True):
                tensor.copy_(other)
            graph.replay()
            torch.cuda.synchronize()
            found = [tensor.clone() for tensor in captured]
            assert_same_bits(found, plan.run(tensors))


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
def test_graph_replay_on_new_numbers(backward: bool, device: torch.device) -> None:
    """What blocks leave for one another is cleared at every replay."""
    case = Case(32, "dictionary")
    scan = compiled(case, device, "cuda-chunks")

    def inputs_of(seed: int) -> dict[str, torch.Tensor]:
        drawn = inputs(case, Draw(1, 2050, 2, "random", "disk", seed))
        return {name: tensor.to(device) for name, tensor in drawn.items()}

    call = inputs_of(3)
    leaves = [call["diagonal"].requires_grad_(), call["drive"].requires_grad_()]

    def step() -> list[torch.Tensor]:
        states, _ = scan(**call)
        grads = torch.autograd.grad(states, leaves, torch.ones_like(states)) if backward else ()
        return [states.detach(), *grads]

    side = torch.cuda.Stream(device)
    with torch.cuda.stream(side):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        captured = step()
    for seed in (4, 5, 6):
        with torch.no_grad():
            for name, tensor in inputs_of(seed).items():
                call[name].copy_(tensor)
        graph.replay()
        torch.cuda.synchronize()
        found = [tensor.clone() for tensor in captured]
        assert_same_bits(found, step())


def test_the_worst_map(device: torch.device) -> None:
    """Every source of every token goes to one target: no slower way, and no other sum."""
    case = Case(64, "token")
    for template in ("cuda-chunks", "cuda-rows"):
        scan = compiled(case, device, template)
        assert_agrees(scan, case, Draw(2, 700, 2, "collide", "disk", 8), device)


def test_a_layout_that_allows_no_wide_copies(device: torch.device) -> None:
    arrays = arrays_for(FORWARD, Sizes(2, 205, 3), 9)
    for config in small(device):
        chunks = plan_of(FORWARD, device, config)
        want = chunks.run([t.to(device) for t in tensors_of(FORWARD, arrays, "dense")])
        for layout in ("reversed", "spread"):
            strided = [
                torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device).copy_(t)
                for t in tensors_of(FORWARD, arrays, layout)
            ]
            assert_same_bits(chunks.run(strided), want)


def test_an_empty_call_launches_nothing(device: torch.device) -> None:
    for sizes in (Sizes(0, 40, 2), Sizes(2, 40, 0)):
        tensors = tensors_for(FORWARD, sizes, device)
        for config in small(device):
            outputs = plan_of(FORWARD, device, config).run(tensors)
            assert [output.numel() for output in outputs] == [0] * len(outputs)
