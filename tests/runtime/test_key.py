"""Kernel keys: what changes them and what does not."""

from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pdssm_compiler.ir import Program, ProgramBuilder, parse_program
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.ir.types import Vector
from pdssm_compiler.runtime import key as key_module
from pdssm_compiler.runtime.backends import cuda_compilers
from pdssm_compiler.runtime.compile_service import lower
from pdssm_compiler.runtime.key import (
    KernelKey,
    generator_hash,
    key_of,
    versions,
)
from pdssm_compiler.schedules.source import KernelSource
from pdssm_compiler.schedules.target import Target, cpu_target, named_target
from pdssm_compiler.schedules.templates.cpu_rows import CpuRowsConfig
from pdssm_compiler.schedules.templates.triton_rows import TritonRowsConfig
from tests.runtime.kernels import KEY

SPEC = PdScan(8, 4)


def source(
    spec: PdScan = SPEC, target: Target | None = None, config: object = None
) -> KernelSource:
    return lower(pd_scan(spec), target or cpu_target(), config)[0]


@pytest.mark.parametrize("field", [field.name for field in fields(KernelKey)])
def test_every_field_changes_the_digest(field: str) -> None:
    value = getattr(KEY, field)
    other = replace(KEY, **{field: value + 1 if isinstance(value, int) else value + "x"})
    assert other.digest != KEY.digest
    assert KEY.differences(other) == {field: (value, getattr(other, field))}


