"""``compile``: a scan made ahead of its first call, what it shows, and what it refuses."""

import importlib.util
from typing import Any

import pytest
import torch

from pdssm_compiler import (
    ArgumentError,
    BackendUnavailableError,
    CompiledScan,
    NoTemplateError,
    ScanSpec,
    compile,
    explain,
    pd_scan,
)
from pdssm_compiler.ir import passes, programs
from pdssm_compiler.runtime import compile_service
from pdssm_compiler.schedules.target import UnknownTargetError, named_target
from pdssm_compiler.schedules.templates.cpu_rows import CpuRowsConfig
from pdssm_compiler.schedules.templates.cuda_rows import CudaRowsConfig
from pdssm_compiler.schedules.templates.triton_rows import TritonRowsConfig
from tests.kernels import pairwise
from tests.public.scans import Case, Draw, Tensors, inputs

pytestmark = pytest.mark.usefixtures("no_shipped_logs")

SPEC = ScanSpec(7, 3)


def call(batch: int = 2, length: int = 5, heads: int = 3, case: Case | None = None) -> Tensors:
    case = case or Case(7, "dictionary")
    maps = "random" if case.map_class == "general" else case.map_class
    return inputs(case, Draw(batch, length, heads, maps, "disk", 1))


@pytest.mark.parametrize(
    ("source", "orientation", "map_class"),
    pairwise(
        ["dictionary", "token", "none"], ["column", "row"], ["general", "permutation", "identity"]
    ),
)
def test_it_is_called_like_pd_scan(source: str, orientation: str, map_class: str) -> None:
    size = 3 if source == "dictionary" else None
    spec = ScanSpec(7, size, map_source=source, map_class=map_class, orientation=orientation)
    scan = compile(spec, "cpu")
    case = Case(7, source, orientation, map_class)
    for sizes in ((2, 5, 3), (1, 1, 1), (3, 0, 2), (0, 4, 1)):
        tensors = call(*sizes, case)
        want = pd_scan(**tensors, **case.options, output_final_state=True)
        for mine, theirs in zip(scan(**tensors, output_final_state=True), want, strict=True):
            assert torch.equal(mine, theirs)
        states, final = scan(**tensors)
        assert final is None
        assert torch.equal(states, want[0])


def test_it_is_differentiable() -> None:
    scan, tensors = compile(SPEC, "cpu"), call()
    found = []
    for function in (scan, pd_scan):
        leaves = {n: t.clone().requires_grad_(t.is_complex()) for n, t in tensors.items()}
        states, final = function(**leaves, output_final_state=True)
        (states.abs().sum() + final.abs().sum()).backward()
        found.append([t.grad for t in leaves.values() if t.is_complex()])
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine, theirs)


def test_no_other_length_compiles_again(monkeypatch: pytest.MonkeyPatch) -> None:
    scan = compile(ScanSpec(13, 3), "cpu", initial_state=True)
    case = Case(13, "dictionary")
    scan(**call(case=case))

    def refuse(*_: Any) -> Any:
        raise AssertionError("compiled again")

    monkeypatch.setattr(compile_service, "obtain", refuse)
    for batch, length, heads in ((1, 1, 1), (2, 100, 5), (3, 7, 2)):
        assert scan(**call(batch, length, heads, case))[0].shape == (batch, length, heads, 13)


def test_what_it_shows() -> None:
    scan = compile(SPEC, "cpu", initial_state=True)
    program = programs.pd_scan(programs.PdScan(7, 3, initial_state=True))
    assert scan.program == program
    assert scan.specialised == passes.specialise(program)
    assert scan.adjoint.program == passes.adjoint(program).program
    assert scan.summary.combine == passes.summarise(program).combine
    assert scan.source.text == scan.files["source.py"].decode()
    assert "@T.prim_func" in scan.source.text
    assert scan.schedule.template.name == "cpu-rows"
    assert scan.explain() == (
        f"forward: cpu-rows {scan.schedule.config} on cpu:{scan.target.arch}, by heuristic\n"
        f"backward: cpu-rows {scan.backward_schedule.config} on cpu:{scan.target.arch}, by "
        f"heuristic"
    )
    assert repr(scan).startswith("CompiledScan(ScanSpec(state_size=7, dictionary_size=3")


