"""Kernel keys: what changes them and what does not."""

from dataclasses import fields, replace

import pytest

from pdssm_compiler.ir import Program, ProgramBuilder, parse_program
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.ir.types import Vector
from pdssm_compiler.runtime.compile_service import lower
from pdssm_compiler.runtime.key import (
    KernelKey,
    compiler_versions,
    generator_hash,
    key_of,
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
    assert {"template", "config", "target", "options", "compilers"} <= set(mine.differences(gpu))
    other = key_of(source(target=named_target("sm_100")), 0)
    assert set(gpu.differences(other)) == {"target"}
    warps = [
        key_of(source(target=named_target("sm_90"), config=TritonRowsConfig(2, warps, 1)), 0)
        for warps in (1, 2)
    ]
    assert set(warps[0].differences(warps[1])) == {"config", "options"}


def test_alignment_changes_it() -> None:
    assert set(key_of(source(), 0).differences(key_of(source(), 16))) == {"alignment"}


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
    assert "apache-tvm=" in compiler_versions("tvm")
    assert "absent" not in compiler_versions("tvm")
    assert compiler_versions("triton").startswith("triton=")
    assert len(generator_hash()) == 64
    key = key_of(source(), 0)
    assert key.compilers == compiler_versions("tvm")
    assert key.generator == generator_hash()
