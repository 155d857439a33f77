"""Rows narrower than a warp that one warp holds side by side, run on a CPU: the interpreter's
values whatever the rows' number, maps, heads and neighbours.
"""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from pdssm_compiler.ir import Program
from pdssm_compiler.ir.passes import adjoint, specialise
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime.backends import Sizes as LaunchSizes
from pdssm_compiler.runtime.errors import IndexRangeError, PromiseError
from pdssm_compiler.runtime.faults import Reporter
from pdssm_compiler.schedules.emit.cuda_kernel import most_rows
from pdssm_compiler.schedules.templates.base import Config, Template
from pdssm_compiler.schedules.templates.cuda_chunks import CudaChunksConfig
from pdssm_compiler.schedules.templates.cuda_rows import CudaRowsConfig
from tests.kernels import LAYOUTS, few, tensors_of, under_stress
from tests.schedules.cuda import H100
from tests.schedules.cuda_on_cpu import run
from tests.schedules.test_cuda_on_cpu import (
    CHUNKS,
    ROWS,
    assert_agrees,
    forward_and_backward,
    some,
    spec_of,
)
from tests.strategies import Sizes, arrays_for, programs

_COLUMN = ("dictionary", "general", "column", "c64")
# State size, dictionary, map source, map class, orientation, element.
SCANS = [
    (5, 3, *_COLUMN),
    (8, 3, "dictionary", "permutation", "column", "c64"),
    (16, 4, "dictionary", "general", "row", "c64"),
    (3, None, "token", "general", "row", "c128"),
    (7, None, "token", "general", "column", "c64"),
    (2, None, "none", "general", "column", "c128"),
    (1, 2, *_COLUMN),
]


@pytest.mark.parametrize("scan", some(SCANS, 1))
def test_in_order(scan: tuple[Any, ...]) -> None:
    """Six rows: fewer than a warp holds, or more than a whole number of warps do."""
    for program in forward_and_backward(spec_of(scan)):
        config = CudaRowsConfig(4, 3, rows=most_rows(specialise(program)))
        assert config.rows == 32 // program.state_size
        assert_agrees(ROWS, config, program, Sizes(2, 23, 3))


@pytest.mark.parametrize("scan", some(SCANS, 0))
def test_in_chunks(scan: tuple[Any, ...]) -> None:
    """Carries from team to team and from block to block; windows that join summaries."""
    for program in forward_and_backward(spec_of(scan)):
        rows = most_rows(specialise(program))
        for sizes, blocks, teams in ((Sizes(1, 157, 2), 40, 1), (Sizes(3, 21, 5), 3, 4)):
            config = CudaChunksConfig(2, 2, teams, rows)
            assert_agrees(CHUNKS, config, program, sizes, most_blocks=blocks, seed=blocks)


@pytest.mark.parametrize("n", [6, *under_stress(16)])
def test_targets_with_many_sources(n: int) -> None:
    """Each row side by side has a map of another kind at the same token."""
    j = np.arange(n)
    dictionary = np.stack([0 * j, n - 1 + 0 * j, j % 2, np.maximum(j, 4) % n, j])
    if n > 8:
        dictionary[3] = np.maximum(j, 5) % n
    program = pd_scan(PdScan(n, len(dictionary), initial_state=True, final_state=True))
    rows = 32 // n
    for template, config in (
        (ROWS, CudaRowsConfig(4, 3, rows=rows)),
        (ROWS, CudaRowsConfig(4, 3, tables=1, rows=rows)),
        (CHUNKS, CudaChunksConfig(2, 2, 2, rows)),
    ):
        assert_agrees(template, config, program, Sizes(2, 14, 3), dictionary=dictionary)


@few(
    1,
    program=st.sampled_from((32, 64)).flatmap(lambda bits: programs(precision=bits)),
    layout=st.sampled_from(LAYOUTS),
    heads=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 2**16),
)
def test_random_bodies(program: Program, layout: str, heads: int, seed: int) -> None:
    derived = adjoint(program)
    for each in (derived.forward, derived.program):
        rows = most_rows(specialise(each))
        for template, config in (
            (ROWS, CudaRowsConfig(2, 3, rows=rows)),
            (CHUNKS, CudaChunksConfig(2, 2, 3, rows)),
        ):
            if template.feasible(specialise(each), H100, config) is None:
                assert_agrees(template, config, each, Sizes(2, 13, heads), layout, seed)


