"""Kernels compiled ahead of time: saved here, and run where nothing could compile them."""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pdssm_compiler
from pdssm_compiler import ArgumentError, CacheWarning, ScanSpec, compile, pd_scan
from pdssm_compiler.runtime import deployed, plan, settings
from pdssm_compiler.runtime.backends import cpu_threads, cuda_compilers, tvm_cpu
from pdssm_compiler.runtime.compile_service import build, choose
from pdssm_compiler.runtime.entries import read_key, write_entry
from pdssm_compiler.runtime.errors import BackendUnavailableError, SettingError
from pdssm_compiler.schedules.target import cpu_target, describe, named_target
from pdssm_compiler.schedules.templates.base import Problem
from tests.missing import without
from tests.public.scans import Case, Draw, inputs
from tests.runtime.kernels import small

ROOT = Path(__file__).resolve().parents[2]
H100 = named_target("sm_90")

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No folder of an earlier test, and an empty cache."""
    monkeypatch.setattr(deployed, "_loaded", [])
    monkeypatch.setattr(plan, "_plans", {})
    monkeypatch.setenv(settings.CACHE_DIR, str(tmp_path / "cache"))


def on_a_bare_machine(code: str, folder: Path) -> Any:
    """What code prints as JSON, in a process that can compile nothing and has an empty cache."""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", f"{PRELUDE}{code}"],
        env=os.environ | {settings.KERNELS: str(folder), settings.CACHE_DIR: str(folder / "none")},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


PRELUDE = """
from tests.runtime.bare_machine import libraries
import json, shutil, torch, pdssm_compiler
from pdssm_compiler.runtime.backends import BACKENDS
from pdssm_compiler.runtime.backends.cuda_compilers import compiler_version
for name in ("tvm", "tvm-cuda", "triton"):
    assert BACKENDS[name].unavailable()
assert compiler_version() == "absent"
assert not any(map(shutil.which, ("nvcc", "cc", "gcc")))
"""

# On two threads, more elements than one takes alone.
RUN = """
from pdssm_compiler.reference import pd_scan as reference
from tests.public.scans import Case, Draw, inputs
torch.set_num_threads(2)
found = []
case = Case(16, "dictionary", map_class="permutation")
# Drawn once: the first sines that torch computes on several threads now and then differ.
drawn = inputs(case, Draw(3, 200, 4, "permutation", "disk", 1))
for function in (pdssm_compiler.pd_scan, reference):
    given = {name: tensor.clone() for name, tensor in drawn.items()}
    leaves = [given[name].requires_grad_() for name in ("diagonal", "drive", "initial_state")]
    states, _ = function(**given, **case.options)
    gradients = torch.autograd.grad(states, leaves, torch.ones_like(states))
    found.append([states.detach(), *gradients])
for mine, theirs in zip(*found, strict=True):
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
print(json.dumps({
    "kernels": [(e.template, e.origin, e.reason) for e in pdssm_compiler.explain()],
    "told": str(pdssm_compiler.explain()[0]),
    "libraries": sorted(libraries()),
}))
"""


def test_cpu_kernels_need_the_ffi_alone(tmp_path: Path) -> None:
    spec = ScanSpec(16, 3, map_class="permutation")
    saved = compile(spec, "cpu", initial_state=True).save(tmp_path)
    assert sorted(kernel.kind for kernel in saved) == ["backward", "forward", "helper"]
    assert {kernel.needs for kernel in saved} == {"apache-tvm-ffi"}
    assert all(set(kernel.files) == {"kernel.so", "source.py"} for kernel in saved)
    found = on_a_bare_machine(RUN, tmp_path)
    missing = BACKEND_MISSING.format("tvm_ffi_orcjit")
    here = cpu_target()
    chosen = f"choice ahead of time for {here.name or here.arch}: heuristic"
    assert (
        found["kernels"]
        == [["cpu-rows", "deployed", f"{chosen}; its kernel was there: {missing}"]] * 2
    )
    assert "; loaded as compiled ahead of time in " in found["told"]
    assert found["libraries"] == []


BACKEND_MISSING = (
    "the Python package {} is missing: install pdssm-compiler with its dependencies "
    "(pip install pdssm-compiler)"
)

LAUNCH = """
import pytest
from pdssm_compiler.ir.passes import specialise
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.compile_service import build_schedule, choose, obtain
from pdssm_compiler.schedules.templates.base import Problem
from tests.runtime.kernels import small
from tests.schedules.cuda import H100, launches, tensors_for
program = specialise(small(24))
found = []
for sizes in (Sizes(2, 1, 3), Sizes(2, 30, 3), Sizes(1, 5000, 2)):
    schedule = choose(program, H100, problem=Problem(sizes.batch * sizes.heads, sizes.length))
    built = build_schedule(program, H100, schedule, 16)
    files, origin = obtain(built.source, built.key, 16, None)
    with pytest.MonkeyPatch.context() as patch:
        tensors = tensors_for(built.source, sizes)
        (handed,) = launches(patch, built.source, tensors, sizes, files=files)
    found.append((schedule.template.name, schedule.reason, built.origin, origin, handed["L"]))
