"""``pdssm-compiler doctor``: what it says of this machine, and of one where something fails."""

import importlib.metadata
import importlib.util
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pdssm_compiler import ScanSpec, compile, verification
from pdssm_compiler.runtime import capabilities as runtime_capabilities
from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.backends import cuda_compilers
from pdssm_compiler.runtime.capabilities import capabilities
from pdssm_compiler.runtime.errors import BackendUnavailableError
from pdssm_compiler.schedules.target import cpu_target, describe, named_target
from tests.cli.conftest import Command, Done
from tests.missing import without


def test_packages_cache_devices_and_toolchains(pdssm: Command) -> None:
    done = pdssm("doctor")
    assert done.status == 0
    for package in ("pdssm-compiler", "torch", "triton", "apache-tvm", "apache-tvm-ffi", "numpy"):
        assert importlib.metadata.version(package) in done.out
    assert str(settings.cache_dir()) in done.out
    assert "works: a scan and its gradients agree with the reference" in done.out
    for title in ("Packages", "Kernel cache", "Backends", "Possible here", "Devices"):
        assert title in done.out


def row_of(done: Done, first: str, after: str = "Kernel cache") -> list[str]:
    """The cells of the row that starts so, in the tables from one on."""
    lines = done.out.partition(after)[2].splitlines()
    (row,) = (line for line in lines if line.startswith(f"│ {first} "))
    return [cell.strip() for cell in row.strip("│").split("│")]


WAYS = (
    "TVM with LLVM", "TVM with NVRTC", "TVM with nvcc", "Triton", "TVM-FFI alone",
    "NVIDIA driver alone", "launcher of Triton", "C compiler", "plain PyTorch",
)  # fmt: skip


def possible(done: Done) -> dict[str, str]:
    """What is said of each way to compile or run."""
    return {way: row_of(done, way)[2] for way in WAYS}


def test_what_each_backend_has(pdssm: Command) -> None:
    done = pdssm("doctor")
    assert row_of(done, "tvm-cuda")[1:3] == ["cuda-chunks, cuda-rows, cuda-step", "NVIDIA GPUs"]
    assert row_of(done, "triton")[1:3] == [
        "triton-lookback, triton-chunks, triton-rows, triton-matrices",
        "NVIDIA GPUs, AMD GPUs",
    ]
    found = possible(done)
    for way in ("TVM with LLVM", "TVM with NVRTC", "Triton", "TVM-FFI alone", "plain PyTorch"):
        assert found[way] == "yes"


def capability(way: str) -> str | None:
    (found,) = (each.missing for each in capabilities() if each.way == way)
    return found


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == package else real(name)
    )


@pytest.mark.parametrize(
    ("package", "ways"),
    [
        ("tvm", {"TVM with LLVM", "TVM with NVRTC", "TVM with nvcc"}),
        ("tvm_ffi", {"TVM with LLVM", "TVM with NVRTC", "TVM with nvcc", "TVM-FFI alone"}),
        ("tvm_ffi_orcjit", {"TVM with LLVM"}),
        ("triton", {"Triton", "launcher of Triton"}),
    ],
)
def test_a_missing_package(package: str, ways: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, package)
    said = f"the Python package {package} is missing: "
    found = {each.way for each in capabilities() if (each.missing or "").startswith(said)}
    assert found == ways


def test_missing_compilers_of_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cuda_compilers, "nvrtc", lambda: None)
    monkeypatch.setattr(cuda_compilers, "nvcc", lambda: None)
    assert capability("TVM with NVRTC") == (
        "its library is not here: pip install nvidia-cuda-nvrtc (torch with CUDA brings it)"
    )
    assert capability("TVM with nvcc") == (
        "it is not on PATH: install a CUDA toolkit, or use NVRTC"
    )
    # One that is there and does not work.
    (tmp_path / "nvcc").write_text("#!/bin/sh\necho no host compiler >&2\nexit 1\n")
    (tmp_path / "nvcc").chmod(0o700)
    monkeypatch.setattr(cuda_compilers, "nvcc", lambda: str(tmp_path / "nvcc"))
    said = capability("TVM with nvcc")
    assert said is not None
    assert said.startswith("nvcc refuses a kernel for sm_90: no host compiler")
    assert said.endswith("install a host compiler (g++) or another toolkit, or use NVRTC")