def test_a_config_of_ones_own() -> None:
    scan = compile(SPEC, "cpu", config=CpuRowsConfig(2, False))
    assert scan.schedule.reason == "explicit config"
    assert str(CpuRowsConfig(2, False)) in scan.explain()
    assert torch.equal(scan(**call())[0], pd_scan(**call())[0])
    with pytest.raises(NoTemplateError, match="max_heads is at least 1, not 0"):
        compile(SPEC, "cpu", config=CpuRowsConfig(0))
    with pytest.raises(NoTemplateError, match="unknown template 'fast'; there are cpu-rows, "):
        compile(SPEC, "cpu", config="fast")


def test_a_template_of_ones_own() -> None:
    scan, tensors = compile(SPEC, "cpu", config="torch-tokens"), call()
    for schedule in (scan.schedule, scan.backward_schedule):
        assert (schedule.template.name, schedule.reason) == ("torch-tokens", "explicit template")
    want, mine = [t["diagonal"].requires_grad_() for t in (call(), call())]
    pd_scan(**call() | {"diagonal": want})[0].abs().sum().backward()
    before = len(explain())
    states, _ = scan(**tensors | {"diagonal": mine})
    states.abs().sum().backward()
    torch.testing.assert_close(mine.grad, want.grad)
    ran = explain()[before:]
    assert {kernel.template for kernel in ran} == {"torch-tokens"}
    assert {kernel.reason for kernel in ran} == {"explicit template"}
    assert {"forward", "backward"} <= {kernel.program.split()[2] for kernel in ran}


