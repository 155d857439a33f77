"""Templates: what their heuristics choose and what ``feasible`` refuses, and why."""

import pytest

from pdssm_compiler.ir import Program, ProgramBuilder
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.passes import adjoint, specialise
from pdssm_compiler.ir.passes.specialise import inverse_program
from pdssm_compiler.ir.program import Input
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.ir.types import Table, Vector
from pdssm_compiler.runtime.compile_service import choose, config_text, read_config
from pdssm_compiler.runtime.errors import NoTemplateError
from pdssm_compiler.schedules.registry import TEMPLATES, candidates
from pdssm_compiler.schedules.target import (
    NAMED_TARGETS,
    Target,
    UnknownTargetError,
    cpu_target,
    gpu_target,
    named_target,
)
from pdssm_compiler.schedules.templates.base import Problem
from pdssm_compiler.schedules.templates.cpu_rows import CpuRows, CpuRowsConfig, launch
from pdssm_compiler.schedules.templates.torch_chunks import TorchChunks, TorchChunksConfig
from pdssm_compiler.schedules.templates.torch_tokens import TorchTokens, TorchTokensConfig
from pdssm_compiler.schedules.templates.triton_rows import TritonRows, TritonRowsConfig

SIZES = (*range(1, 20), 31, 32, 33, 48, 63, 64, 65, 96, 100, 127, 128, 129, 192, 255, 256)
H100 = named_target("sm_90")


def program(state_size: int, map_class: str = "general", backward: bool = False) -> Program:
    found = pd_scan(PdScan(state_size, 4, map_class=map_class, final_state=True))
    return specialise(adjoint(found).program if backward else found)


@pytest.mark.parametrize("target", ["cpu", *NAMED_TARGETS])
@pytest.mark.parametrize("map_class", ["general", "permutation"])
def test_heuristic_is_feasible_or_the_refusal_is_clear(target: str, map_class: str) -> None:
    named = named_target(target)
    for state_size in SIZES:
        for backward in (False, True):
            asked = program(state_size, map_class, backward)
            # Only the scatter's quadratic tile is ever too large.
            quadratic = map_class == "general" and not backward and target != "cpu"
            refused = [problem for _, problem in candidates(asked, named) if problem]
            if refused:
                assert quadratic
                assert state_size > 128
                with pytest.raises(NoTemplateError) as caught:
                    choose(asked, named)
                place = f"state size of {state_size} on {named}: triton-rows: a tile of"
                assert place in str(caught.value)
                continue
            schedule = choose(asked, named)
            assert schedule.reason == "heuristic"
            template, config = schedule.template, schedule.config
            assert template.feasible(asked, named, config) is None
            assert config == template.heuristic(asked, named, Problem())


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (TritonRowsConfig(3, 1, 1), "rows must be a power of two, not 3"),
        (TritonRowsConfig(0, 1, 1), "rows must be a power of two, not 0"),
        (TritonRowsConfig(64, 1, 1), "use more warps or fewer rows"),
        (TritonRowsConfig(1, 1, 1000), "loading 1000 tokens together needs"),
    ],
)
def test_triton_rows_refuses(config: TritonRowsConfig, reason: str) -> None:
    found = TritonRows().feasible(program(64), H100, config)
    assert found is not None
    assert reason in found
    with pytest.raises(NoTemplateError, match="cannot run on cuda:sm_90") as caught:
        choose(program(64), H100, config)
    assert reason in str(caught.value)


