"""Every CUDA template's kernels against the interpreter, run on a CPU."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from pdssm_compiler.ir import Program, ProgramBuilder
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.passes import adjoint, specialise
from pdssm_compiler.ir.programs import PdScan, map_scores, pd_scan
from pdssm_compiler.ir.types import Vector
from pdssm_compiler.runtime.backends import Sizes as LaunchSizes
from pdssm_compiler.runtime.binding import TORCH_DTYPES
from pdssm_compiler.runtime.errors import IndexRangeError, NanLogitError, PromiseError
from pdssm_compiler.runtime.faults import Reporter
from pdssm_compiler.schedules.signature import CHECK_SHIFT
from pdssm_compiler.schedules.templates.base import Config, Problem, Template
from pdssm_compiler.schedules.templates.cuda_chunks import CudaChunks, CudaChunksConfig
from pdssm_compiler.schedules.templates.cuda_rows import CudaRows, CudaRowsConfig
from pdssm_compiler.schedules.templates.cuda_step import CudaStep, CudaStepConfig
from tests.kernels import LAYOUTS, assert_runs, few, tensors_of, under_stress
from tests.schedules.cuda import H100
from tests.schedules.cuda_on_cpu import run
from tests.strategies import Sizes, arrays_for, programs

CHUNKS, ROWS, STEP = CudaChunks(), CudaRows(), CudaStep()


def assert_agrees(
    template: Template[Any],
    config: Config,
    program: Program,
    sizes: Sizes,
    layout: str = "dense",
    seed: int = 0,
    most_blocks: int = 3,
    dictionary: np.ndarray | None = None,
) -> None:
    def outputs(program: Program, tensors: list[torch.Tensor], sizes: Sizes) -> list[torch.Tensor]:
        here = partial(run, config=config, most_blocks=most_blocks, seed=seed)
        found, error = here(template, program, tensors, LaunchSizes(*sizes))
        assert error == 0
        return found

    arrays = arrays_for(program, sizes, seed)
    if dictionary is not None:
        arrays["dictionary"][:] = dictionary
    assert_runs(outputs, program, arrays, sizes, layout)


def forward_and_backward(spec: PdScan) -> list[Program]:
    program = pd_scan(spec)
    return [program, adjoint(program, surrogate="active").program]


# State size, dictionary, map source, map class, orientation, element; teams where it is chunks.
SCANS = [
    (5, 3, "dictionary", "general", "column", "c64"),
    (32, 3, "dictionary", "general", "column", "c64"),
    (33, 3, "dictionary", "general", "row", "c64"),
    (64, 2, "dictionary", "permutation", "column", "c64"),
    (128, 2, "dictionary", "general", "column", "c64"),
    (3, None, "token", "general", "row", "c128"),
    (40, None, "token", "general", "column", "c64"),
    (2, None, "none", "general", "column", "c128"),
]


def spec_of(scan: tuple[Any, ...]) -> PdScan:
    n, k, source, map_class, orientation, element = scan
    return PdScan(
        n, k, element, map_source=source, map_class=map_class, orientation=orientation,
        initial_state=True, final_state=True,
    )  # fmt: skip


def some(scans: list[Any], *each_time: int) -> list[Any]:
    """The scans of these numbers are run each time, the others under stress."""
    return [
        pytest.param(scan, id=str(scan), marks=[] if at in each_time else [pytest.mark.stress])
        for at, scan in enumerate(scans)
    ]


# Of one warp a team and of several, collisions and none, 128 bits.
@pytest.mark.parametrize("scan", some(SCANS, 5))
def test_chunks(scan: tuple[Any, ...]) -> None:
    """Carries from team to team, from block to block and in windows; chunks of a few tokens, the
    last one shorter; several rows.
    """
    many, few = Sizes(1, 157, 1), Sizes(2, 21, 2)
    for program in forward_and_backward(spec_of(scan)):
        # Windows of one chunk, of three, whose last joins what two have left, of one again.
        for sizes, blocks, teams in ((many, 4, 4), (many, 40, 1), (few, 3, 4)):
            config = CudaChunksConfig(2, 2, teams)
            assert_agrees(CHUNKS, config, program, sizes, most_blocks=blocks, seed=blocks)


# Of one warp a team and of several, collisions and none, 128 bits.
@pytest.mark.parametrize("scan", some(SCANS, 3))
def test_chunks_of_clusters(scan: tuple[Any, ...]) -> None:
    """Carries from team to team and from block to block; rows that follow one another in a
    cluster, whose last words may not be written over; a block to a row, and more than there are
    chunks for.
    """
    for program in forward_and_backward(spec_of(scan)):
        for sizes, blocks, teams in (
            (Sizes(1, 157, 1), 4, 4),
            (Sizes(3, 61, 1), 4, 1),
            (Sizes(2, 21, 2), 8, 4),
            (Sizes(1, 9, 5), 3, 2),
        ):
            config = CudaChunksConfig(2, 2, teams, clusters=1)
            assert_agrees(CHUNKS, config, program, sizes, most_blocks=blocks, seed=blocks)


@pytest.mark.parametrize("n", [5, *under_stress(32, 40)])
def test_windows_join_summaries_with_collisions(n: int) -> None:
    """Lanes beyond the last element have a sorted form of their own, which nobody else may get."""
    program = pd_scan(PdScan(n, 8))
    assert_agrees(CHUNKS, CudaChunksConfig(2, 2, 1), program, Sizes(1, 200, 1), most_blocks=100)


@pytest.mark.parametrize("teams", [3, *under_stress(1)])
def test_chunks_of_one_tile(teams: int) -> None:
    """Then the copies of the next chunk are one group, with the indices in it."""
    program = pd_scan(PdScan(4, 3, final_state=True))
    config = CudaChunksConfig(4, 1, teams)
    assert_agrees(CHUNKS, config, program, Sizes(1, 50, 2), most_blocks=4)


@pytest.mark.parametrize("scan", some(SCANS, 2))
def test_rows(scan: tuple[Any, ...]) -> None:
    """Tokens enough for indices to be loaded twice, for eight tiles together."""
    for program in forward_and_backward(spec_of(scan)):
        team = -(-program.state_size // 32)
        assert_agrees(ROWS, CudaRowsConfig(4, 3, 1, team), program, Sizes(2, 39, 2))


@pytest.mark.stress
@pytest.mark.parametrize("orientation", ["column", "row"])
@pytest.mark.parametrize("n", [5, 64])
def test_dense_surrogate(n: int, orientation: str) -> None:
    """What writes the factors of gradients, by rows and in chunks."""
    names = ["diagonal", "dictionary", "drive", "selection"]
    program = pd_scan(PdScan(n, 3, orientation=orientation, packed=orientation == "row"))
    program = adjoint(program, names, surrogate="dense").program
    assert_agrees(ROWS, CudaRowsConfig(4, 3, 1, -(-n // 32)), program, Sizes(2, 23, 2))
    assert_agrees(CHUNKS, CudaChunksConfig(2, 2, 3), program, Sizes(1, 131, 1), most_blocks=4)


@pytest.mark.stress
@pytest.mark.parametrize("n", [5, 64])
def test_map_scores(n: int) -> None:
    """Rows of tokens, and of one."""
    program = map_scores(n, 8, "c64")
    assert_agrees(ROWS, CudaRowsConfig(8, 4, 1, -(-n // 32)), program, Sizes(3, 16, 2))
    assert_agrees(STEP, CudaStepConfig(4, 1), program, Sizes(7, 1, 2))


@pytest.mark.parametrize("n", [*under_stress(5), 40])
def test_sums_by_no_index(n: int) -> None:
    """Of a vector, of a complex one and of a number; each team has some of its own."""
    build = ProgramBuilder(n)
    carry = build.carry("state", Vector("c64"))
    drive = build.input("drive", Vector("c64"))
    following = b.add(b.mul(carry, build.input("diagonal", Vector("c64"))), drive)
    build.next("state", following)
    build.sum("states", following)
    build.sum("parts", b.imag(following))
    build.sum("number", b.total(b.real(drive)))
    build.emit("last", following)
    for blocks, teams in ((4, 4), (26, 1)):
        config = CudaChunksConfig(2, 2, teams)
        assert_agrees(CHUNKS, config, build.build(), Sizes(2, 131, 1), most_blocks=blocks)


@pytest.mark.parametrize("n", [*under_stress(31, 32), 100])
def test_targets_with_many_sources(n: int) -> None:
    """All to one; halves to two, of one warp and of several; ten and the rest; next to none."""
    j = np.arange(n)
    dictionary = np.stack([0 * j, n - 1 + 0 * j, j % 2, j * 2 // n * 3 % n, np.maximum(j, 10) % n])
    program = pd_scan(PdScan(n, len(dictionary), initial_state=True, final_state=True))
    sizes, team = Sizes(2, 14, 1), -(-n // 32)
    for template, config in (
        (ROWS, CudaRowsConfig(4, 3, 1, team)),
        (CHUNKS, CudaChunksConfig(2, 2, 2)),
    ):
        assert_agrees(template, config, program, sizes, dictionary=dictionary)


@pytest.mark.parametrize("n", [33, *under_stress(16, 32, 64, 65)])
def test_targets_with_few_sources(n: int) -> None:
    """Tiles whose maps have no target of more than 6 sources, none of more than 8, and others."""
    j = np.arange(n)
    most = [np.maximum(j, several - 1) for several in (1, 2, 4, 5, 6, 7, 8, 9)]
    program = pd_scan(PdScan(n, len(most), initial_state=True, final_state=True))
    team = -(-n // 32)
    for seed, chosen in enumerate(([0, 2, 3, 4], [0, 1, 3, 4, 5, 6], [2, 4, 6, 7])):
        dictionary = np.stack([most[chosen[k % len(chosen)]] for k in range(len(most))])
        for template, config in (
            (ROWS, CudaRowsConfig(8, 3, 1, team)),
            (CHUNKS, CudaChunksConfig(4, 2, 2)),
        ):
            sizes = Sizes(2, 27, 1)
            assert_agrees(template, config, program, sizes, seed=seed, dictionary=dictionary)


@pytest.mark.parametrize("scan", some(SCANS, 3, 6))
def test_steps(scan: tuple[Any, ...]) -> None:
    for program in forward_and_backward(spec_of(scan)):
        for length in (0, 1, 3):
            assert_agrees(STEP, CudaStepConfig(2), program, Sizes(3, length, 1))


@pytest.mark.parametrize("storage", ["f16", "bf16"])
@pytest.mark.parametrize("maps", [1, 5, 32, 70])
@few(3, seed=st.integers(0, 2**32 - 1))
def test_steps_that_choose(maps: int, storage: str, seed: int) -> None:
    """Of equal logits the first, zeros of both signs among them, as by the index."""
    program, sizes = pd_scan(PdScan(20, maps)), LaunchSizes(3, 2, 2)
    arrays = arrays_for(program, Sizes(*sizes), seed)
    numbers = np.random.default_rng(seed).integers(-3, 1, (*sizes, maps)) * 0.5
    numbers[0, 0] = [0.0, -0.0, -np.inf, -70000.0][seed % 4]
    arrays["selection"] = numbers.argmax(-1)
    tensors = tensors_of(program, arrays, "dense")
    (want,), error = run(STEP, program, tensors, sizes, config=CudaStepConfig(2), seed=seed)
    assert error == 0
    at = [input_.name for input_ in program.inputs].index("selection")
    tensors[at] = torch.from_numpy(numbers).to(TORCH_DTYPES[storage])
    chooses = program.stored("selection", storage)
    (found,), error = run(STEP, chooses, tensors, sizes, config=CudaStepConfig(2), seed=seed)
    assert error == 0
    assert torch.equal(found, want)
    tensors[at][2, 1, 1, maps // 2] = torch.nan
    (found,), error = run(STEP, chooses, tensors, sizes, config=CudaStepConfig(2), seed=seed)
    assert bool(found.isfinite().all())
    with pytest.raises(
        NanLogitError, match=r"the logits of selection\[b=2, t=1, h=1\] have a NaN"
    ):
        raise Reporter(specialise(chooses), chosen=True).error(error, sizes)


@pytest.mark.parametrize("storage", ["cb32", "c32"])
@pytest.mark.parametrize(
    ("template", "config"),
    [(ROWS, CudaRowsConfig(4, 3)), (CHUNKS, CudaChunksConfig(2, 2, 2)), (STEP, CudaStepConfig(2))],
    ids=["rows", "chunks", "step"],
)
def test_low_precision_payload(template: Template[Any], config: Config, storage: str) -> None:
    """Drive and states of 16 bits beside a float32 diagonal: read as they are, computed with in
    float32, and rounded once where they are written.
    """
    low = {"cb32": torch.bfloat16, "c32": torch.float16}[storage]
    spec = PdScan(5, 3, initial_state=True, final_state=True)
    program, sizes = pd_scan(replace(spec, payload_storage=storage)), LaunchSizes(2, 13, 2)
    arrays = arrays_for(program, Sizes(*sizes), 4)
    tensors = tensors_of(pd_scan(spec), arrays, "dense")
    drive = [input_.name for input_ in program.inputs].index("drive")
    tensors[drive] = torch.view_as_real(torch.from_numpy(arrays["drive"])).to(low)
    (states, final), error = run(template, program, tensors, sizes, config=config)
    assert error == 0
    assert states.dtype == low
    wide = [torch.view_as_complex(t.float()) if at == drive else t for at, t in enumerate(tensors)]
    (exact, last), _ = run(template, pd_scan(spec), wide, sizes, config=config)
    assert torch.equal(states, torch.view_as_real(exact).to(low))
    assert torch.equal(torch.view_as_complex(final) if final.dim() == 4 else final, last)


@pytest.mark.parametrize("size", [1, 256])
@pytest.mark.parametrize(
    ("template", "config"),
    [(ROWS, CudaRowsConfig(4, 3)), (CHUNKS, CudaChunksConfig(2, 2, 2)), (STEP, CudaStepConfig(2))],
    ids=["rows", "chunks", "step"],
)
def test_dictionaries_of_any_size(template: Template[Any], config: Config, size: int) -> None:
    """Of one map, and of as many as eight bits number; the last of them is selected, too."""
    program = adjoint(pd_scan(PdScan(5, size)), surrogate="active").program
    sizes = Sizes(1, 30, 1)
    assert (arrays_for(program, sizes, 2)["selection"] == size - 1).any()
    assert_agrees(template, config, program, sizes, seed=2)


# Rows wider than 8 warps, and what runs them.
WIDE = [
    (ROWS, (257, 2, "dictionary", "general", "column", "c64")),
    (ROWS, (1000, 2, "dictionary", "general", "column", "c64")),
    (ROWS, (1024, 2, "dictionary", "permutation", "row", "c64")),
    (STEP, (600, None, "token", "general", "row", "c64")),
]


@pytest.mark.parametrize(
    "case", [WIDE[0], WIDE[3], *under_stress(*WIDE[1:3])], ids=lambda case: str(case[1])
)
def test_wide_rows(case: tuple[Template[Any], tuple[Any, ...]]) -> None:
    template, scan = case
    for program in forward_and_backward(spec_of(scan)):
        config = template.heuristic(specialise(program), H100, Problem())
        assert_agrees(template, config, program, Sizes(1, 5, 1))


def test_the_widest_row() -> None:
    program = pd_scan(spec_of((4096, 6, "dictionary", "general", "column", "c64")))
    assert_agrees(STEP, CudaStepConfig(1, 32), program, Sizes(1, 2, 1))


@pytest.mark.parametrize("state_size", [1, 3, 8, *under_stress(2, 5, 16)])
def test_narrow_rows(state_size: int) -> None:
    """An odd number of them."""
    programs = forward_and_backward(spec_of((state_size, 3, *SCANS[0][2:])))
    # The adjoint gathers by the table, which no size is special to.
    for program in programs if state_size == 3 else programs[:1]:
        assert_agrees(ROWS, CudaRowsConfig(4, 3), program, Sizes(1, 9, 3))


@few(
    1,
    tables=st.sampled_from([0, 1]),
    sets=st.sampled_from([1, 2]),
    shape=st.sampled_from([(20, 1), (40, 2), (100, 2), (300, 3)]),
    orientation=st.sampled_from(["column", "row"]),
    seed=st.integers(0, 2**16),
)
def test_tables_that_are_not_prepared(
    tables: int, sets: int, shape: tuple[int, int], orientation: str, seed: int
) -> None:
    """The maps alone in shared memory, or nothing; with several elements a lane of a team."""
    n, team = shape
    config = CudaRowsConfig(2, 3, sets, team, tables)
    for program in forward_and_backward(spec_of((n, 5, *SCANS[0][2:4], orientation, "c64"))):
        assert_agrees(ROWS, config, program, Sizes(1, 11, 2), seed=seed)


@pytest.mark.parametrize("tables", [0, 1, 2])
def test_entries_out_of_range_are_clamped_and_reported(tables: int) -> None:
    program = pd_scan(PdScan(5, 2))
    arrays = arrays_for(program, Sizes(1, 3, 2), 0)
    arrays["dictionary"][1, 0, 2] = 99
    tensors = tensors_of(program, arrays, "dense")
    config = CudaRowsConfig(2, 3, tables=tables)
    (states,), error = run(ROWS, program, tensors, LaunchSizes(1, 3, 2), config=config)
    # The first check, the table's; head 1.
    assert error == (1 << CHECK_SHIFT) + 1
    assert bool(states.isfinite().all())


@pytest.mark.parametrize("length", [0, 1, 9, *under_stress(8)])
def test_few_tokens_in_chunks(length: int) -> None:
    program = pd_scan(PdScan(8, 3, initial_state=True, final_state=True))
    assert_agrees(CHUNKS, CudaChunksConfig(4, 2, 2), program, Sizes(2, length, 2))


@pytest.mark.parametrize("cut", [(4, 20), (32, 2), *under_stress((8, 13), (16, 4))], ids=str)
def test_seldom_tokens_of_long_chunks(cut: tuple[int, int]) -> None:
    """Of 8 states all go to one by one map of eight; a chunk keeps a bit a token, 32 in a word."""
    j = np.arange(8)
    dictionary = np.stack([0 * j, *[j] * 7])
    tile, tiles = cut
    length, config = tile * tiles, CudaChunksConfig(tile, tiles, 1)
    for seed in range(3):
        assert_agrees(
            CHUNKS, config, pd_scan(PdScan(8, 8)), Sizes(1, length, 1), seed=seed,
            dictionary=dictionary,
        )  # fmt: skip


@pytest.mark.parametrize("tile", [4, *under_stress(8)])
def test_long_chunks(tile: int) -> None:
    """More tokens of a chunk than lanes that fetch them."""
    program = pd_scan(PdScan(8, 3, initial_state=True, final_state=True))
    assert_agrees(CHUNKS, CudaChunksConfig(tile, 64 // tile, 2), program, Sizes(1, 150, 2))


@few(
    1,
    program=st.sampled_from((32, 64)).flatmap(lambda bits: programs(precision=bits)),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 2**16),
)
def test_random_bodies(program: Program, layout: str, seed: int) -> None:
    derived = adjoint(program)
    for each in (derived.forward, derived.program):
        for template, config in (
            (ROWS, CudaRowsConfig(2, 3)),
            (CHUNKS, CudaChunksConfig(2, 2, 3)),
            (STEP, CudaStepConfig(2)),
        ):
            if template.feasible(specialise(each), H100, config) is None:
                assert_agrees(template, config, each, Sizes(2, 13, 2), layout, seed)


@pytest.mark.parametrize(
    ("entry", "error", "told"),
    [
        (3, PromiseError, r"dictionary\[h=1, k=2\] is not the permutation"),
        (8, IndexRangeError, r"dictionary\[h=1, k=2\] has an entry out of range: .* \[0, 8\)"),
        (-1, IndexRangeError, r"dictionary\[h=1, k=2\] has an entry out of range"),
    ],
)
@pytest.mark.parametrize(
    ("template", "config"),
    [(ROWS, CudaRowsConfig(2, 3)), (CHUNKS, CudaChunksConfig(2, 2, 2)), (STEP, CudaStepConfig(2))],
    ids=["rows", "chunks", "step"],
)
def test_a_map_that_is_no_permutation_is_told(
    template: Template[Any], config: Config, entry: int, error: type[Exception], told: str
) -> None:
    """Kernels invert tables themselves: they know what cannot be inverted, and harm nothing."""
    program = pd_scan(PdScan(8, 3, map_class="permutation"))
    sizes = Sizes(2, 9, 2)
    tensors = tensors_of(program, arrays_for(program, sizes, 5), "dense")
    names = [input_.name for input_ in program.inputs]
    dictionary = tensors[names.index("dictionary")]
    dictionary[1, 2] = torch.arange(8)
    dictionary[1, 2, 5] = entry
    _, word = run(template, program, tensors, LaunchSizes(*sizes), config=config)
    with pytest.raises(error, match=told):
        raise Reporter(specialise(program)).error(word, LaunchSizes(*sizes))