print(json.dumps({"kernels": found, "libraries": sorted(libraries())}))
"""


def test_cuda_kernels_need_the_driver_alone(tmp_path: Path) -> None:
    """For a GPU that is described in a file, and runs on one of its architecture."""
    path = tmp_path / "gpu.toml"
    path.write_text(describe(replace(H100, name="Another", processors=66)))
    saved = compile(ScanSpec(24, map_source="none"), path).save(tmp_path / "kernels")
    assert {kernel.needs for kernel in saved} == {"an NVIDIA driver"}
    assert all(kernel.files["kernel.cubin"][:4] == b"\x7fELF" for kernel in saved)
    found = on_a_bare_machine(LAUNCH, tmp_path / "kernels")
    missing = BACKEND_MISSING.format("tvm")
    reason = f"choice ahead of time for Another: heuristic; its kernel was there: {missing}"
    assert found["kernels"] == [
        ["cuda-step", reason, "deployed", "deployed", 1],
        ["cuda-rows", reason, "deployed", "deployed", 30],
        ["cuda-chunks", reason, "deployed", "deployed", 5000],
    ]
    assert found["libraries"] == []


def test_a_cached_kernel_needs_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken as if its compiler were here, and no other one is."""
    build(small(6), H100, 16, "cuda-rows")
    monkeypatch.setattr(cuda_compilers, "nvrtc", lambda: None)
    monkeypatch.setattr(cuda_compilers, "nvcc", lambda: None)
    missing = cuda_compilers.missing_compiler()
    schedule = choose(small(6), H100, problem=Problem.bucket(200, 100))
    assert schedule.template.name == "cuda-rows"
    assert schedule.reason == f"heuristic; its kernel was there: {missing}"
    schedule = choose(small(6), H100, problem=Problem.bucket(2, 5000))
    assert schedule.template.name == "triton-chunks"
    assert schedule.reason == f"heuristic; without cuda-chunks: {missing}"
    assert build(small(6), H100, 16).origin == "disk"
    schedule = choose(small(7), H100)
    assert schedule.template.name == "triton-rows"
    assert schedule.reason == f"heuristic; without cuda-rows: {missing}"


def test_kernels_are_taken_before_any_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile(ScanSpec(5, map_source="none"), "cpu").save(tmp_path / "kernels")
    shutil.rmtree(tmp_path / "cache")
    assert pdssm_compiler.load_kernels(tmp_path / "kernels") == 2
    assert pdssm_compiler.load_kernels(str(tmp_path / "kernels")) == 2
    assert build(small(), cpu_target()).origin == "deployed"
    assert not (tmp_path / "cache").exists()
    assert build(small(6), cpu_target()).origin == "compiled"
    # A processor that lacks a feature of the one they were compiled for does not get them.
    features = " ".join(cpu_target().features.split()[1:])
    lesser = type(cpu_target())("cpu", cpu_target().arch, features)
    assert build(small(), lesser).origin == "compiled"


def test_what_ran_is_saved(tmp_path: Path) -> None:
    case = Case(4, "dictionary", map_class="permutation")
    given = inputs(case, Draw(2, 5, 3, "permutation", "disk", 1))
    want, _ = pd_scan(**given, **case.options)
    saved = pdssm_compiler.save_kernels(tmp_path / "kernels")
    assert sorted(kernel.kind for kernel in saved) == ["forward", "helper"]
    for kernel in saved:
        assert kernel.folder.parent == tmp_path / "kernels"
        assert (kernel.folder / "source.py").read_text() == kernel.source.text
        assert kernel.folder.stat().st_mode & 0o777 == 0o755
    again = pdssm_compiler.save_kernels(tmp_path / "kernels")
    assert {kernel.folder for kernel in again} == set((tmp_path / "kernels").iterdir())
    shutil.rmtree(tmp_path / "cache")
    plan._plans.clear()
    pdssm_compiler.load_kernels(tmp_path / "kernels")
    got, _ = pd_scan(**given, **case.options)
    assert torch.equal(got, want)
    (ran,) = pdssm_compiler.explain()
    assert ran.origin == "deployed"
    assert not (tmp_path / "cache").exists()


