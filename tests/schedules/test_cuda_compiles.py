"""The TVM CUDA backend without a GPU: kernels of whole rows for every NVIDIA architecture, by both
compilers, and what a launch passes to them.
"""

import pytest
import torch
from hypothesis import strategies as st

from pdssm_compiler.ir import Program
from pdssm_compiler.ir.passes import adjoint, specialise
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.backends import Sizes, cuda_compilers, tvm_cuda
from pdssm_compiler.runtime.backends.cubin import cubin_resources
from pdssm_compiler.runtime.backends.cuda_driver import driver
from pdssm_compiler.runtime.compile_service import choose
from pdssm_compiler.runtime.errors import BackendUnavailableError
from pdssm_compiler.schedules.emit.cuda_kernel import registers_of
from pdssm_compiler.schedules.source import KernelSource
from pdssm_compiler.schedules.target import named_target
from pdssm_compiler.schedules.templates.base import Problem
from pdssm_compiler.schedules.templates.cuda_rows import CudaRows, CudaRowsConfig
from pdssm_compiler.schedules.templates.cuda_step import CudaStep, CudaStepConfig
from tests.kernels import few, under_stress
from tests.schedules.cuda import (
    ARCHS,
    BACKEND,
    H100,
    SUMS,
    WHICH,
    Handed,
    Record,
    active_adjoint,
    compiled,
    launches,
    lowered,
    resources,
    scan_of,
    tensors_for,
)
from tests.strategies import programs

TEMPLATE = CudaRows()


def small() -> KernelSource:
    """A forward scan of 8 states by 4 maps."""
    return lowered(TEMPLATE, pd_scan(PdScan(8, 4)))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("which", WHICH)
def test_compiles_without_spills(arch: str, which: str, record_property: Record) -> None:
    found = resources(lowered(TEMPLATE, scan_of(which), arch), record_property)
    # ptxas keeps a few bytes of stack for predicates where it saves a whole step of registers.
    assert found["spilled"] <= 16


