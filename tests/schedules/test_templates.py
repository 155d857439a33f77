"""Templates: what their heuristics choose and what ``feasible`` refuses, and why."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from pdssm_compiler.ir import Program, ProgramBuilder
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.passes import adjoint, specialise
from pdssm_compiler.ir.passes.specialise import inverse_program
from pdssm_compiler.ir.program import Input
from pdssm_compiler.ir.programs import LEARNED, PdScan, mixture, pd_scan
from pdssm_compiler.ir.types import Table, Vector
from pdssm_compiler.runtime.compile_service import choose, config_text, read_config
from pdssm_compiler.runtime.errors import NoTemplateError
from pdssm_compiler.schedules.chunking import Chunking
from pdssm_compiler.schedules.emit.names import text_name
from pdssm_compiler.schedules.registry import TEMPLATES, candidates
from pdssm_compiler.schedules.target import (
    Target,
    UnknownTargetError,
    cpu_target,
    gpu_target,
    named_target,
    named_targets,
)
from pdssm_compiler.schedules.templates.base import Problem
from pdssm_compiler.schedules.templates.cpu_rows import CpuRows, CpuRowsConfig, launch
from pdssm_compiler.schedules.templates.cuda_rows import CudaRowsConfig
from pdssm_compiler.schedules.templates.torch_chunks import TorchChunks, TorchChunksConfig
from pdssm_compiler.schedules.templates.torch_tokens import TorchTokens, TorchTokensConfig
from pdssm_compiler.schedules.templates.triton_chunks import TritonChunks, TritonChunksConfig
from pdssm_compiler.schedules.templates.triton_lookback import (
    TritonLookback,
    TritonLookbackConfig,
)
from pdssm_compiler.schedules.templates.triton_rows import TritonRows, TritonRowsConfig
from tests.missing import without

pytestmark = pytest.mark.usefixtures("no_shipped_logs")

SIZES = (*range(1, 20), 31, 32, 33, 48, 63, 64, 65, 96, 100, 127, 128, 129, 192, 255, 256)
H100 = named_target("sm_90")


@cache
def program(state_size: int, map_class: str = "general", backward: bool = False) -> Program:
    found = pd_scan(PdScan(state_size, 4, map_class=map_class, final_state=True))
    return specialise(adjoint(found).program if backward else found)


@cache
def active_adjoint(state_size: int, size: int = 4, map_class: str = "general") -> Program:
    """A backward with sums by an index."""
    found = pd_scan(PdScan(state_size, size, map_class=map_class))
    return specialise(adjoint(found, surrogate="active").program)


TARGETS = ["cpu", *(name for name, target in named_targets().items() if name == target.arch)]


@pytest.mark.parametrize("state_size", SIZES)
@pytest.mark.parametrize("map_class", ["general", "permutation"])
def test_heuristic_is_feasible(map_class: str, state_size: int) -> None:
    """On every target, which share what they ask of a program."""
    both = [program(state_size, map_class, backward) for backward in (False, True)]
    for asked in (*both, active_adjoint(state_size, map_class=map_class)):
        for target in map(named_target, TARGETS):
            for problem in (Problem(), Problem.bucket(32, 32768)):
                assert all(c.problem is None for c in candidates(asked, target, problem)), target
                schedule = choose(asked, target, problem=problem)
                assert schedule.reason == "heuristic", target
                template, config = schedule.template, schedule.config
                assert template.feasible(asked, target, config) is None, target
                assert config == template.heuristic(asked, target, problem), target


def test_a_state_too_large_for_any_template() -> None:
    with pytest.raises(NoTemplateError) as caught:
        choose(program(2**18), H100)
    place = f"state size of {2**18} on cuda:sm_90: cuda-rows: a state size of {2**18} is more than"
    assert place in str(caught.value)
    assert "; triton-rows: a state size of" in str(caught.value)
    assert "; triton-chunks: a state size of" in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "length", "collecting", "gathering"),
    [
        (1, 511, "cuda-rows", "cuda-rows"),
        (1, 512, "cuda-chunks", "cuda-chunks"),
        (4, 17984, "cuda-chunks", "cuda-chunks"),
        (32, 32768, "cuda-chunks", "cuda-chunks"),
        (127, 4096, "cuda-chunks", "cuda-chunks"),
        (128, 4096, "cuda-chunks", "cuda-chunks"),
        (129, 4096, "cuda-chunks", "cuda-rows"),
        (511, 4096, "cuda-chunks", "cuda-rows"),
        (512, 4096, "cuda-chunks", "cuda-rows"),
        (513, 4096, "cuda-rows", "cuda-rows"),
        (1024, 10**6, "cuda-rows", "cuda-rows"),
    ],
)
def test_few_long_rows_are_run_in_chunks(
    rows: int, length: int, collecting: str, gathering: str
) -> None:
    """An H100 has 132 processors. So many rows keep it busy one by one; where targets collect
    their sources, four times as many.
    """
    problem = Problem.bucket(rows, length)
    for backward, name in ((False, collecting), (True, gathering)):
        schedule = choose(program(32, backward=backward), H100, problem=problem)
        assert (schedule.template.name, schedule.reason) == (name, "heuristic")


@pytest.mark.parametrize(
    ("rows", "length", "name"),
    [
        (1, 1023, "triton-rows"),
        (1, 1024, "triton-chunks"),
        (4, 17984, "triton-chunks"),
        (32, 32768, "triton-chunks"),
        (256, 4096, "triton-chunks"),
        (512, 4096, "triton-chunks"),
        (513, 4096, "triton-rows"),
        (1024, 10**6, "triton-rows"),
    ],
)
def test_without_a_cuda_compiler_triton_runs_all(
    rows: int, length: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An H100 has 132 processors: four warps each are 528 rows."""
    without(monkeypatch, tvm_cuda="no compiler: get one")
    problem = Problem.bucket(rows, length)
    for backward in (False, True):
        schedule = choose(program(32, backward=backward), H100, problem=problem)
        assert schedule.template.name == name


