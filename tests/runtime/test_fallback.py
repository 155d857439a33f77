"""Plain PyTorch as the last choice: taken where nothing else is there, and never silently."""

import sys

import pytest
import torch

from pdssm_compiler import ScanSpec, compile, explain, pd_scan
from pdssm_compiler.ir.programs import PdScan
from pdssm_compiler.ir.programs import pd_scan as pd_program
from pdssm_compiler.runtime import plan
from pdssm_compiler.runtime.compile_service import build, choose
from pdssm_compiler.runtime.devices import target_of
from pdssm_compiler.runtime.errors import IndexRangeError, NoTemplateError
from pdssm_compiler.schedules.target import Target, cpu_target, named_target
from pdssm_compiler.schedules.templates.base import Problem
from pdssm_compiler.schedules.templates.torch_chunks import TorchChunksConfig
from tests.missing import without
from tests.public.scans import Case, Draw, inputs
from tests.runtime.kernels import small
from tests.torch_only import torch_only

PACKAGE = "pdssm-compiler"
MISSING = "the Python package tvm is missing: install pdssm-compiler with its dependencies"
CASE = Case(7, "dictionary")


def test_it_is_not_taken_where_another_backend_is_there() -> None:
    assert choose(small(), cpu_target()).reason == "heuristic"
    assert choose(small(), cpu_target()).template.backend == "tvm"
    # A template that cannot run a program is a reason to say so, not to be slow in silence.
    with pytest.raises(NoTemplateError, match="triton-rows: a state size of"):
        choose(pd_program(PdScan(2**18, 4)), named_target("sm_90"))


def test_a_missing_tvm_is_told() -> None:
    tensors = inputs(CASE, Draw(2, 9, 3, "random", "disk", 1))
    want, _ = pd_scan(**tensors)
    with torch_only():
        schedule = choose(small(), cpu_target())
        assert schedule.template.name == "torch-chunks"
        assert schedule.reason == f"heuristic: {MISSING} (pip install {PACKAGE})"
        # A GPU has Triton, whatever the CPU has; only NVIDIA's miss anything.
        nvidia, amd = (choose(small(), named_target(name)) for name in ("sm_90", "gfx942"))
        assert {nvidia.template.name, amd.template.name} == {"triton-rows"}
        assert nvidia.reason == f"heuristic; without cuda-rows: {MISSING} (pip install {PACKAGE})"
        assert amd.reason == "heuristic"
        got, _ = pd_scan(**tensors)
        (ran,) = explain()
        assert (ran.template, ran.reason) == ("torch-chunks", schedule.reason)
        assert f", by heuristic: {MISSING}" in str(ran)
        scan = compile(ScanSpec(7, 3))
        assert f"forward: torch-chunks {TorchChunksConfig()} on {cpu_target()}" in scan.explain()
        assert scan.explain().count(MISSING) == 2
        assert "\nimport torch\n" in scan.source.text
    torch.testing.assert_close(got, want)
    before = {k.reason: k.template for k in explain() if k.program == ran.program}
    assert before["heuristic"] == "cpu-rows"


def test_an_nvidia_gpu_without_any_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, tvm_cuda="no tvm-cuda", triton="no triton")
    for problem in (Problem(), Problem.bucket(1, 10**5)):
        schedule = choose(small(), named_target("sm_90"), problem=problem)
        assert schedule.template.name == "torch-chunks"
        # Triton has two templates, and is missing once.
        assert schedule.reason.removeprefix("heuristic: ").split("; ") in (
            ["no tvm-cuda", "no triton"],
            ["no triton", "no tvm-cuda"],
        )


def test_other_systems_have_no_tvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    schedule = choose(small(), cpu_target())
    assert schedule.template.backend == "torch"
    assert "on Linux only, and this is darwin" in schedule.reason


def test_a_config_forces_it() -> None:
    config = TorchChunksConfig(4, split=True)
    tensors = inputs(CASE, Draw(2, 9, 3, "random", "disk", 1))
    scan = compile(ScanSpec(7, 3), config=config)
    assert scan.schedule.reason == "explicit config"
    assert scan.source.template == "torch-chunks"
    got, _ = scan(**tensors)
    torch.testing.assert_close(got, pd_scan(**tensors)[0])
    assert any(k.template == "torch-chunks" and k.reason == "explicit config" for k in explain())


def test_a_kernel_from_disk_is_the_kernel() -> None:
    built = [build(small(6), cpu_target(), 0, TorchChunksConfig(2)) for _ in range(2)]
    assert built[1].origin == "disk"
    assert built[0].key == built[1].key
    assert built[0].source.text == built[1].source.text


def test_devices_that_only_torch_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    target = target_of(torch.device("mps"))
    assert target == Target("other", "mps")
    reason = "heuristic: no other backend is for other:mps"
    assert choose(small(), target).reason == reason
    assert choose(small(), target).config == TorchChunksConfig(split=True)
    # A CPU in its stead: the same way from the call to the source, on memory that is here.
    monkeypatch.setattr(plan, "target_of", lambda device: target)
    monkeypatch.setattr(plan, "_plans", {})
    tensors = inputs(CASE, Draw(2, 9, 3, "random", "disk", 1))
    got, _ = pd_scan(**tensors)
    (ran,) = explain()
    assert (ran.target, ran.template, ran.reason) == ("other:mps", "torch-chunks", reason)
    tensors["selection"][1, 8, 2] = 3
    with pytest.raises(IndexRangeError, match=r"selection\[1, 8, 2\] = 3: entries must lie in"):
        pd_scan(**tensors)
    monkeypatch.undo()
    tensors["selection"][1, 8, 2] = 0
    torch.testing.assert_close(got[:, :8], pd_scan(**tensors)[0][:, :8])
