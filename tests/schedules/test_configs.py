"""Configs that a caller writes: whatever they hold, they lower or are refused in one line."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pdssm_compiler.ir.passes import adjoint, specialise
from pdssm_compiler.ir.programs import PdScan, mixture, pd_scan
from pdssm_compiler.runtime.compile_service import choose, config_text, lower, read_config
from pdssm_compiler.runtime.errors import NoTemplateError
from pdssm_compiler.schedules.registry import TEMPLATES
from pdssm_compiler.schedules.target import Target, cpu_target, named_target
from pdssm_compiler.schedules.templates.base import ConfigError
from pdssm_compiler.schedules.templates.cpu_rows import CpuRows, CpuRowsConfig
from pdssm_compiler.schedules.templates.cuda_rows import CudaRowsConfig
from pdssm_compiler.schedules.templates.torch_chunks import TorchChunksConfig
from pdssm_compiler.schedules.templates.torch_tokens import TorchTokensConfig
from pdssm_compiler.schedules.templates.triton_chunks import TritonChunksConfig
from pdssm_compiler.schedules.templates.triton_rows import TritonRowsConfig
from tests.schedules.programs import squares

SCAN = pd_scan(PdScan(8, 4))
TARGETS = [cpu_target(), named_target("sm_90"), named_target("gfx942"), Target("other", "mps")]
PROGRAMS = [
    SCAN,
    adjoint(SCAN).program,
    pd_scan(PdScan(1, None, map_source="none")),
    pd_scan(PdScan(300, 2, "c128", final_state=True)),
    squares(),
]
INTEGERS = st.integers(1, 9) | st.sampled_from([-1, 0, 16, 32, 64, 10**3, 10**6, 10**12, 2**70])
RIGHT: dict[Any, st.SearchStrategy[Any]] = {
    int: INTEGERS,
    bool: st.booleans(),
    int | None: st.none() | INTEGERS,
}
WRONG = st.sampled_from([2.0, "8", b"8", [4], np.int64(4), float("nan"), 1j, int])


_MIXED = mixture(6, 3, "f32", "row")
MIXTURES = (_MIXED, adjoint(_MIXED, surrogate="dense").program)


@pytest.mark.parametrize("name", TEMPLATES)
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_every_config_lowers_or_is_refused_in_one_line(name: str, data: st.DataObject) -> None:
    template = TEMPLATES[name]
    types = {field.name: field.type for field in fields(template.config_type)}
    drawn = {field: data.draw(RIGHT[type_], field) for field, type_ in types.items()}
    wrong = data.draw(st.sampled_from([None, None, None, *types]), "wrong")
    if wrong is not None:
        drawn[wrong] = data.draw(WRONG, wrong)
        with pytest.raises(ConfigError, match=f"Config: {wrong} must be .*; pass ") as caught:
            template.config_type(**drawn)
        assert "\n" not in str(caught.value)
        return
    config = template.config_type(**drawn)
    program = data.draw(st.sampled_from(MIXTURES if template.over_matrices else PROGRAMS))
    target = data.draw(st.sampled_from([t for t in TARGETS if t.kind in template.kinds]))
    refused = template.feasible(specialise(program), target, config)
    event(f"{name}: {'refused' if refused else 'lowered'}")
    if refused:
        assert "\n" not in refused
        with pytest.raises(NoTemplateError) as caught:
            lower(program, target, config)
        assert str(caught.value).startswith(f"{config} cannot run on {target}: {refused}; choose")
        return
    source, schedule = lower(program, target, config)
    assert (schedule.config, schedule.reason) == (config, "explicit config")
    assert source.config == drawn
    assert compile(source.text, name, "exec")
    assert read_config(config_text(config)) == config


@pytest.mark.parametrize(
    ("config_type", "values", "message"),
    [
        (CpuRowsConfig, ("a",), "CpuRowsConfig: max_heads must be an int, got 'a'; pass an int"),
        (CpuRowsConfig, (2.5,), "CpuRowsConfig: max_heads must be an int, got 2.5; pass an int"),
        (
            CpuRowsConfig, (2, 1),
            "CpuRowsConfig: split_scatter must be True or False, got 1; pass True or False",
        ),
        (CudaRowsConfig, (2.0, 4), "CudaRowsConfig: tile must be an int, got 2.0; pass an int"),
        (CudaRowsConfig, ("8", 4), "CudaRowsConfig: tile must be an int, got '8'; pass an int"),
        (CudaRowsConfig, (None, 4), "CudaRowsConfig: tile must be an int, got None; pass an int"),
        (
            CudaRowsConfig, (8, 4, True),
            "CudaRowsConfig: sets must be an int, got True; pass an int",
        ),
        (
            TritonRowsConfig, (1.0, 1, 1),
            "TritonRowsConfig: rows must be an int, got 1.0; pass an int",
        ),
        (
            TritonChunksConfig, (1, 1, 1, np.int64(9)),
            "TritonChunksConfig: programs must be an int, got np.int64(9); pass an int",
        ),
        (
            TorchChunksConfig, (1.5,),
            "TorchChunksConfig: chunk_length must be an int or None, got 1.5; pass an int or None",
        ),
        (
            TorchTokensConfig, (None,),
            "TorchTokensConfig: split must be True or False, got None; pass True or False",
        ),
    ],
)  # fmt: skip
def test_a_field_of_another_type(config_type: type, values: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_type(*values)
    assert str(caught.value) == message
    assert isinstance(caught.value, TypeError)


def test_a_config_in_a_graph_is_held_to_its_types_too() -> None:
    with pytest.raises(NoTemplateError, match=r"not a config of cpu-rows: .*max_heads must be an"):
        read_config('cpu-rows {"max_heads": 2.5}')


@pytest.mark.parametrize("warps", [-1, 0, 3, 33, 64])
@pytest.mark.parametrize(("target", "most"), [("sm_90", 32), ("gfx942", 16)])
def test_warps_of_triton_are_a_power_of_two(warps: int, target: str, most: int) -> None:
    for config in (TritonRowsConfig(1, warps, 1), TritonChunksConfig(1, warps, 1, 100)):
        with pytest.raises(NoTemplateError) as caught:
            choose(SCAN, named_target(target), config)
        assert str(caught.value) == (
            f"{config} cannot run on {named_target(target)}: num_warps must be a power of two up "
            f"to {most}, not {warps}; choose another, or leave the choice to the heuristics"
        )


def test_as_many_warps_as_a_program_may_have() -> None:
    for target, most in (("sm_90", 32), ("gfx942", 16)):
        config = TritonRowsConfig(1, most, 1)
        assert choose(SCAN, named_target(target), config).config == config


def test_cpu_rows_keeps_to_a_threads_stack() -> None:
    large = specialise(pd_scan(PdScan(2**16, 2)))
    assert CpuRows().feasible(large, cpu_target(), CpuRowsConfig(1)) is None
    refused = CpuRows().feasible(large, cpu_target(), CpuRowsConfig(3))
    assert refused == (
        "the carries of 3 heads take 1572864 bytes of a thread's stack, more than 1048576; use "
        "fewer heads"
    )
    refused = CpuRows().feasible(SCAN, cpu_target(), CpuRowsConfig(1, prefetch=10**6))
    assert refused == "prefetch is a number of tokens up to 1024, not 1000000"


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_by_its_name(name: str) -> None:
    template = TEMPLATES[name]
    assert read_config(config_text(name)) == name
    for target in TARGETS:
        program = MIXTURES[0] if template.over_matrices else specialise(SCAN)
        if target.kind in template.kinds:
            schedule = choose(program, target, name)
            assert (schedule.template, schedule.reason) == (template, "explicit template")
            assert template.feasible(program, target, schedule.config) is None
        else:
            with pytest.raises(NoTemplateError, match=f"^{name} cannot run on {target}: {name} "):
                choose(program, target, name)
