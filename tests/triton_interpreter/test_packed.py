"""Packed scans by the Triton templates, interpreted."""

from functools import partial
from typing import Any

import pytest
import torch

from pdssm_compiler.ir import Program
from tests.kernels import assert_runs
from tests.schedules.packed import SCANS, assert_stays, packed_programs
from tests.strategies import Sizes, arrays_for
from tests.triton_interpreter.interpreted import CHUNKS, CONFIGS, LOOKBACK, Config, Interpreted

WAYS = (CONFIGS[1], CHUNKS[1], LOOKBACK[1])
MORE = (CONFIGS[3], CHUNKS[0], CHUNKS[2], LOOKBACK[0], LOOKBACK[2])


def outputs(
    config: Config, program: Program, tensors: list[torch.Tensor], sizes: Sizes
) -> list[torch.Tensor]:
    kernel = Interpreted(program, config)
    found = kernel.run(tensors, sizes)
    assert kernel.error.item() == 0
    return found


@pytest.mark.parametrize(
    ("scan", "configs"),
    [(SCANS[0], WAYS), *(pytest.param(s, MORE, marks=pytest.mark.stress) for s in SCANS)],
)
def test_resets(scan: tuple[Any, ...], configs: tuple[Config, ...]) -> None:
    """At random tokens: within chunks, at their edges, and several in one."""
    for program in packed_programs(scan):
        for number, config in enumerate(configs):
            sizes = Sizes(1, 9, 2)
            arrays = arrays_for(program, sizes, number)
            assert_runs(partial(outputs, config), program, arrays, sizes, "dense")


@pytest.mark.parametrize("config", [CHUNKS[1], LOOKBACK[1]], ids=["chunks", "lookback"])
def test_a_nan_stays_in_its_sequence(config: Config) -> None:
    for program in packed_programs(SCANS[0]):
        assert_stays(partial(outputs, config), program, 16)