def test_plain_pytorch_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, tvm="it is missing")
    tensor = torch.ones(1, 3, 2, 5, dtype=torch.complex64)
    pd_scan(tensor, tensor)
    assert pdssm_compiler.explain()[0].template == "torch-chunks"
    assert pdssm_compiler.save_kernels(tmp_path / "kernels") == []


def test_a_copy_of_the_cache_is_a_folder_of_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build(small(), cpu_target())
    (tmp_path / "cache").rename(tmp_path / "copy")
    monkeypatch.setenv(settings.KERNELS, os.pathsep.join(["", str(tmp_path / "copy")]))
    found = build(small(), cpu_target())
    assert (found.origin, found.key) == ("deployed", made.key)


def test_without_a_c_compiler_an_object_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    scan = compile(ScanSpec(5, map_source="none"), "cpu")
    for kernel in scan.save(tmp_path):
        assert set(kernel.files) == {"kernel.o", "source.py"}
        assert kernel.needs == "apache-tvm-ffi, apache-tvm-ffi-orcjit"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "which", lambda name: str(tmp_path / "cc"))
        (tmp_path / "cc").write_text("#!/bin/sh\necho no such option >&2\nexit 1\n")
        (tmp_path / "cc").chmod(0o700)
        monkeypatch.setattr(tvm_cpu, "C_COMPILERS", (str(tmp_path / "cc"),))
        with pytest.raises(BackendUnavailableError, match="cc cannot link a kernel: no such opt"):
            scan.save(tmp_path)


def test_a_corrupt_kernel_is_told_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (saved, _) = compile(ScanSpec(5, map_source="none"), "cpu").save(tmp_path / "kernels")
    (saved.folder / "kernel.so").write_bytes(b"")
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setenv(settings.KERNELS, str(tmp_path / "kernels"))
    with pytest.warns(CacheWarning, match=r"is ignored: kernel\.so does not match its hash"):
        assert build(small(), cpu_target()).origin == "compiled"
    # It is somebody's deliverable: it stays.
    assert saved.folder.exists()


def test_kernels_of_another_version_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = compile(ScanSpec(5, map_source="none"), "cpu")
    for saved in scan.save(tmp_path / "kernels"):
        key = read_key(saved.folder)
        write_entry(saved.folder, replace(key, generator="another"), saved.files)
    monkeypatch.setenv(settings.KERNELS, str(tmp_path / "kernels"))
    without(monkeypatch, tvm="it is missing")
    reason = "it is missing; a kernel that is there is of another generator"
    assert choose(small(), cpu_target()).reason == f"heuristic: {reason}"
    with pytest.raises(BackendUnavailableError, match=f"cannot compile for cpu:.*: {reason}"):
        build(small(), cpu_target(), 0, "cpu-rows")


def test_folders_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArgumentError, match="has no kernels; name a folder that pdssm_compiler"):
        pdssm_compiler.load_kernels(tmp_path)
    monkeypatch.setenv(settings.KERNELS, str(tmp_path / "nowhere"))
    with pytest.raises(SettingError, match=r"PDSSM_KERNELS names .*/nowhere, which is not a"):
        build(small(), cpu_target())
    monkeypatch.delenv(settings.KERNELS)
    (tmp_path / "file").write_text("")
    scan = compile(ScanSpec(5, map_source="none"), "cpu")
    with pytest.raises(ArgumentError, match=r"cannot write kernels to .*/file: .*; name a folder"):
        scan.save(tmp_path / "file")


def test_a_task_runs_here_where_no_thread_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    @cpu_threads._Task
    def task(number: int, group: Any, data: int) -> int:
        ran.append((number, group.contents.tasks, data))
        return 0

    class Exhausted(ThreadPoolExecutor):
        def submit(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("can't start new thread")

    pointer = ctypes.cast(task, ctypes.c_void_p).value
    assert cpu_threads._launch(pointer, 7, 3) == 0
    assert sorted(ran) == [(0, 3, 7), (1, 3, 7), (2, 3, 7)]
    ran.clear()
    monkeypatch.setattr(cpu_threads, "_pool", Exhausted)
    assert cpu_threads._launch(pointer, 7, 3) == 0
    assert ran == [(0, 3, 7), (1, 3, 7), (2, 3, 7)]


def test_a_task_that_fails_is_told() -> None:
    task = cpu_threads._Task(lambda number, group, data: -1 if number == 1 else 0)
    pointer = ctypes.cast(task, ctypes.c_void_p).value
    assert cpu_threads._launch(pointer, 0, 3) == -1
