"""The TVM CUDA backend without a GPU: kernels for every NVIDIA architecture, by both compilers,
and what a launch passes to them.
"""

import json
import struct
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from hypothesis import strategies as st

from pdssm_compiler.ir import Program
from pdssm_compiler.ir.passes import adjoint, specialise
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime.backends import BACKENDS, Sizes, cuda_compilers, tvm_cuda
from pdssm_compiler.runtime.backends.cubin import cubin_resources
from pdssm_compiler.runtime.backends.cuda_driver import driver
from pdssm_compiler.runtime.compile_service import choose
from pdssm_compiler.runtime.errors import BackendUnavailableError
from pdssm_compiler.schedules.source import KernelSource
from pdssm_compiler.schedules.target import named_target
from pdssm_compiler.schedules.templates.base import Problem
from pdssm_compiler.schedules.templates.cuda_rows import CudaRows, CudaRowsConfig
from tests.kernels import few
from tests.strategies import programs

Record = Callable[[str, object], None]

TEMPLATE = CudaRows()
BACKEND = BACKENDS["tvm-cuda"]
H100 = named_target("sm_90")


def lowered(program: Program, arch: str = "sm_90", config: CudaRowsConfig | None = None):
    """The source of a program, by the heuristic where no config is given."""
    target, program = named_target(arch), specialise(program)
    return TEMPLATE.lower(
        program, target, config or TEMPLATE.heuristic(program, target, Problem())
    )


def resources(source: KernelSource, record: Record) -> dict[str, int]:
    files = BACKEND.compile(source, 16)
    assert files["source.py"].decode() == source.text
    found = BACKEND.load(source, 16, files).resources()
    for name, value in found.items():
        record(name, value)
    return found


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "sm_120"])
@pytest.mark.parametrize("which", ["general", "permutation", "adjoint", "active adjoint"])
def test_compiles_without_spills(arch: str, which: str, record_property: Record) -> None:
    map_class = "permutation" if which == "permutation" else "general"
    program = pd_scan(PdScan(32, 4, map_class=map_class, final_state=True))
    if "adjoint" in which:
        program = adjoint(program, surrogate="active" if "active" in which else None).program
    source = lowered(program, arch)
    found = resources(source, record_property)
    assert 0 < found["registers"] <= source.target.registers
    # ptxas keeps a few bytes of stack for predicates where it saves a whole step of registers.
    assert found["spilled"] <= 16
    assert 0 < found["shared_bytes"] <= source.target.shared_memory


@pytest.mark.parametrize("state_size", [1, 5, 33, 64, 100, 128, 256])
def test_any_state_size_compiles(state_size: int, record_property: Record) -> None:
    program = pd_scan(PdScan(state_size, 4, initial_state=True, final_state=True))
    found = resources(lowered(program), record_property)
    assert found["spilled"] <= 64


@pytest.mark.parametrize(
    "program",
    [
        adjoint(pd_scan(PdScan(n, k, element, orientation=o)), surrogate="active").program
        for n, k, element, o in (
            (5, 3, "c64", "column"),
            (32, 500, "c64", "row"),
            (33, 4, "c128", "column"),
            (128, 8, "c64", "row"),
        )
    ],
    ids=["N5", "N32-K500", "N33-c128", "N128"],
)
def test_sums_by_an_index_compile(program: Program, record_property: Record) -> None:
    """In global memory, whatever their size, without waiting for what was there."""
    source = lowered(program)
    files = BACKEND.compile(source, 16)
    assert BACKEND.load(source, 16, files).resources()["spilled"] <= 64
    stages = BACKEND.stages(source, files)
    assert "red.global.add.f" in stages["ptx"]() or "atom.global.add.f" in stages["ptx"]()
    assert "ATOMG" not in stages["sass"]()


@pytest.mark.parametrize("map_source", ["token", "none"])
def test_other_sources_of_maps_compile(map_source: str, record_property: Record) -> None:
    for state_size in (32, 64):
        program = pd_scan(PdScan(state_size, None, map_source=map_source))
        assert resources(lowered(program), record_property)["spilled"] <= 64


@few(8, program=st.sampled_from((32, 64)).flatmap(lambda bits: programs(precision=bits)))
def test_random_bodies_become_cuda(program: Program) -> None:
    derived = adjoint(program, surrogate="active")
    for each in (derived.forward, derived.program):
        if TEMPLATE.feasible(specialise(each), H100, CudaRowsConfig(2, 3)) is None:
            text = tvm_cuda.cuda_text(lowered(each, config=CudaRowsConfig(2, 3)))
            assert cubin_resources(cuda_compilers.compile_cuda(text, "sm_90"))["registers"] > 0


