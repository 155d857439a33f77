"""``pdssm-compiler doctor``: what it says of this machine, and of one where something fails."""

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

from pdssm_compiler import verification
from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.backends import BACKENDS, cuda_compilers, cuda_driver
from pdssm_compiler.runtime.errors import BackendUnavailableError
from tests.cli.conftest import Command, Done


def test_packages_cache_devices_and_toolchains(pdssm: Command) -> None:
    done = pdssm("doctor")
    assert done.status == 0
    for package in ("pdssm-compiler", "torch", "triton", "apache-tvm", "apache-tvm-ffi", "numpy"):
        assert importlib.metadata.version(package) in done.out
    assert str(settings.cache_dir()) in done.out
    assert "works: a scan and its gradients agree with the reference" in done.out
    for title in ("Packages", "Kernel cache", "Backends", "Devices", "Toolchains"):
        assert title in done.out


def row_of(done: Done, first: str) -> list[str]:
    """The cells of the row that starts so, in the tables after the packages."""
    lines = done.out.partition("Kernel cache")[2].splitlines()
    (row,) = (line for line in lines if line.startswith(f"│ {first} "))
    return [cell.strip() for cell in row.strip("│").split("│")]


def test_what_can_be_compiled_and_run(pdssm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    done = pdssm("doctor")
    for backend in ("tvm", "tvm-cuda", "triton", "torch"):
        assert row_of(done, backend)[3] == "compiles here"
    assert row_of(done, "tvm-cuda")[1:3] == ["cuda-step, cuda-chunks, cuda-rows", "NVIDIA GPUs"]
    assert row_of(done, "triton")[1:3] == [
        "triton-lookback, triton-chunks, triton-rows",
        "NVIDIA GPUs, AMD GPUs",
    ]
    assert row_of(done, "NVRTC")[1] == "yes"
    monkeypatch.setattr(cuda_compilers, "nvrtc", lambda: None)
    monkeypatch.setattr(cuda_compilers, "nvcc", lambda: None)
    monkeypatch.setattr(cuda_driver, "driver", no_driver)
    done = pdssm("doctor")
    assert done.status == 0
    assert row_of(done, "tvm-cuda")[3].startswith("neither nvcc nor NVRTC is here: install a")
    assert row_of(done, "NVRTC")[1] == row_of(done, "nvcc")[1] == "no"
    assert row_of(done, "NVIDIA driver")[1] == "no: the driver cannot be loaded"


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
    monkeypatch.setattr(type(BACKENDS["tvm"]), "unavailable", lambda _: "tvm is missing: get it")
    done = pdssm("doctor")
    assert done.status == 1
    assert row_of(done, "tvm")[3] == "tvm is missing: get it"
    # What there is instead is told, and tried.
    _, _, backend, state = row_of(done, "cpu")
    assert backend == "torch"
    assert state.endswith("agree with the reference; tvm is missing: get it")