def test_what_running_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert str(capability("launcher of Triton")).startswith("torch sees no GPU: it needs one")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    for way in ("C compiler", "launcher of Triton"):
        assert capability(way) == ("none of cc, gcc, clang is on PATH: install one, such as gcc")
    monkeypatch.setattr(runtime_capabilities, "driver", lambda: None)
    assert capability("NVIDIA driver alone") is None
    monkeypatch.setattr(runtime_capabilities, "driver", no_driver)
    assert capability("NVIDIA driver alone") == "the driver cannot be loaded"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert str(capability("TVM-FFI alone")).endswith("on Linux only, and this is darwin")


def test_what_is_missing_is_told(pdssm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_compilers, "nvrtc", lambda: None)
    monkeypatch.setattr(runtime_capabilities, "driver", no_driver)
    found = possible(pdssm("doctor"))
    assert found["TVM with NVRTC"].startswith("no: its library is not here: pip install nvidia-")
    assert found["NVIDIA driver alone"] == "no: the driver cannot be loaded"


def test_kernels_compiled_ahead_of_time(
    pdssm: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compile(ScanSpec(5, map_source="none"), "cpu").save(tmp_path)
    monkeypatch.setenv(settings.KERNELS, str(tmp_path))
    done = pdssm("doctor")
    assert row_of(done, "ahead of time")[1] == f"2 kernels in {tmp_path}"
    assert f"2 programs with choices for {cpu_target()}" in done.out


def test_a_target_that_is_absent(pdssm: Command, tmp_path: Path) -> None:
    path = tmp_path / "gpu.toml"
    path.write_text(describe(replace(named_target("h200"), name="Another", processors=66)))
    done = pdssm("doctor", "--target", path)
    assert done.status == 0
    row = row_of(done, str(path), after="Targets")
    assert row[1:] == ["Another", "cuda:sm_90", "66", "32", "255", "227 KiB", "4800 GB/s"]
    _, templates, state = row_of(done, "tvm-cuda", after="Targets")
    assert set(templates.split(", ")) == {"cuda-rows", "cuda-step", "cuda-chunks"}
    assert re.fullmatch(r"cuda-rows compiles, \d+ bytes", state)


def test_a_target_that_nothing_compiles_for(
    pdssm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, tvm_cuda="tvm is missing: get it", triton="triton is missing: get it")
    done = pdssm("doctor", "--target", "sm_90")
    assert done.status == 1
    for backend in ("tvm", "triton"):
        row = row_of(done, "tvm-cuda" if backend == "tvm" else backend, after="Targets")
        told = f"cannot compile for cuda:sm_90: {backend} is missing: get it"
        assert row[2] == f"BackendUnavailableError: {told}"


def no_driver() -> Any:
    raise BackendUnavailableError("the driver cannot be loaded")


@pytest.mark.filterwarnings("ignore:kernels are not cached")
def test_a_cache_that_is_off_or_cannot_be_written(
    pdssm: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(settings.CACHE_DIR, str(tmp_path / "file"))
    done = pdssm("doctor")
    assert done.status == 0
    assert "no: [Errno" in done.out
    monkeypatch.setenv(settings.CACHE_ENABLED, "0")
    assert "off (PDSSM_CACHE=0)" in pdssm("doctor").out


def test_a_device_that_does_not_work(pdssm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no such instruction")

    with monkeypatch.context() as patch:
        patch.setattr(verification, "verify_spec", broken)
        done = pdssm("doctor")
    assert done.status == 1
    assert "RuntimeError: no such instruction" in done.out
    with monkeypatch.context() as patch:
        wrong = verification.Verification(verification.default_spec(), 3.0, 0.5)
        patch.setattr(verification, "verify_spec", lambda *_, **__: wrong)
        done = pdssm("doctor")
    assert done.status == 1
    assert "wrong: 3.0 times the allowed error" in done.out


def test_a_missing_backend(pdssm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, tvm="tvm is missing: get it")
    done = pdssm("doctor")
    assert done.status == 1
    assert row_of(done, "TVM with LLVM")[2] == "no: tvm is missing: get it"
    # What there is instead is told, and tried.
    _, _, backend, state = row_of(done, "cpu")
    assert backend == "torch"
    assert state.endswith("agree with the reference; tvm is missing: get it")