def test_templates_refuse_other_kinds_of_devices() -> None:
    refused = TritonRows().feasible(program(8), cpu_target(), TritonRowsConfig(1, 1, 1))
    assert refused == f"triton-rows is for GPUs, not for {cpu_target()}"
    refused = CpuRows().feasible(program(8), H100, CpuRowsConfig(1))
    assert refused == "cpu-rows is for CPUs, not for cuda:sm_90"
    assert CpuRows().feasible(program(8), cpu_target(), CpuRowsConfig(0)) == (
        "max_heads is at least 1, not 0"
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_space_has_the_configs_of_its_template(name: str) -> None:
    template = TEMPLATES[name]
    target = cpu_target() if "cpu" in template.kinds else H100
    configs = list(template.space(program(32), target))
    assert len(configs) == len(set(configs)) > 1
    assert all(template.accepts(config) for config in configs)
    assert any(template.feasible(program(32), target, config) is None for config in configs)


@pytest.mark.parametrize(
    "config",
    [
        CpuRowsConfig(4, False),
        TritonRowsConfig(2, 1, 4),
        TorchTokensConfig(split=True),
        TorchChunksConfig(16, compiled=True),
        TorchChunksConfig(),
    ],
)
def test_config_text_reads_back(config: object) -> None:
    assert read_config(config_text(config)) == config


def test_config_errors() -> None:
    assert read_config("") is None
    with pytest.raises(NoTemplateError, match="unknown template 'gpu-rows'; there are"):
        read_config("gpu-rows {}")
    with pytest.raises(NoTemplateError, match="not a config of cpu-rows"):
        read_config('cpu-rows {"columns": 1}')
    with pytest.raises(NoTemplateError, match="not a config of cpu-rows"):
        read_config("cpu-rows {")
    with pytest.raises(NoTemplateError, match="is not a config of any template"):
        config_text("fast")
    with pytest.raises(NoTemplateError, match="is not a config of any template"):
        choose(program(8), H100, "fast")


def test_candidates_are_of_the_targets_kind() -> None:
    assert [template.name for template, _ in candidates(program(8), H100)] == ["triton-rows"]
    assert [template.name for template, _ in candidates(program(8), cpu_target())] == ["cpu-rows"]


@pytest.mark.parametrize("target", ["cpu", "sm_90", "gfx942"])
def test_plain_pytorch_is_no_candidate_but_a_fallback(target: str) -> None:
    fallbacks = candidates(program(8), named_target(target), fallback=True)
    assert [(template.name, why) for template, why in fallbacks] == [
        ("torch-chunks", None),
        ("torch-tokens", None),
    ]
    schedule = choose(program(8), named_target(target), TorchTokensConfig())
    assert (schedule.template.name, schedule.reason) == ("torch-tokens", "explicit config")


def test_torch_chunks_refuses() -> None:
    template = TorchChunks()
    assert template.feasible(program(8), cpu_target(), TorchChunksConfig(0)) == (
        "chunk_length is at least 1, not 0"
    )
    helper = inverse_program(8, Input("maps", Table(4, "permutation"), "head"))
    assert template.feasible(helper, cpu_target(), TorchChunksConfig()) == (
        "a summary needs exactly one carry, a vector; this program has none"
    )
    build = ProgramBuilder(4)
    state = build.carry("state", Vector("f32"), "zero")
    total = b.add(b.function("tanh", state), build.input("x", Vector("f32")))
    build.next("state", total)
    build.emit("states", total)
    with pytest.raises(NoTemplateError, match="not affine in the carry: tanh of the carry"):
        choose(build.build(), cpu_target(), TorchChunksConfig())


def test_torch_chunks_takes_the_programs_own_chunks() -> None:
    fixed = pd_scan(PdScan(8, 4, chunk_length=24))
    assert TorchChunks().heuristic(fixed, cpu_target(), Problem()) == TorchChunksConfig(24)
    assert TorchChunks().heuristic(program(8), cpu_target(), Problem()) == TorchChunksConfig()
    other = Target("other", "mps")
    assert TorchChunks().heuristic(fixed, other, Problem()) == TorchChunksConfig(24, split=True)
    assert TorchTokens().heuristic(fixed, other, Problem()) == TorchTokensConfig(split=True)


def test_unknown_target() -> None:
    with pytest.raises(UnknownTargetError) as caught:
        named_target("sm_99")
    known = ", ".join(["cpu", *NAMED_TARGETS])
    assert str(caught.value) == f"unknown target 'sm_99'; known targets: {known}"


def test_a_queried_gpu_takes_missing_limits_from_its_like() -> None:
    assert gpu_target("cuda", "sm_90", 32, 114, 1000).registers == H100.registers
    assert gpu_target("cuda", "sm_999", 32, 1, 1000).registers == 255
    assert gpu_target("hip", "gfx1", 64, 1, 1000).registers == 512


@pytest.mark.parametrize("threads", [1, 2, 7, 64])
def test_launch_of_cpu_rows_covers_every_head(threads: int) -> None:
    for batch in (1, 2, 5):
        for heads in (1, 3, 16, 33):
            for most in (1, 4, 16):
                tasks, block = launch(CpuRowsConfig(most), batch, 1000, heads, 32, threads)
                assert 1 <= block <= min(most, heads)
                assert 1 <= tasks <= threads
                assert tasks <= batch * -(-heads // block)


def test_launch_of_cpu_rows_wakes_no_thread_for_a_short_scan() -> None:
    assert launch(CpuRowsConfig(16), 2, 4, 2, 8, 8)[0] == 1
    assert launch(CpuRowsConfig(16), 2, 4000, 2, 8, 8)[0] > 1
