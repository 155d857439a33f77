"""Fused scans by the Triton templates: what a user's expressions become, forward and backward."""

import pytest

from pdssm_compiler.ir import Program
from tests.expressions import CASES, Expressions, programs
from tests.kernels import assert_runs, under_stress
from tests.strategies import Sizes, arrays_for
from tests.triton_interpreter.interpreted import CHUNKS, CONFIGS, LOOKBACK, Config, Interpreted

SIZES = Sizes(2, 7, 2)


def assert_agrees(program: Program, config: Config) -> None:
    kernel = Interpreted(program, config)
    arrays = arrays_for(program, SIZES, 5)
    assert_runs(lambda _, t, s: kernel.run(t, s), program, arrays, SIZES, "dense")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fused_scans(case: Expressions) -> None:
    for number, program in enumerate(programs(case)):
        assert_agrees(program, CONFIGS[number])
        assert_agrees(program, CHUNKS[number])


@pytest.mark.parametrize(
    "case", [CASES[2], *under_stress(*(case for case in CASES if case is not CASES[2]))], ids=str
)
def test_fused_scans_by_look_back(case: Expressions) -> None:
    for number, program in enumerate(programs(case)):
        assert_agrees(program, LOOKBACK[number])
