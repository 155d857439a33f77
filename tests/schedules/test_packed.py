"""Packed scans by the CUDA templates, run on a CPU."""

from functools import partial
from typing import Any

import pytest
import torch

from pdssm_compiler.ir import Program
from pdssm_compiler.runtime.backends import Sizes as LaunchSizes
from pdssm_compiler.schedules.templates.cuda_chunks import CudaChunksConfig
from pdssm_compiler.schedules.templates.cuda_rows import CudaRowsConfig
from pdssm_compiler.schedules.templates.cuda_step import CudaStepConfig
from tests.schedules.cuda_on_cpu import run
from tests.schedules.packed import SCANS, assert_stays, packed_programs
from tests.schedules.test_cuda_on_cpu import CHUNKS, ROWS, STEP, assert_agrees
from tests.strategies import Sizes

# Chunks of as many tokens as a warp has lanes, which fetch both indices together.
IN_CHUNKS = CudaChunksConfig(2, 16, 2)
TOKENS = 75


def ways(n: int) -> list[tuple[Any, Any, Sizes]]:
    """Templates, with configs and sizes for them."""
    return [
        (CHUNKS, CudaChunksConfig(2, 2, 4), Sizes(1, 61, 1)),
        (ROWS, CudaRowsConfig(4, 3, 1, -(-n // 32)), Sizes(1, 23, 2)),
        (STEP, CudaStepConfig(2), Sizes(1, 3, 2)),
    ]


def test_resets() -> None:
    """At random tokens: within chunks, at their edges, and several in one."""
    for program in packed_programs(SCANS[0]):
        assert_agrees(CHUNKS, IN_CHUNKS, program, Sizes(1, TOKENS, 1), most_blocks=4)


@pytest.mark.stress
@pytest.mark.parametrize("scan", SCANS, ids=str)
def test_every_kind_by_every_template(scan: tuple[Any, ...]) -> None:
    for program in packed_programs(scan):
        for template, config, sizes in ways(scan[0]):
            assert_agrees(template, config, program, sizes, most_blocks=4)


@pytest.mark.parametrize("reverse", [False, pytest.param(True, marks=pytest.mark.stress)])
def test_a_nan_stays_in_its_sequence(reverse: bool) -> None:
    def outputs(
        template: Any, config: Any, program: Program, tensors: list[torch.Tensor], sizes: Sizes
    ) -> list[torch.Tensor]:
        given = (template, program, tensors, LaunchSizes(*sizes))
        found, error = run(*given, config=config, most_blocks=4, seed=0)
        assert error == 0
        return found

    for program in packed_programs((*SCANS[0][:4], reverse)):
        assert_stays(partial(outputs, CHUNKS, IN_CHUNKS), program, TOKENS)