def test_what_is_missing_is_no_reason_where_it_could_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without(monkeypatch, tvm_cuda="no compiler: get one")
    schedule = choose(program(256), replace(H100, shared_memory=1024))
    assert (schedule.template.name, schedule.reason) == ("triton-rows", "heuristic")
    schedule = choose(program(256), H100)
    assert schedule.template.name == "triton-rows"
    assert schedule.reason == "heuristic; without cuda-rows: no compiler: get one"
    with pytest.raises(NoTemplateError, match="cuda-rows: a state size of 262144 is more than"):
        choose(program(2**18), H100)


def test_buckets_are_powers_of_two() -> None:
    assert Problem.bucket(0, 1) == Problem.bucket(1, 1) == Problem(1, 1)
    assert Problem.bucket(5, 1024) == Problem.bucket(8, 2047) == Problem(8, 2047)
    assert Problem.bucket(4, 1023) == Problem(4, 1023)


def test_what_has_no_summary_is_not_run_in_chunks() -> None:
    build = ProgramBuilder(4)
    drive = build.input("drive", Vector("f32"))
    carry = build.carry("state", Vector("f32"))
    build.next("state", b.mul(b.add(carry, drive), carry))
    build.emit("states", carry)
    squares = build.build()
    problem = Problem.bucket(1, 10**5)
    assert choose(squares, H100, problem=problem).template.name == "triton-rows"
    for template, config in (
        (TritonChunks(), TritonChunksConfig(1, 1, 1, 100)),
        (TritonLookback(), TritonLookbackConfig(1, 1, 4, 4)),
    ):
        refused = template.feasible(squares, H100, config)
        assert refused is not None
        assert refused.startswith("chunks have no summary: the step is not affine in the carry")
        with pytest.raises(NoTemplateError, match="not affine"):
            choose(squares, H100, config)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (TritonChunksConfig(3, 1, 1, 100), "rows must be a power of two, not 3"),
        (TritonChunksConfig(1, 1, 1, 0), "programs is from 1 to 2147483647, not 0"),
        (TritonChunksConfig(1, 1, 1, 100, 0), "least_chunk is from 1 to 2147483647, not 0"),
        (TritonChunksConfig(1, 1, 16, 100), "loading 16 tokens together needs"),
    ],
)
def test_triton_chunks_refuses(config: TritonChunksConfig, reason: str) -> None:
    found = TritonChunks().feasible(program(64), H100, config)
    assert found is not None
    assert reason in found


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (TritonLookbackConfig(3, 1, 4, 4), "rows must be a power of two, not 3"),
        (TritonLookbackConfig(1, 3, 4, 4), "num_warps must be a power of two up to 32, not 3"),
        (TritonLookbackConfig(1, 1, 0, 4), "tokens is at least 1, not 0"),
        (TritonLookbackConfig(1, 1, 4, 0), "window is from 1 to 30, not 0"),
        (TritonLookbackConfig(1, 1, 4, 31), "window is from 1 to 30, not 31"),
        # Of each of two elements: two words of the diagonal, two of the drive, three of the map
        # and its sorted form, and the index.
        (TritonLookbackConfig(1, 1, 16, 4), "keeping 16 tokens takes 256 of 255 registers"),
    ],
)
def test_triton_lookback_refuses(config: TritonLookbackConfig, reason: str) -> None:
    assert TritonLookback().feasible(program(64), H100, config) == reason
    with pytest.raises(NoTemplateError, match="cannot run on cuda:sm_90"):
        choose(program(64), H100, config)