def test_equal_keys_have_one_digest() -> None:
    first, second = key_of(source(), 0), key_of(source(), 0)
    assert first == second
    assert first.digest == second.digest
    assert first.differences(second) == {}
    assert len(first.digest) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"state_size": 9},
        {"dictionary_size": 5},
        {"element": "c128"},
        {"map_class": "permutation"},
        {"orientation": "row"},
        {"initial_state": True},
        {"final_state": True},
        {"payload_storage": "cb32"},
        {"map_storage": "i64"},
        {"selection_storage": "u8"},
        {"map_source": "none", "dictionary_size": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_program_changes_it(change: dict[str, object]) -> None:
    other = key_of(source(replace(SPEC, **change)), 0)
    assert set(other.differences(key_of(source(), 0))) >= {"program"}


def test_template_config_target_and_options_change_it() -> None:
    mine = key_of(source(), 0)
    differs = mine.differences(key_of(source(config=CpuRowsConfig(3)), 0))
    assert set(differs) == {"config"}
    skylake = replace(cpu_target(), features="avx512f")
    assert set(mine.differences(key_of(source(target=skylake), 0))) == {"features"}
    gpu = key_of(source(target=named_target("sm_90")), 0)
    compilers = {"compilers", "cuda_compiler"}
    compilers.add("loaders")
    assert {"template", "config", "target", "options"} | compilers <= set(mine.differences(gpu))
    other = key_of(source(target=named_target("sm_100")), 0)
    assert set(gpu.differences(other)) == {"target"}
    warps = [
        key_of(source(target=named_target("sm_90"), config=TritonRowsConfig(2, warps, 1)), 0)
        for warps in (1, 2)
    ]
    assert set(warps[0].differences(warps[1])) == {"config", "options"}


def test_alignment_changes_it_where_kernels_depend_on_it() -> None:
    by_triton = source(target=named_target("gfx942"))
    assert set(key_of(by_triton, 0).differences(key_of(by_triton, 16))) == {"alignment"}
    for one in (source(), source(target=named_target("sm_90"))):
        assert key_of(one, 0) == key_of(one, 16)


@pytest.mark.parametrize(
    ("made", "wanted", "obstacles"),
    [
        ({"compilers": "tvm=1"}, {"compilers": "tvm=absent"}, set()),
        ({"cuda_compiler": "nvcc=13.0"}, {"cuda_compiler": "absent"}, set()),
        ({"features": "avx fma"}, {"features": "avx avx512f fma"}, set()),
        ({"features": "avx avx512f"}, {"features": "avx fma"}, {"features"}),
        ({"loaders": "ffi=1"}, {}, {"loaders"}),
        ({"generator": "another", "program": "another"}, {}, {"generator", "program"}),
        ({"target": "cuda:sm_80"}, {"target": "cuda:sm_90"}, {"target"}),
    ],
)
def test_what_keeps_a_kernel_from_running_elsewhere(
    made: dict[str, str], wanted: dict[str, str], obstacles: set[str]
) -> None:
    assert set(replace(KEY, **made).obstacles(replace(KEY, **wanted))) == obstacles


def built(order: bool) -> Program:
    build = ProgramBuilder(4)
    names = ("u", "v") if order else ("v", "u")
    inputs = {name: build.input(name, Vector("f32")) for name in names}
    state = build.carry("state", Vector("f32"), "zero")
    if order:
        build.emit("y", state)
    total = b.add(b.mul(inputs["u"], state), inputs["v"])
    build.next("state", total)
    if not order:
        build.emit("y", state)
    return build.build()


def test_the_order_of_building_does_not_change_it() -> None:
    keys = {key_of(lower(built(order), cpu_target())[0], 0) for order in (True, False)}
    keys.add(key_of(lower(parse_program(built(True).text), cpu_target())[0], 0))
    assert len(keys) == 1


def test_sizes_of_a_call_are_not_in_it() -> None:
    names = {field.name for field in fields(KernelKey)}
    assert not names & {"batch", "length", "heads", "rows", "shape"}


def test_versions_and_generator() -> None:
    assert versions(("torch", "no-such-package")).startswith("torch=")
    assert versions(("torch", "no-such-package")).endswith(" no-such-package=absent")
    assert len(generator_hash()) == 64
    key = key_of(source(), 0)
    assert key.cuda_compiler == ""
    assert key.compilers == versions(("apache-tvm", "apache-tvm-ffi-orcjit"))
    assert key.loaders == versions(("apache-tvm-ffi",))
    assert "absent" not in key.compilers + key.loaders
    assert key.generator == generator_hash()
    gpus = [key_of(source(target=named_target(name)), 0) for name in ("sm_90", "gfx942")]
    assert gpus[0].compilers == versions(("apache-tvm", "apache-tvm-ffi"))
    assert (gpus[0].loaders, gpus[1].compilers) == ("", "")
    assert gpus[1].loaders == versions(("triton",))


def test_the_cuda_compiler_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = source(target=named_target("sm_90"))
    assert asked.backend == "tvm-cuda"
    keys = []
    for version in ("nvrtc=13.0", "nvcc=13.0.88", "absent"):
        monkeypatch.setattr(key_module, "compiler_version", lambda version=version: version)
        keys.append(key_of(asked, 0))
        assert keys[-1].cuda_compiler == version
    assert len({key.digest for key in keys}) == 3
    assert set(keys[0].differences(keys[1])) == {"cuda_compiler"}
    # Triton brings its own, and is there by its version.
    by_triton = source(target=named_target("sm_90"), config=TritonRowsConfig(1, 1, 1))
    assert key_of(by_triton, 0).cuda_compiler == ""


def test_versions_of_the_cuda_compilers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def says(major: Any, minor: Any) -> None:
        major._obj.value, minor._obj.value = 13, 5

    library = SimpleNamespace(nvrtcVersion=says)
    monkeypatch.setattr(cuda_compilers, "nvrtc", lambda: library)
    assert cuda_compilers.compiler_version() == "nvrtc=13.5"
    monkeypatch.setattr(cuda_compilers, "nvrtc", lambda: None)
    script = tmp_path / "nvcc"
    for said, version in (
        ("Cuda compilation tools, release 13.0, V13.0.88", "13.0.88"),
        ("nothing", "unknown"),
    ):
        script.write_text(f"#!/bin/sh\necho '{said}'\n")
        script.chmod(0o700)
        cuda_compilers._nvcc_version.cache_clear()
        monkeypatch.setattr(cuda_compilers, "nvcc", lambda: str(script))
        assert cuda_compilers.compiler_version() == f"nvcc={version}"
    monkeypatch.setattr(cuda_compilers, "nvcc", lambda: str(tmp_path / "none"))
    assert cuda_compilers.compiler_version() == "nvcc=unknown"
    monkeypatch.setattr(cuda_compilers, "nvcc", lambda: None)
    assert cuda_compilers.compiler_version() == "absent"
