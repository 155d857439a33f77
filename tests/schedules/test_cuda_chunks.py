"""cuda-chunks without a GPU: kernels for every NVIDIA architecture, what it refuses, and what a
launch passes to them.
"""

import ctypes
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from pdssm_compiler.ir import Program
from pdssm_compiler.ir.passes import adjoint, specialise
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime.backends import Sizes, cuda_chunked
from pdssm_compiler.schedules.chunking import carry_window, cluster_of_a_row
from pdssm_compiler.schedules.emit.names import text_name
from pdssm_compiler.schedules.signature import Signature
from pdssm_compiler.schedules.source import KernelSource
from pdssm_compiler.schedules.target import named_target
from pdssm_compiler.schedules.templates.base import Problem
from pdssm_compiler.schedules.templates.cuda_chunks import CudaChunks, CudaChunksConfig
from tests.kernels import few, under_stress
from tests.schedules.cuda import (
    ARCHS,
    BACKEND,
    H100,
    SUMS,
    WHICH,
    Handed,
    Record,
    active_adjoint,
    launches,
    lowered,
    resources,
    scan_of,
    tensors_for,
)
from tests.schedules.programs import squares
from tests.strategies import affine_programs

# What the text calls the sums of an active adjoint.
SUMS_NAME = text_name("grad_dictionary", written=True)
TEMPLATE = CudaChunks()
# Chunks of 8 tokens, three teams a block.
SMALL = CudaChunksConfig(4, 2, 3)


def assert_few_spills(source: KernelSource, record: Record) -> None:
    """Four programs in one kernel keep more than a thread has where a block has many of them: each
    quarter of a processor has 512 registers for each lane of its warps together.
    """
    found = resources(source, record)
    each = 512 // -(-source.options["threads"] // (4 * 32))
    record("registers_at_most", each)
    assert found["spilled"] <= (128 if each >= 128 else 256)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("which", WHICH)
def test_compiles(arch: str, which: str, record_property: Record) -> None:
    assert_few_spills(lowered(TEMPLATE, scan_of(which), arch), record_property)


@pytest.mark.parametrize(
    "which", ["general", "active adjoint", *under_stress("permutation", "adjoint")]
)
def test_clusters_compile(which: str, record_property: Record) -> None:
    """Without what joins windows they take fewer registers."""
    config = CudaChunksConfig(4, 6, 12)
    windows, clusters = (
        resources(lowered(TEMPLATE, scan_of(which), config=each), record_property)
        for each in (config, replace(config, clusters=1))
    )
    assert clusters["registers"] <= windows["registers"]
    assert clusters["spilled"] <= windows["spilled"]