def test_triton_lookback_refuses_what_costs_more_than_it_saves() -> None:
    fixed = replace(program(32), chunk_length=9)
    assert TritonLookback().feasible(fixed, H100, TritonLookbackConfig(1, 1, 8, 4)) == (
        "the scan's chunks have 9 tokens, not 8"
    )
    assert TritonLookback().feasible(fixed, H100, TritonLookbackConfig(1, 1, 9, 4)) is None
    config = TritonLookbackConfig(1, 1, 4, 4)
    assert TritonLookback().feasible(active_adjoint(8, 16), H100, config) is None
    assert TritonLookback().feasible(active_adjoint(8, 17), H100, config) == (
        "4 tokens are too few for sums of 17 values of an index"
    )


@pytest.mark.parametrize(
    ("rows", "window"), [(None, 8), (1, 16), (49, 16), (50, 8), (256, 4), (792, 4), (793, 2)]
)
def test_windows_leave_room_for_another(rows: int | None, window: int) -> None:
    """12 programs run at once on each of 132 processors: 1584 chunks of as many rows or fewer."""
    config = TritonLookback().heuristic(program(32), H100, Problem(rows, 4096))
    assert config.window == window


def test_look_back_is_taken_where_it_is_asked_for() -> None:
    for target in (H100, named_target("gfx942")):
        for rows in (1, 32, 256, 10**5):
            problem = Problem.bucket(rows, 32768)
            taken = choose(program(32), target, problem=problem).template
            assert taken.name != "triton-lookback"
        asked = choose(program(32), target, read_config("triton-lookback"))
        assert asked.template.name == "triton-lookback"


def test_all_that_programs_tell_one_another_is_cleared_at_once() -> None:
    asked = active_adjoint(8)
    source = TritonLookback().lower(asked, H100, TritonLookbackConfig(1, 1, 4, 4))
    assert [phase.entry for phase in source.launches] == ["scan", "total_out_grad_dictionary0"]
    (signals,) = [argument for argument in source.scratch if argument.role == "signal"]
    assert (signals.leading, signals.own_shape(8), signals.dtype) == ((), (), "int32")
    assert source.chunking is not None
    # A ticket, and a word for each of 3 windows of 5 blocks.
    assert source.chunking.signals(blocks=5, chunks=9) == 1 + 3 * 5
    assert source.chunking.length(5, 33) == 4


