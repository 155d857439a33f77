"""cpu-rows: where local arrays live, what is prefetched, where a scatter starts from."""

import pytest
import torch

from pdssm_compiler.ir import Program
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.ir.types import Map, Vector
from pdssm_compiler.runtime.backends.tvm_cpu import TvmCpu
from pdssm_compiler.runtime.compile_service import config_text
from pdssm_compiler.runtime.plan import Plan
from pdssm_compiler.schedules.emit.stages import plan_stages
from pdssm_compiler.schedules.emit.tvm import serial_reach
from pdssm_compiler.schedules.source import KernelSource
from pdssm_compiler.schedules.target import cpu_target
from pdssm_compiler.schedules.templates.cpu_rows import CpuRows, CpuRowsConfig
from tests.kernels import assert_runs
from tests.strategies import Sizes, arrays_for

CPU = torch.device("cpu")


def agrees(program: Program, config: CpuRowsConfig, shapes: tuple[Sizes, ...]) -> None:
    plan = Plan(program, CPU, 0, None, config_text(config))
    for seed, sizes in enumerate(shapes):
        arrays = arrays_for(program, sizes, seed)
        assert_runs(lambda _, t, __: plan.run(t), program, arrays, sizes, "dense")


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("backward", [False, True])
def test_prefetch_at_the_ends_of_a_sequence(prefetch: int, backward: bool) -> None:
    program = pd_scan(PdScan(9, 3, map_storage="i64"))
    if backward:
        program = adjoint(program).program
    shapes = (Sizes(2, 0, 2), Sizes(1, 1, 3), Sizes(2, 2, 2), Sizes(2, 5, 1))
    agrees(program, CpuRowsConfig(2, prefetch=prefetch), shapes)


def test_prefetch_reaches_every_line_of_a_vector_once() -> None:
    program = pd_scan(PdScan(33, map_source="token", map_storage="u8", final_state=True))
    text = CpuRows().lower(program, cpu_target(), CpuRowsConfig(1)).text
    parallel = text[: text.index("def scan_serial")]
    # Complex64: 8 elements a line, 5 lines; bytes: 1 line. Outputs are asked for to be written.
    asked = {
        "diagonal[b, T.min(t + 1, L - 1), h, line * 8, 0]": 0,
        "drive[b, T.min(t + 1, L - 1), h, line * 8, 0]": 0,
        "destination[b, T.min(t + 1, L - 1), h, line * 64]": 0,
        "states[b, T.min(t + 1, L - 1), h, line * 8, 0]": 1,
    }
    for place, write in asked.items():
        assert parallel.count(f"T.address_of({place}), T.int32({write})") == 1
    assert parallel.count("llvm.prefetch") == len(asked)
    assert parallel.count("for line in T.serial(5)") == 3
    assert parallel.count("for line in T.serial(1)") == 1


def test_a_negative_prefetch_is_refused() -> None:
    refused = CpuRows().feasible(
        pd_scan(PdScan(8, 2)), cpu_target(), CpuRowsConfig(1, prefetch=-1)
    )
    assert refused == "prefetch is a number of tokens up to 1024, not -1"


def lowered(state_size: int) -> KernelSource:
    return CpuRows().lower(pd_scan(PdScan(state_size, 2)), cpu_target(), CpuRowsConfig(1))


@pytest.mark.parametrize(("state_size", "on_stack"), [(32, True), (2048, True), (3000, False)])
def test_small_arrays_are_on_the_stack(state_size: int, on_stack: bool) -> None:
    """State, products and sums: three complex arrays, up to 64 KiB together."""
    (code,) = (
        data
        for name, data in TvmCpu().compile(lowered(state_size), 0).items()
        if name.endswith(".o")
    )
    assert (b"TVMBackendAllocWorkspace" in code) != on_stack


def test_large_arrays_agree() -> None:
    agrees(pd_scan(PdScan(3000, 2)), CpuRowsConfig(2), (Sizes(1, 3, 3),))


def scattering(left: bool, twice: bool, leaf: str) -> Program:
    """A scatter-add, and a leaf added on one side of it."""
    vector = Vector("c64")
    build = b.ProgramBuilder(6)
    drive = build.input("drive", vector)
    state = build.carry("state", vector)
    map_ = build.input("destination", Map("general"))
    moved = b.scatter_add(b.mul(drive, b.neg(drive)), map_)
    added = drive if leaf == "drive" else state
    following = b.add(added, moved) if left else b.add(moved, added)
    build.emit("states", b.mul(following, following))
    if twice:
        build.emit("moved", moved)
    build.next("state", b.gather(following, map_))
    return build.build()


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("leaf", ["drive", "state"])
def test_a_scatter_starts_from_what_is_added(left: bool, twice: bool, leaf: str) -> None:
    program = scattering(left, twice, leaf)
    stages = plan_stages(program, serial_reach(True))
    assert [(filled.op, seed.name) for filled, seed in stages.seeds.items()] == (
        [] if twice else [("scatter_add", leaf)]
    )
    for split_scatter in (True, False):
        agrees(program, CpuRowsConfig(2, split_scatter), (Sizes(2, 3, 3),))