@pytest.mark.parametrize("state_size", [1, 5, 33, 128, 256, *under_stress(64, 100)])
def test_any_state_size_compiles(state_size: int, record_property: Record) -> None:
    program = pd_scan(PdScan(state_size, 4, initial_state=True, final_state=True))
    source = lowered(TEMPLATE, program)
    lanes = 32 * -(-state_size // 32)
    assert source.options["threads"] == source.config["teams"] * lanes
    assert_few_spills(source, record_property)


@pytest.mark.parametrize("scan", SUMS, ids=str)
def test_sums_by_an_index_compile(
    scan: tuple[int, int, str, str], record_property: Record
) -> None:
    assert_few_spills(lowered(TEMPLATE, active_adjoint(*scan)), record_property)


@pytest.mark.parametrize("map_source", ["token", "none"])
def test_other_sources_of_maps_compile(map_source: str, record_property: Record) -> None:
    program = pd_scan(PdScan(64, None, map_source=map_source))
    assert_few_spills(lowered(TEMPLATE, program), record_property)


@pytest.mark.stress
@few(2, program=st.sampled_from((32, 64)).flatmap(lambda bits: affine_programs(precision=bits)))
def test_random_bodies_compile(program: Program) -> None:
    derived = adjoint(program, surrogate="active")
    for each in (derived.forward, derived.program):
        refused = TEMPLATE.feasible(specialise(each), H100, SMALL)
        if refused is None:
            source = lowered(TEMPLATE, each, config=SMALL)
            files = BACKEND.compile(source, 16)
            assert BACKEND.load(source, 16, files).resources()["registers"] > 0
        else:
            assert refused.startswith("chunks have no summary: ")


SCAN = pd_scan(PdScan(32, 4))


@pytest.mark.parametrize(
    ("program", "config", "reason"),
    [
        (SCAN, CudaChunksConfig(3, 4, 1), "tile must be even, from 2 to 32, not 3"),
        (SCAN, CudaChunksConfig(0, 4, 1), "tile must be even, from 2 to 32, not 0"),
        (SCAN, CudaChunksConfig(34, 4, 1), "tile must be even, from 2 to 32, not 34"),
        (SCAN, CudaChunksConfig(4, 0, 1), "tiles is at least 1, not 0"),
        (SCAN, CudaChunksConfig(4, 2, 0), "teams is from 1 to 15, not 0"),
        (SCAN, CudaChunksConfig(4, 2, 16), "teams is from 1 to 15, not 16"),
        (pd_scan(PdScan(256, 4)), CudaChunksConfig(2, 2, 5), "40 warps are more than a block has"),
        (pd_scan(PdScan(257, 4)), SMALL, "a state size of 257 is more than 256"),
        (squares(), SMALL, "chunks have no summary: the step is not affine in the carry"),
        (SCAN, CudaChunksConfig(4, 2, 1, clusters=2), "clusters is 0 or 1, not 2"),
        (SCAN, CudaChunksConfig(32, 100, 1), "bytes of shared memory are more than 232448"),
    ],
    ids=lambda value: "" if isinstance(value, Program) else str(value),
)
def test_feasible_says_why_not(program: Program, config: CudaChunksConfig, reason: str) -> None:
    refused = TEMPLATE.feasible(specialise(program), H100, config)
    assert refused is not None
    assert reason in refused


def test_feasible_refuses_other_devices() -> None:
    refused = TEMPLATE.feasible(specialise(SCAN), named_target("gfx942"), SMALL)
    assert refused == "cuda-chunks is for NVIDIA GPUs, not for hip:gfx942"


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90", "sm_100", "sm_120"])
def test_clusters_from_hopper_on(arch: str) -> None:
    refused = TEMPLATE.feasible(specialise(SCAN), named_target(arch), replace(SMALL, clusters=1))
    if arch < "sm_90" and len(arch) == 5:
        assert refused == f"cuda:{arch} has no clusters of blocks; devices from sm_90 on have"
    else:
        assert refused is None


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("element", ["c64", "c128"])
def test_the_heuristic_is_feasible_or_says_why_not(arch: str, element: str) -> None:
    target = named_target(arch)
    for state_size in (1, 31, 32, 33, 64, 100, 128, 200, 256):
        for source, size in (("dictionary", 4), ("token", None), ("none", None)):
            scan = pd_scan(PdScan(state_size, size, element, map_source=source))
            for program in (scan, adjoint(scan).program):
                asked = specialise(program)
                config = TEMPLATE.heuristic(asked, target, Problem())
                refused = TEMPLATE.feasible(asked, target, config)
                if refused is None:
                    TEMPLATE.lower(asked, target, config)
                else:
                    # Then not even the shortest chunk fits.
                    assert "bytes of shared memory are more than" in refused
                    assert TEMPLATE.feasible(asked, target, CudaChunksConfig(2, 4, 1)) is not None
                    assert state_size > 64


def test_tables_too_large_for_shared_memory() -> None:
    program = specialise(pd_scan(PdScan(256, 300)))
    config = TEMPLATE.heuristic(program, H100, Problem())
    refused = TEMPLATE.feasible(program, H100, config)
    assert refused is not None
    assert "bytes of shared memory are more than" in refused


# -- launches -----------------------------------------------------------------------------------


def small() -> KernelSource:
    """A forward scan of 8 states by 4 maps."""
    return lowered(TEMPLATE, pd_scan(PdScan(8, 4, final_state=True)), config=SMALL)


def memory(handed: Handed, name: str, shape: tuple[int, ...], type_: type) -> np.ndarray:
    """A tensor that a launch is handed, dense."""
    size = int(np.prod(shape))
    where = (type_ * max(1, size)).from_address(handed[f"{name}_ptr"])
    return np.ctypeslib.as_array(where)[:size].reshape(shape)


@pytest.mark.parametrize(
    ("sizes", "at_once", "abreast", "sharing"),
    [
        # 125 chunks a row, of which every block takes three at a time.
        (Sizes(2, 1000, 2), 132, 4, 33),
        (Sizes(1, 1000, 1), 132, 1, 42),
        # A length that ends inside a chunk.
        (Sizes(1, 1001, 2), 20, 2, 10),
        # Fewer chunks than teams, one token, none.
        (Sizes(2, 9, 2), 132, 4, 1),
        (Sizes(2, 1, 2), 132, 4, 1),
        (Sizes(2, 0, 2), 132, 4, 1),
        # More rows than blocks, as many, and more than half as many.
        (Sizes(4, 1000, 5), 7, 7, 1),
        (Sizes(1, 1000, 7), 7, 7, 1),
        (Sizes(1, 1000, 4), 7, 4, 1),
        (Sizes(3, 1000, 1), 1, 1, 1),
    ],
    ids=str,
)
def test_a_launch_shares_blocks_out(
    sizes: Sizes, at_once: int, abreast: int, sharing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = small()
    tensors = tensors_for(source, sizes)
    batch, length, heads = sizes
    chunks = max(1, -(-length // 8))
    window = carry_window(sharing, 3)
    every = window if window > 1 else 3
    # Windows of one chunk have no summaries to join.
    left = chunks if window > 1 else 1
    seen: list[bool] = []

    def running(handed: Handed) -> None:
        windows = -(-chunks // every)
        # 8 complex numbers of 64 bits are 16 words, each half of one number's.
        words = memory(handed, "passed", (batch, windows, heads, 16), ctypes.c_int64)
        flags = memory(handed, "folded", (batch, left, heads), ctypes.c_int32)
        seen.append(not words.any() and not flags.any())

    (handed,) = launches(monkeypatch, source, tensors, sizes, at_once, running)
    assert seen == [True]
    assert [handed[name] for name in ("abreast", "window", "every")] == [abreast, window, every]
    assert handed["grid"] == handed["blocks"] == abreast * sharing
    assert handed["blocks"] <= at_once
    assert (handed["threads"], handed["stream"]) == (96, 7)
    assert (handed["rows"], handed["L"], handed["H"]) == (batch * heads, length, heads)
    assert handed["in_diagonal0_ptr"] == tensors[0].data_ptr()
    # A place for every chunk of every row that has one.
    for name, own in (("chunk_diagonal", 16), ("chunk_drive", 16), ("chunk_map", 8)):
        strides = [handed[f"{name}_s{axis}"] for axis in "BCH"]
        assert strides == [left * heads * own, heads * own, own]
    assert [handed[f"folded_s{axis}"] for axis in "BCH"] == [left * heads, heads, 1]
    assert [handed[f"passed_s{axis}"] for axis in "CH"] == [heads * 16, 16]


@pytest.mark.parametrize(
    ("sizes", "at_once", "abreast", "sharing"),
    [
        # 125 chunks a row, of which every block takes three at a time: 33 rows of four blocks.
        (Sizes(1, 1000, 33), 132, 33, 4),
        # One row more would follow by itself: three blocks share each.
        (Sizes(2, 1000, 17), 132, 34, 3),
        # As many blocks as a cluster has, and no more.
        (Sizes(1, 3000, 1), 132, 1, 8),
        (Sizes(4, 3000, 4), 132, 16, 8),
        # Fewer chunks than teams, one token, none.
        (Sizes(2, 9, 2), 132, 4, 1),
        (Sizes(2, 1, 2), 132, 4, 1),
        (Sizes(2, 0, 2), 132, 4, 1),
        # More rows than blocks: they follow one another, in one block each or in two.
        (Sizes(4, 1000, 5), 7, 7, 1),
        (Sizes(3, 1000, 1), 2, 1, 2),
    ],
    ids=str,
)
def test_a_launch_of_clusters(
    sizes: Sizes, at_once: int, abreast: int, sharing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teams of a cluster leave nothing in global memory."""
    program = pd_scan(PdScan(8, 4, final_state=True))
    source = lowered(TEMPLATE, program, config=replace(SMALL, clusters=1))
    assert source.scratch == ()
    (handed,) = launches(monkeypatch, source, tensors_for(source, sizes), sizes, at_once)
    assert handed["how"] == f"launch_in_clusters of {sharing}"
    assert (handed["abreast"], handed["grid"]) == (abreast, abreast * sharing)
    assert handed["grid"] == handed["blocks"] <= at_once
    assert (handed["threads"], handed["stream"]) == (96, 7)
    assert (handed["rows"], handed["L"]) == (sizes.batch * sizes.heads, sizes.length)


def test_blocks_are_shared_out_once_for_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a CPU longer than the rest of a launch, and sums are given room by it as well."""
    found: list[tuple[int, int]] = []

    def counted(*given: Any) -> tuple[int, int]:
        found.append(cluster_of_a_row(*given))
        return found[-1]

    monkeypatch.setattr(cuda_chunked, "cluster_of_a_row", counted)
    config = replace(SMALL, clusters=1)
    source = lowered(TEMPLATE, active_adjoint(8, 4, "c64", "column"), config=config)
    sizes = Sizes(2, 100, 3)
    (handed,) = launches(monkeypatch, source, tensors_for(source, sizes), sizes)
    assert found == [(6, 5)]
    assert handed["how"] == "launch_in_clusters of 5"


def test_sizes_of_clusters_that_do_not_fit_are_not_taken() -> None:
    """A device may run blocks, but no cluster of so many."""
    fits = {1: 132, 2: 66, 3: 0, 4: 2}
    assert cluster_of_a_row(33, 100, 3, lambda size: fits.get(size, 0)) == (33, 2)
    assert cluster_of_a_row(2, 100, 3, lambda size: fits.get(size, 0)) == (2, 4)


def test_an_empty_call_launches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    source = small()
    for sizes in (Sizes(0, 3, 2), Sizes(2, 3, 0)):
        assert launches(monkeypatch, source, tensors_for(source, sizes), sizes) == []


def test_windows_are_what_a_warp_can_await() -> None:
    for teams in (1, 2, 3, 6, 12, 15):
        windows = [carry_window(sharing, teams) for sharing in range(1, 1000)]
        assert windows == sorted(windows)
        assert windows[0] == 1
        assert all(1 <= w <= min(32, s * teams) for s, w in enumerate(windows, 1))


def test_windows_where_many_blocks_share_a_row() -> None:
    """33 blocks of 3 teams wait for windows; 4 of 12 pass carries on from team to team."""
    assert [carry_window(*each) for each in ((33, 3), (4, 12))] == [8, 1]


@pytest.mark.parametrize("length", [0, 100])
def test_sums_of_teams_are_added_up(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every team adds to a place of its own; the output is their sum, over them in order."""
    source = lowered(TEMPLATE, active_adjoint(8, 4, "c64", "column"), config=SMALL)
    sizes = Sizes(2, length, 3)
    tensors = tensors_for(source, sizes)
    arguments = source.signature.arguments
    (place,) = [at for at, argument in enumerate(arguments) if argument.name == SUMS_NAME]
    # A row's 13 chunks are shared out to five blocks of three teams; none has one as well.
    teams = 15 if length else 3
    partial = np.random.default_rng(0).integers(-99, 99, (2, teams, 3, 4, 8)).astype("f4")

    def running(handed: Handed) -> None:
        assert handed[f"{SUMS_NAME}_ptr"] != tensors[place].data_ptr()
        memory(handed, SUMS_NAME, partial.shape, ctypes.c_float)[:] = partial

    (handed,) = launches(monkeypatch, source, tensors, sizes, running=running)
    strides = [handed[f"{SUMS_NAME}_s{axis}"] for axis in "BCH"]
    assert strides == [teams * 3 * 32, 3 * 32, 32]
    assert torch.equal(tensors[place], torch.tensor(partial.sum(1)))


def test_sums_have_an_axis_of_teams() -> None:
    """What the kernel writes and what a launch hands it is one convention."""
    source = lowered(TEMPLATE, active_adjoint(8, 4, "c64", "column"), config=SMALL)
    own = Signature(source.program).sum_outputs
    handed = cuda_chunked.ChunkedCudaKernel.signature(source).sum_outputs
    assert [total.leading for total in own] == [("B", "H")]
    assert [total.leading for total in handed] == [("B", "C", "H")]
    assert f"{SUMS_NAME}_sC: T.int64" in source.text


def test_short_rows_that_blocks_share_take_short_chunks() -> None:
    """As was measured on an H200, by length: docs/gpu-log.md."""
    gpu = named_target("h200")
    program = specialise(pd_scan(PdScan(64, 4, map_class="permutation")))

    def by_length(rows: int) -> list[CudaChunksConfig]:
        buckets = [Problem.bucket(rows, 1 << bits) for bits in range(9, 17)]
        return [TEMPLATE.heuristic(program, gpu, bucket) for bucket in buckets]

    windows, clusters = by_length(32), by_length(64)
    tokens = [config.tokens for config in windows]
    assert tokens == sorted(tokens)
    assert (tokens[0], tokens[1], tokens[-1]) == (16, 16, 48)
    assert [config.tile for config in windows] == [4 if n < 24 else 8 for n in tokens]
    assert [config.tokens for config in clusters] == [16, 16, 20, 20, 20, 20, 20, 20]
    # Nor is it so where a block has a row, or more, or of what collects.
    for each, rows in ((program, 128), (specialise(pd_scan(PdScan(64, 4))), 64)):
        chosen = {TEMPLATE.heuristic(each, gpu, Problem.bucket(rows, 1 << n)) for n in (10, 15)}
        assert len(chosen) == 1


@pytest.mark.parametrize("gpu", ["h100", "h200"])
def test_few_blocks_that_share_long_wide_rows_have_several_teams(gpu: str) -> None:
    """As was measured; where windows join summaries, or rows are short, one team was faster:
    docs/gpu-log.md.
    """
    found = {
        (n, rows, length): TEMPLATE.heuristic(
            specialise(pd_scan(PdScan(n, 8))), named_target(gpu), Problem.bucket(rows, length)
        )
        for n, rows, length in (
            (128, 64, 4096),
            (128, 32, 8192),
            (256, 32, 4096),
            (128, 4, 17984),
            (80, 32, 1176),
        )
    }
    assert found[128, 64, 4096] == CudaChunksConfig(4, 5, 4, clusters=1)
    assert found[128, 32, 8192] == CudaChunksConfig(4, 7, 3)
    assert found[256, 32, 4096] == CudaChunksConfig(4, 4, 2)
    assert found[128, 4, 17984].teams == found[80, 32, 1176].teams == 1


@pytest.mark.parametrize("n", [8, 32, 64])
def test_where_clusters_are_taken(n: int) -> None:
    """Where at most two blocks share a row, but for moves in one warp, and where there are any:
    docs/gpu-log.md.
    """
    collecting = specialise(pd_scan(PdScan(n, 4)))
    moving = specialise(pd_scan(PdScan(n, 4, map_class="permutation")))
    side_by_side = max(1, 32 // n)

    def taken(program: Program, rows: int, gpu: str) -> int:
        bucket = Problem.bucket(rows * side_by_side, 8192)
        return TEMPLATE.heuristic(program, named_target(gpu), bucket).clusters

    for gpu in ("h100", "h200"):
        assert [taken(collecting, rows, gpu) for rows in (4, 32, 64, 128)] == [0, 0, 1, 1]
        assert [taken(moving, rows, gpu) for rows in (32, 64, 128)] == [0, int(n > 32), 1]
    assert taken(collecting, 128, "a100") == 0


@pytest.mark.parametrize(
    ("rows", "kinds"), [(256, {1}), (64, {0, 1}), (32, {0, 1}), (4, {0}), (None, {0, 1})]
)
def test_which_of_windows_and_clusters_are_worth_measuring(
    rows: int | None, kinds: set[int]
) -> None:
    """Not both where a block has a row, nor clusters where many share one."""
    program, gpu = specialise(pd_scan(PdScan(32, 4))), named_target("h200")
    problem = Problem() if rows is None else Problem.bucket(rows, 4096)
    space = list(TEMPLATE.space(program, gpu))
    worth = [c for c in space if TEMPLATE.worthwhile(program, gpu, problem, c)]
    assert {config.clusters for config in worth} == kinds
    assert len(worth) * 2 == len(space) * len(kinds)
    assert TEMPLATE.heuristic(program, gpu, problem) in worth