@pytest.mark.parametrize("compiler", ["nvcc", "NVRTC"])
def test_each_compiler(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tvm_cuda.cuda_text(lowered(pd_scan(PdScan(8, 3))))
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
    source = lowered(pd_scan(PdScan(8, 3)))
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
        (CudaRowsConfig(32, 20), "bytes of shared memory are more than"),
    ],
)
def test_feasible_says_why_not(config: CudaRowsConfig, reason: str) -> None:
    refused = TEMPLATE.feasible(specialise(pd_scan(PdScan(32, 4))), H100, config)
    assert refused is not None
    assert reason in refused


def test_feasible_refuses_what_a_warp_cannot_hold() -> None:
    program = specialise(pd_scan(PdScan(257, 4)))
    refused = TEMPLATE.feasible(program, H100, CudaRowsConfig(2, 3))
    assert refused == "a state size of 257 is more than 256"
    amd = TEMPLATE.feasible(program, named_target("gfx942"), CudaRowsConfig(2, 3))
    assert amd == "cuda-rows is for NVIDIA GPUs, not for hip:gfx942"


def launches(
    monkeypatch: pytest.MonkeyPatch, tensors: list[torch.Tensor], sizes: Sizes
) -> list[dict[str, int]]:
    """What the driver is handed, by name, when the tensors of a small scan are launched."""
    source = lowered(pd_scan(PdScan(8, 4)))
    files = BACKEND.compile(source, 16)
    parameters = json.loads(files["call.json"])
    layout = struct.Struct("@" + "".join(tvm_cuda.FORMATS[type_] for _, type_ in parameters))
    handed: list[dict[str, int]] = []

    class Recorder:
        def __init__(self, cubin: bytes, name: str, shared_bytes: int) -> None:
            assert (cubin, name) == (files["kernel.cubin"], "scan_kernel")
            assert shared_bytes == source.options["shared_bytes"]

        def launch(self, blocks: int, threads: int, packed: bytes, stream: int) -> None:
            names = [name for name, _ in parameters]
            values = dict(zip(names, layout.unpack(packed), strict=True))
            handed.append(values | {"blocks": blocks, "threads": threads, "stream": stream})

    monkeypatch.setattr(tvm_cuda, "DriverKernel", Recorder)
    stream = SimpleNamespace(cuda_stream=7)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    kernel = BACKEND.load(source, 16, files)
    kernel.launch(tensors, torch.zeros(1, dtype=torch.int64), sizes)
    return handed


def scan_tensors() -> list[torch.Tensor]:
    """diagonal, dictionary, drive, selection, states of B=2, T=3, H=2, N=8, K=4."""
    numbers = [torch.zeros(2, 3, 2, 8, 2) for _ in range(3)]
    dictionary = torch.zeros(2, 4, 8, dtype=torch.int32)
    selection = torch.zeros(2, 3, 2, dtype=torch.int32)
    return [numbers[0], dictionary, numbers[1], selection, numbers[2]]


def test_a_launch_passes_pointers_strides_and_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = scan_tensors()
    # What a copy is as wide as depends on the selection's layout as well: 12 elements a sequence.
    (handed,) = launches(monkeypatch, tensors, Sizes(2, 3, 2))
    assert handed["blocks"] == handed["rows"] == 4
    assert (handed["threads"], handed["stream"]) == (64, 7)
    assert (handed["L"], handed["H"]) == (3, 2)
    assert handed["diagonal_ptr"] == tensors[0].data_ptr()
    assert handed["states_ptr"] == tensors[4].data_ptr()
    assert [handed[f"drive_s{axis}"] for axis in "BLH"] == [96, 32, 16]
    assert [handed[f"selection_s{axis}"] for axis in "BLH"] == [6, 2, 1]
    assert handed["dictionary_sH"] == 32
    assert handed["aligned"] == 1


def test_a_launch_says_whether_wide_copies_are_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    expanded = scan_tensors()
    expanded[0] = torch.zeros(1, 1, 1, 8, 2).expand(2, 3, 2, 8, 2)
    assert launches(monkeypatch, expanded, Sizes(2, 3, 2))[0]["aligned"] == 1
    shifted = scan_tensors()
    shifted[2] = torch.zeros(2 * 3 * 2 * 8 * 2 + 2)[2:].view(2, 3, 2, 8, 2)
    assert launches(monkeypatch, shifted, Sizes(2, 3, 2))[0]["aligned"] == 0
    spread = scan_tensors()
    spread[0] = torch.zeros(2, 3, 2, 9, 2)[:, :, :, :8]
    assert launches(monkeypatch, spread, Sizes(2, 3, 2))[0]["aligned"] == 0


def test_an_empty_call_launches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launches(monkeypatch, scan_tensors(), Sizes(0, 3, 2)) == []