def test_few_tokens_are_not_worth_preparing_a_table() -> None:
    for length, prepared in ((1, False), (3, False), (4, True), (None, True)):
        problem = Problem(2048, length)
        config = TritonRows().heuristic(program(32), H100, problem)
        assert config.prepared is prepared
        assert (config.unroll == 1) is not prepared
        entries = [phase.entry for phase in TritonRows().lower(program(32), H100, config).launches]
        assert entries == [*(["sort_in_dictionary0"] if prepared else []), "scan"]
        # Where nothing is sorted, there is nothing to leave out.
        assert TritonRows().heuristic(program(32, "permutation"), H100, problem).prepared


def test_only_the_last_phase_reports() -> None:
    for map_class in ("general", "permutation"):
        source = TritonChunks().lower(
            program(8, map_class), H100, TritonChunksConfig(1, 1, 1, 100)
        )
        functions = source.text.split("@triton.jit\ndef ")[1:]
        reporting = [text.partition("(")[0] for text in functions if "tl.store(error" in text]
        assert reporting == ["scan"]
        entries = [phase.entry for phase in source.launches]
        sorts = ["sort_in_dictionary0"] if map_class == "general" else []
        assert entries == [*sorts, "fold", "carry", "scan"]


def test_sums_of_chunks_are_added_up_after_them() -> None:
    asked = active_adjoint(8)
    source = TritonChunks().lower(asked, H100, TritonChunksConfig(1, 1, 1, 100))
    assert [phase.entry for phase in source.launches] == [
        "fold", "carry", "scan", "total_out_grad_dictionary0",
    ]  # fmt: skip
    (partial,) = [a for a in source.scratch if a.name == "partial_out_grad_dictionary0"]
    assert (partial.leading, partial.own_shape(8)) == (("B", "C", "H"), (4, 8))
    (total,) = source.signature.sum_outputs
    assert (total.leading, total.own_shape(8)) == (("B", "H"), (4, 8))


@pytest.mark.parametrize(
    "name", ["cpu-rows", "cuda-step", "cuda-rows", "cuda-chunks", "triton-rows"]
)
def test_every_gradient_is_left_by_the_one_pass_that_scans(name: str) -> None:
    """Of diagonal, drive and initial state, the selection's scores, the dictionary's sums."""
    template = TEMPLATES[name]
    target = cpu_target() if "cpu" in template.kinds else H100
    forward = pd_scan(PdScan(8, 4, initial_state=True, final_state=True))
    backward = specialise(adjoint(forward, surrogate="active").program)
    source = template.lower(backward, target, template.heuristic(backward, target, Problem()))
    written = {argument.name for argument in source.signature.outputs}
    numbers = ("diagonal", "drive", "initial_state", "selection", "dictionary")
    assert written == {text_name(f"grad_{each}", written=True) for each in numbers}
    # TVM's are one kernel; Triton's may have others, such as those that sort a table.
    assert [phase.entry for phase in source.launches] in ([], ["scan"])


@pytest.mark.parametrize(("size", "least"), [(4, 32), (100, 100)])
def test_sums_of_chunks_are_small_beside_their_tokens(size: int, least: int) -> None:
    config = TritonChunks().heuristic(active_adjoint(8, size), H100, Problem())
    assert config.least_chunk == least


@pytest.mark.parametrize("blocks", [1, 4, 32, 500, 10**4])
@pytest.mark.parametrize("tokens", [0, 1, 31, 1024, 17984, 10**7])
def test_chunks_cover_a_row(blocks: int, tokens: int) -> None:
    for chunking in (Chunking(1584, 32, 8), Chunking(1, 1, 3), Chunking(10**9, 1, 1)):
        length = chunking.length(blocks, tokens)
        chunks = chunking.chunks(length, tokens)
        assert length >= chunking.least
        assert length % chunking.multiple == 0
        assert 1 <= chunks <= 65535
        assert (chunks - 1) * length < max(1, tokens) <= max(1, chunks * length)