@pytest.mark.parametrize("state_size", [1, 33, 100, 256, *under_stress(5, 64, 128)])
def test_any_state_size_compiles(state_size: int, record_property: Record) -> None:
    program = pd_scan(PdScan(state_size, 4, initial_state=True, final_state=True))
    source = lowered(TEMPLATE, program)
    assert source.config["team"] == -(-state_size // 32)
    assert source.options["threads"] == 32 * (source.config["team"] + 1)
    assert resources(source, record_property)["spilled"] <= 64


def test_a_step_that_is_launched_early_waits() -> None:
    """Before it reads anything; where the GPU cannot, it is refused."""
    template, program = CudaStep(), pd_scan(PdScan(32, 4, initial_state=True, final_state=True))
    for early in (False, True):
        config = CudaStepConfig(4, early=early)
        source = template.lower(specialise(program), H100, config)
        ptx = BACKEND.stages(source, compiled(source))["ptx"]()
        before, waits, after = ptx.partition("griddepcontrol.wait;")
        assert bool(waits) is early
        assert not early or ("ld.global" not in before and "ld.global" in after)
    older = named_target("sm_80")
    assert template.feasible(specialise(program), older, config) == (
        "cuda:sm_80 launches no kernel while another ends; GPUs do since sm_90"
    )
    assert not any(each.early for each in template.space(program, older))


def test_how_a_step_is_launched_early(monkeypatch: pytest.MonkeyPatch) -> None:
    program = pd_scan(PdScan(4, 2, initial_state=True, final_state=True))
    sizes = Sizes(2, 1, 3)
    handed = []
    for early in (False, True):
        source = CudaStep().lower(specialise(program), H100, CudaStepConfig(4, early=early))
        tensors = tensors_for(source, sizes)
        handed += launches(monkeypatch, source, tensors, sizes)
    assert [each.pop("how") for each in handed] == ["launch", "launch_early"]
    assert [each["grid"] for each in handed] == [2, 2]


@pytest.mark.parametrize("arch", [*under_stress("sm_80"), "sm_90"])
@pytest.mark.parametrize(
    ("state_size", "size", "name"),
    [
        (257, 4, "cuda-rows"),
        (1000, 2, "cuda-rows"),
        (256, 256, "cuda-rows"),
        (4096, 6, "cuda-step"),
    ],
)
def test_wide_rows_compile(
    state_size: int, size: int, name: str, arch: str, record_property: Record
) -> None:
    """In as many registers as a block of so many warps leaves each."""
    program = specialise(pd_scan(PdScan(state_size, size, final_state=True)))
    schedule = choose(program, named_target(arch))
    assert schedule.template.name == name
    source = schedule.template.lower(program, named_target(arch), schedule.config)
    found = resources(source, record_property)
    assert found["spilled"] <= 64
    assert found["registers"] <= registers_of(H100, source.options["threads"])


@pytest.mark.parametrize("state_size", [257, 1000, 1024, 2816, 4096])
@pytest.mark.parametrize(
    ("size", "source", "map_class", "orientation"),
    [
        (1, "dictionary", "general", "column"),
        (256, "dictionary", "general", "row"),
        (256, "dictionary", "permutation", "column"),
        (None, "token", "permutation", "row"),
        (None, "none", "general", "column"),
    ],
)
def test_every_wide_scan_has_a_template(
    size: int | None, source: str, map_class: str, orientation: str, state_size: int
) -> None:
    program = pd_scan(
        PdScan(
            state_size, size, map_source=source, map_class=map_class, orientation=orientation,
            final_state=True,
        )
    )  # fmt: skip
    for each in (program, adjoint(program, surrogate="active").program):
        found = choose(specialise(each), named_target("sm_80"), problem=Problem(999, 999))
        assert found.template.name in ("cuda-rows", "cuda-step")


@pytest.mark.parametrize(
    ("state_size", "team"), [(33, 1), (100, 1), (100, 2), (256, 3), (8, 2), (40, 31)]
)
def test_any_team_compiles(state_size: int, team: int, record_property: Record) -> None:
    """Several elements a lane, and more lanes than elements."""
    program = pd_scan(PdScan(state_size, 4, final_state=True))
    source = lowered(TEMPLATE, program, config=CudaRowsConfig(2, 3, team=team))
    assert source.options["threads"] == 32 * (team + 1)
    assert resources(source, record_property)["spilled"] <= 64


@pytest.mark.parametrize("scan", [*SUMS, (32, 500, "c64", "column")], ids=str)
def test_sums_by_an_index_compile(
    scan: tuple[int, int, str, str], record_property: Record
) -> None:
    """In global memory, whatever their size, without waiting for what was there."""
    source = lowered(TEMPLATE, active_adjoint(*scan))
    files = compiled(source)
    assert BACKEND.load(source, 16, files).resources()["spilled"] <= 64
    stages = BACKEND.stages(source, files)
    assert "red.global.add.f" in stages["ptx"]() or "atom.global.add.f" in stages["ptx"]()
    assert "ATOMG" not in stages["sass"]()


@pytest.mark.parametrize("map_source", ["token", "none"])
def test_other_sources_of_maps_compile(map_source: str, record_property: Record) -> None:
    for state_size in (32, 64):
        program = pd_scan(PdScan(state_size, None, map_source=map_source))
        assert resources(lowered(TEMPLATE, program), record_property)["spilled"] <= 64


@few(4, program=st.sampled_from((32, 64)).flatmap(lambda bits: programs(precision=bits)))
def test_random_bodies_become_cuda(program: Program) -> None:
    derived = adjoint(program, surrogate="active")
    for each in (derived.forward, derived.program):
        if TEMPLATE.feasible(specialise(each), H100, CudaRowsConfig(2, 3)) is None:
            text = tvm_cuda.cuda_text(lowered(TEMPLATE, each, config=CudaRowsConfig(2, 3)))
            assert cubin_resources(cuda_compilers.compile_cuda(text, "sm_90"))["registers"] > 0


@pytest.mark.parametrize("payload", ["", "cb32", "c32"])
@pytest.mark.parametrize("compiler", ["nvcc", "NVRTC"])
def test_each_compiler(compiler: str, payload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVRTC comes without headers: numbers of 16 bits may need none."""
    program = pd_scan(PdScan(8, 3, payload_storage=payload, final_state=True))
    text = tvm_cuda.cuda_text(lowered(TEMPLATE, program))
    if compiler == "nvcc":
        if not cuda_compilers.nvcc():
            pytest.skip("no nvcc here: the other compiler is tested")
        monkeypatch.setattr(cuda_compilers, "nvrtc", lambda: None)
    else:
        monkeypatch.setattr(cuda_compilers, "nvcc", lambda: None)
    assert cubin_resources(cuda_compilers.compile_cuda(text, "sm_90"))["registers"] > 0
    with pytest.raises(BackendUnavailableError, match=f"{compiler} refuses a kernel for sm_90"):
        cuda_compilers.compile_cuda("this is no CUDA", "sm_90")


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_compilers, "nvcc", lambda: None)
    monkeypatch.setattr(cuda_compilers, "nvrtc", lambda: None)
    monkeypatch.setenv(settings.CACHE_ENABLED, "0")
    source = lowered(TEMPLATE, pd_scan(PdScan(8, 3)))
    with pytest.raises(BackendUnavailableError, match="neither nvcc nor NVRTC is here: install"):
        BACKEND.compile(source, 16)
    schedule = choose(source.program, H100)
    assert schedule.template.name == "triton-rows"
    assert "without cuda-rows: neither nvcc nor NVRTC" in schedule.reason


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(name: str) -> None:
        raise OSError(f"{name}: not found")

    driver.cache_clear()
    monkeypatch.setattr("ctypes.CDLL", no_library)
    with pytest.raises(BackendUnavailableError, match="the NVIDIA driver cannot be loaded"):
        driver()
    driver.cache_clear()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (CudaRowsConfig(3, 4), "tile must be even, from 2 to 32, not 3"),
        (CudaRowsConfig(34, 4), "tile must be even, from 2 to 32, not 34"),
        (CudaRowsConfig(8, 2), "slots is at least 3, not 2"),
        (CudaRowsConfig(8, 4, 3), "sets is 1 or 2, not 3"),
        (CudaRowsConfig(8, 4, team=0), "team is from 1 to 31, not 0"),
        (CudaRowsConfig(8, 4, team=32), "team is from 1 to 31, not 32"),
        (CudaRowsConfig(8, 4, tables=3), "tables is 0, 1 or 2, not 3"),
        (CudaRowsConfig(32, 20), "bytes of shared memory are more than"),
        (CudaRowsConfig(8, 4, helpers=9), "helpers is from 0 to 8, not 9"),
        (CudaRowsConfig(8, 4, helpers=1), "there is nothing that helpers could compute ahead"),
    ],
)
def test_feasible_says_why_not(config: CudaRowsConfig, reason: str) -> None:
    refused = TEMPLATE.feasible(specialise(pd_scan(PdScan(32, 4))), H100, config)
    assert refused is not None
    assert reason in refused


def test_feasible_refuses_what_a_warp_cannot_hold() -> None:
    program = specialise(pd_scan(PdScan(257, 4)))
    refused = TEMPLATE.feasible(program, H100, CudaRowsConfig(2, 3))
    assert refused == "a state size of 257 is more than 256, what a team holds"
    step = CudaStep().feasible(program, H100, CudaStepConfig(2))
    assert step == "a state size of 257 is more than 256, what a team holds"
    assert CudaStep().feasible(program, H100, CudaStepConfig(16, 2)) == (
        "16 teams are more than a block has barriers for"
    )
    assert CudaStep().feasible(program, H100, CudaStepConfig(5, 9)) == (
        "45 warps are more than a block has"
    )
    wide = specialise(pd_scan(PdScan(4096, 4)))
    refused = TEMPLATE.feasible(wide, H100, TEMPLATE.heuristic(wide, H100, Problem()))
    assert refused is not None
    assert "bytes of shared memory are more than 232448" in refused
    amd = TEMPLATE.feasible(program, named_target("gfx942"), CudaRowsConfig(2, 3))
    assert amd == "cuda-rows is for NVIDIA GPUs, not for hip:gfx942"


def handed(
    monkeypatch: pytest.MonkeyPatch, tensors: list[torch.Tensor], sizes: Sizes
) -> list[Handed]:
    return launches(monkeypatch, small(), tensors, sizes)


def scan_tensors() -> list[torch.Tensor]:
    """diagonal, dictionary, drive, selection, states of B=2, T=3, H=2, N=8, K=4."""
    return tensors_for(small(), Sizes(2, 3, 2))


def test_a_launch_passes_pointers_strides_and_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = scan_tensors()
    # What a copy is as wide as depends on the selection's layout as well: 12 elements a sequence.
    (found,) = handed(monkeypatch, tensors, Sizes(2, 3, 2))
    assert found["grid"] == found["blocks"] == 4
    assert (found["threads"], found["stream"]) == (64, 7)
    assert (found["L"], found["H"]) == (3, 2)
    assert found["in_diagonal0_ptr"] == tensors[0].data_ptr()
    assert found["out_states0_ptr"] == tensors[4].data_ptr()
    assert [found[f"in_drive0_s{axis}"] for axis in "BLH"] == [96, 32, 16]
    assert [found[f"in_selection0_s{axis}"] for axis in "BLH"] == [6, 2, 1]
    assert found["in_dictionary0_sH"] == 32
    assert found["aligned"] == 1


def test_a_launch_says_whether_wide_copies_are_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    expanded = scan_tensors()
    expanded[0] = torch.zeros(1, 1, 1, 8, 2).expand(2, 3, 2, 8, 2)
    assert handed(monkeypatch, expanded, Sizes(2, 3, 2))[0]["aligned"] == 1
    shifted = scan_tensors()
    shifted[2] = torch.zeros(2 * 3 * 2 * 8 * 2 + 2)[2:].view(2, 3, 2, 8, 2)
    assert handed(monkeypatch, shifted, Sizes(2, 3, 2))[0]["aligned"] == 0
    spread = scan_tensors()
    spread[0] = torch.zeros(2, 3, 2, 9, 2)[:, :, :, :8]
    assert handed(monkeypatch, spread, Sizes(2, 3, 2))[0]["aligned"] == 0


def test_rows_of_odd_sizes_are_copied_by_the_units_they_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows of 40 bytes, by 8: wide copies are safe where they start at multiples of that."""
    source = lowered(TEMPLATE, pd_scan(PdScan(5, 4)))
    sizes = Sizes(2, 3, 2)
    dense = tensors_for(source, sizes)
    assert launches(monkeypatch, source, dense, sizes)[0]["aligned"] == 1
    shifted = list(dense)
    shifted[2] = torch.zeros(2 * 3 * 2 * 5 * 2 + 2)[2:].view(2, 3, 2, 5, 2)
    assert launches(monkeypatch, source, shifted, sizes)[0]["aligned"] == 1
    shifted[2] = torch.zeros(2 * 3 * 2 * 5 * 2 + 1)[1:].view(2, 3, 2, 5, 2)
    assert launches(monkeypatch, source, shifted, sizes)[0]["aligned"] == 0


def test_an_empty_call_launches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert handed(monkeypatch, scan_tensors(), Sizes(0, 3, 2)) == []