@pytest.mark.parametrize("name", ["initial_state", "output_final_state"])
def test_options_without_a_truth_value(name: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        compile(SPEC, "cpu", **{name: torch.zeros(3)})
    assert str(caught.value) == f"{name} must be True or False, got Tensor; pass one of the two"


TRITON = {"scan.ttir", "scan.ttgir", "scan.llir"}
CUDA = {"kernel.cu", "kernel.cubin", "call.json"}


@pytest.mark.parametrize(
    ("target", "config", "files"),
    [
        ("sm_90", None, CUDA),
        pytest.param(named_target("sm_80"), None, CUDA, marks=pytest.mark.stress),
        ("sm_90", TritonRowsConfig(1, 1, 4), TRITON),
        ("gfx942", None, TRITON),
    ],
    ids=["sm_90", "sm_80", "sm_90 by Triton", "gfx942"],
)
def test_a_gpu_that_is_absent(target: Any, config: Any, files: set[str]) -> None:
    scan = compile(SPEC, target, config=config, output_final_state=True)
    assert isinstance(scan, CompiledScan)
    assert scan.kernel().resources()["registers"] > 0
    assert files < set(scan.files)
    with pytest.raises(ArgumentError) as caught:
        scan(**call())
    assert str(caught.value).startswith("the tensors are on cpu (cpu:")
    assert f"but the scan was compiled for {scan.target}; move them, or" in str(caught.value)


def test_a_device_that_only_torch_knows() -> None:
    scan = compile(SPEC, torch.device("mps"))
    assert str(scan.target) == "other:mps"
    for schedule in (scan.schedule, scan.backward_schedule):
        assert schedule.template.backend == "torch"
        assert schedule.reason == "heuristic: no other backend is for other:mps"
    assert "\nimport torch\n" in scan.source.text
    with pytest.raises(ArgumentError, match="but the scan was compiled for other:mps; move"):
        scan(**call())


WRONG: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "no spec": ((7,), {}, ArgumentError, "spec must be a ScanSpec, got int; make one with"),
    "unknown target": (
        (SPEC, "sm_99"), {}, UnknownTargetError, "unknown target 'sm_99'; known targets: cpu, "
    ),
    "no target": (
        (SPEC, 90), {}, ArgumentError, "target must be a torch device, a GPU's name such as"
    ),
    "a device that runs no scan": (
        (SPEC, "meta"), {}, UnknownTargetError, "unknown target 'meta'; known targets: cpu, "
    ),
    "bytes": ((SPEC, b"cpu"), {}, ArgumentError, "target must be a torch device, a GPU"),
    "map dtype": (
        (SPEC, "cpu"), {"map_dtype": torch.float32}, ArgumentError, "map_dtype must be one of"
    ),
    "selection dtype": (
        (SPEC, "cpu"), {"selection_dtype": "int"}, ArgumentError, "selection_dtype must be one of"
    ),
    "too large for a template": (
        (ScanSpec(1000, 3), "sm_90"), {"config": CudaRowsConfig(2, 3)}, NoTemplateError,
        "CudaRowsConfig(tile=2, slots=3, sets=1, team=1, tables=2, rows=1, helpers=0) "
        "cannot run on cuda:sm_90: a"
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_compiled(wrong: str) -> None:
    arguments, options, error, message = WRONG[wrong]
    with pytest.raises(error) as caught:
        compile(*arguments, **options)
    assert str(caught.value).startswith(message)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU is there")
def test_a_gpu_of_this_machine_that_has_none() -> None:
    with pytest.raises(ArgumentError, match="target 'cuda:0' needs a GPU that torch can see, and"):
        compile(SPEC, "cuda:0")


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case(8, "dictionary"), "the tensors have state_size 8, but the scan was compiled for 7"),
        (
            Case(7, "dictionary", dictionary_size=4),
            "have dictionary_size 4, but .* for 3; compile",
        ),
        (Case(7, "dictionary", dtype=torch.complex128), "have element 'c128', but .* for 'c64'"),
        (Case(7, "token"), "have dictionary_size None, but"),
    ],
    ids=str,
)
def test_tensors_of_another_specification(case: Case, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        compile(SPEC, "cpu")(**call(case=case))


@pytest.mark.parametrize(("name", "given"), [("map_class", "identity"), ("orientation", "row")])
def test_options_of_another_specification(name: str, given: str) -> None:
    scan = compile(SPEC, "cpu")
    message = f"{name}='{given}', but the scan was compiled for '{getattr(SPEC, name)}'; compile"
    with pytest.raises(ArgumentError, match=message):
        scan(**call(), **{name: given})
    with pytest.raises(ArgumentError, match=f"{name} must be one of 'general|'column'"):
        scan(**call(), **{name: [given]})
    scan(**call(), **{name: getattr(SPEC, name)})


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "triton" else found(name)
    )
    missing = "the Python package triton is missing: pip install triton (Linux only)"
    config = TritonRowsConfig(1, 1, 1)
    with pytest.raises(BackendUnavailableError) as caught:
        compile(ScanSpec(11, map_source="none"), "sm_100", config=config)
    assert str(caught.value) == f"cannot compile for cuda:sm_100: {missing}"
    # Nothing else but plain PyTorch is for AMD, which is taken and told.
    scan = compile(ScanSpec(11, map_source="none"), "gfx942")
    assert scan.explain().count(f"{missing}\n") + scan.explain().endswith(missing) == 2
    assert {s.template.backend for s in (scan.schedule, scan.backward_schedule)} == {"torch"}
    # NVIDIA's GPUs and CPUs need none.
    scan = compile(ScanSpec(11, map_source="none"), "sm_100")
    assert (scan.schedule.template.name, scan.schedule.reason) == ("cuda-rows", "heuristic")
    assert set(scan.kernel().resources()) == {"shared_bytes"}
    tensor = torch.ones(1, 2, 1, 11, dtype=torch.complex64)
    scan = compile(ScanSpec(11, map_source="none"), "cpu")
    assert torch.equal(scan(tensor, tensor)[0][0, :, 0, 0], torch.tensor([1, 2]) + 0j)