CONFIGS = [(ROWS, CudaRowsConfig(2, 3, rows=4)), (CHUNKS, CudaChunksConfig(2, 2, 2, 4))]


@pytest.mark.parametrize(
    ("entry", "error", "told"),
    [
        (3, PromiseError, r"dictionary\[h=1, k=2\] is not the permutation"),
        pytest.param(
            8,
            IndexRangeError,
            r"dictionary\[h=1, k=2\] has an entry out of range: .* \[0, 8\)",
            marks=pytest.mark.stress,
        ),
    ],
)
@pytest.mark.parametrize(("template", "config"), CONFIGS, ids=["rows", "chunks"])
def test_whose_map_is_wrong(
    template: Template[Any], config: Config, entry: int, error: type[Exception], told: str
) -> None:
    program = pd_scan(PdScan(8, 3, map_class="permutation"))
    sizes = Sizes(2, 9, 3)
    tensors = tensors_of(program, arrays_for(program, sizes, 5), "dense")
    dictionary = tensors[[input_.name for input_ in program.inputs].index("dictionary")]
    dictionary[1, 2] = torch.arange(8)
    dictionary[1, 2, 5] = entry
    _, word = run(template, program, tensors, LaunchSizes(*sizes), config=config)
    with pytest.raises(error, match=told):
        raise Reporter(specialise(program)).error(word, LaunchSizes(*sizes))


@pytest.mark.parametrize(("template", "config"), CONFIGS, ids=["rows", "chunks"])
@pytest.mark.parametrize("source", ["dictionary", *under_stress("token")])
def test_whose_token_is_wrong(template: Template[Any], config: Config, source: str) -> None:
    """The one of its row alone, and the other rows' values are as without it."""
    k = 3 if source == "dictionary" else None
    program = pd_scan(PdScan(8, k, map_source=source))
    sizes = Sizes(2, 9, 3)
    tensors = tensors_of(program, arrays_for(program, sizes, 5), "dense")
    (want,), error = run(template, program, tensors, LaunchSizes(*sizes), config=config)
    assert error == 0
    name = "selection" if source == "dictionary" else "destination"
    wrong = tensors[[input_.name for input_ in program.inputs].index(name)]
    wrong[1, 4, 1] = 77
    (states,), word = run(template, program, tensors, LaunchSizes(*sizes), config=config)
    with pytest.raises(IndexRangeError, match=rf"{name}\[b=1, t=4, h=1\]"):
        raise Reporter(specialise(program)).error(word, LaunchSizes(*sizes))
    others = torch.ones(2, 9, 3, dtype=torch.bool)
    others[1, 4:, 1] = False
    assert torch.equal(states[others], want[others])


@pytest.mark.parametrize(
    ("n", "config", "why"),
    [
        (16, CudaRowsConfig(2, 3, rows=3), "3 rows of 16 states do not fit a warp"),
        (16, CudaRowsConfig(2, 3, rows=0), "rows is at least 1, not 0"),
        (4, CudaRowsConfig(2, 3, team=2, rows=2), "2 rows of 4 states do not fit a warp"),
        (4, CudaRowsConfig(2, 3, tables=0, rows=2), "tables of several rows stand in shared"),
        (40, CudaChunksConfig(2, 3, 1, 2), "2 rows of 40 states do not fit a warp"),
    ],
)
def test_what_does_not_fit(n: int, config: Config, why: str) -> None:
    template = ROWS if isinstance(config, CudaRowsConfig) else CHUNKS
    program = specialise(pd_scan(PdScan(n, 2)))
    refused = template.feasible(program, H100, config)
    assert refused is not None
    assert refused.startswith(why)


@pytest.mark.parametrize(
    ("template", "config"),
    [
        (ROWS, CudaRowsConfig(4, 3, rows=10)),
        pytest.param(CHUNKS, CudaChunksConfig(2, 2, 2, 10), marks=pytest.mark.stress),
    ],
    ids=["rows", "chunks"],
)
def test_the_adjoint_of_a_chosen_map_has_sums_of_its_own_rows(
    template: Template[Any], config: Config
) -> None:
    """Of rows of one head, which add to the same sums; the last row is held several times."""
    program = adjoint(pd_scan(PdScan(3, 2)), surrogate="active").program
    assert program.sum_outputs
    assert_agrees(template, config, program, Sizes(13, 9, 1))