def test_length_of_chunks() -> None:
    # 1584 programs of 32 rows: 49 chunks.
    assert Chunking(1584, 32, 8).length(32, 32768) == 672
    # 396 chunks would be 45 tokens, but then steps from chunk to chunk would take the time.
    assert Chunking(1584, 32, 8).length(4, 17984) == 96
    assert Chunking(1584, 32, 8).length(4, 100) == 32
    assert Chunking(1584, 32, 8, fixed=7).length(4, 100) == 7


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (TritonRowsConfig(3, 1, 1), "rows must be a power of two, not 3"),
        (TritonRowsConfig(0, 1, 1), "rows must be a power of two, not 0"),
        (TritonRowsConfig(1024, 1, 1), "use more warps or fewer rows"),
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
    """Forward and backward."""
    template = TEMPLATES[name]
    target = cpu_target() if "cpu" in template.kinds else H100
    if template.over_matrices:
        forward = mixture(32, 4, "f32", "column")
        given = [forward, adjoint(forward, LEARNED, surrogate="dense").program]
    else:
        given = [program(32), program(32, backward=True), active_adjoint(32)]
    for asked in given:
        configs = list(template.space(asked, target))
        assert len(configs) == len(set(configs)) > 1
        assert all(template.accepts(config) for config in configs)
        assert any(template.feasible(asked, target, config) is None for config in configs)


@pytest.mark.parametrize(
    "config",
    [
        CpuRowsConfig(4, False),
        TritonRowsConfig(2, 1, 4),
        TritonRowsConfig(2, 1, 1, prepared=False),
        TritonChunksConfig(1, 1, 4, 100),
        TritonLookbackConfig(1, 1, 4, 8),
        CudaRowsConfig(8, 3, 2),
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
    for wrong, message in (
        ("fast", "unknown template 'fast'; there are cpu-rows, cpu-matrices, cuda-chunks"),
        (7, "7 is not a config of any template; pass one, or a template's name: cpu-rows"),
        (CpuRowsConfig, "<class '.*CpuRowsConfig'> is not a config of any template; pass one"),
    ):
        with pytest.raises(NoTemplateError, match=message):
            config_text(wrong)
        with pytest.raises(NoTemplateError, match=message):
            choose(program(8), H100, wrong)


def test_candidates_are_of_the_targets_kind() -> None:
    names = [candidate.template.name for candidate in candidates(program(8), H100, Problem())]
    assert names == [
        "cuda-rows", "triton-rows", "cuda-chunks", "cuda-step", "triton-lookback", "triton-chunks",
    ]  # fmt: skip
    (found,) = candidates(program(8), cpu_target(), Problem())
    assert found.template.name == "cpu-rows"
    assert found.template.accepts(found.config)


def test_choosing_asks_each_heuristic_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for template in (CpuRows, TritonRows):
        real = template.heuristic

        def counted(self: Any, *arguments: Any, _real: Any = real) -> Any:
            asked.append(self.name)
            return _real(self, *arguments)

        monkeypatch.setattr(template, "heuristic", counted)
    choose(program(8), cpu_target())
    assert asked == ["cpu-rows"]


@pytest.mark.parametrize("target", ["cpu", "sm_90", "gfx942"])
def test_plain_pytorch_is_no_candidate_but_a_fallback(target: str) -> None:
    fallbacks = candidates(program(8), named_target(target), Problem(), fallback=True)
    assert [(found.template.name, found.problem) for found in fallbacks] == [
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
    known = ", ".join(["cpu", *named_targets()])
    assert str(caught.value) == (
        f"unknown target 'sm_99'; known targets: {known}, and the path of a description, ending "
        f"in .toml"
    )


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
