"""Programs over matrices by the Triton template, against the interpreter of the IR."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdssm_compiler.ir import Program
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.ops import apply
from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.programs import LEARNED, mixture
from pdssm_compiler.ir.types import Coefficients, Map, Matrices, Scalar
from pdssm_compiler.schedules.templates.triton_matrices import TritonMatricesConfig
from tests.kernels import LAYOUTS, assert_runs
from tests.strategies import Sizes, arrays_for
from tests.triton_interpreter.interpreted import Interpreted

# A row at a time and several, tiles of one warp's lanes and less, several parts of the tokens.
_ONE = TritonMatricesConfig(tokens=4, lanes=4, rows=1, tile=4, num_warps=1, programs=1)
CONFIGS = (
    replace(_ONE, lanes=8, programs=8),
    replace(_ONE, tokens=8, rows=2, tile=2, together=2, soft_rows=4),
    replace(_ONE, rows=2, ahead=True),
    replace(_ONE, lanes=8, tile=2, together=2, programs=8, vector=1, tile_vector=2, ahead=True),
    replace(_ONE, tile=4, together=2, matrices=2),
    replace(_ONE, lanes=2, tile=8, matrices=8),
)


def programs(
    n: int, entries: int, element: str, orientation: str, noisy: bool = False
) -> tuple[Program, Program]:
    """The choice and its adjoint."""
    program = mixture(n, entries, element, orientation, noisy)
    return program, adjoint(program, LEARNED, surrogate="dense").program


def assert_agrees(
    program: Program, config: TritonMatricesConfig, sizes: Sizes, layout: str
) -> None:
    arrays = arrays_for(program, sizes, 3)
    if "temperature" in arrays:
        arrays["temperature"] = abs(arrays["temperature"]) + 0.5
    kernel = Interpreted(program, config)
    assert_runs(lambda _, given_, of: kernel.run(given_, of), program, arrays, sizes, layout)


@pytest.mark.parametrize("orientation", ["column", "row"])
@settings(max_examples=5, derandomize=True)
@given(
    st.sampled_from((1, 3, 5)),
    st.sampled_from((1, 3)),
    st.sampled_from(("f32", "f64")),
    st.booleans(),
    st.sampled_from(CONFIGS),
    st.sampled_from((Sizes(2, 3, 2), Sizes(1, 9, 1), Sizes(2, 0, 1))),
    st.sampled_from(LAYOUTS),
)
def test_choice_and_adjoint(
    orientation: str,
    n: int,
    entries: int,
    element: str,
    noisy: bool,
    config: TritonMatricesConfig,
    sizes: Sizes,
    layout: str,
) -> None:
    for program in programs(n, entries, element, orientation, noisy):
        assert_agrees(program, config, sizes, layout)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("orientation", ["column", "row"])
def test_ties_go_to_the_lowest_and_nan_to_none(
    orientation: str, config: TritonMatricesConfig
) -> None:
    """Of five equal entries the first, also across rows that are computed together; infinities
    are numbers.
    """
    program, _ = programs(5, 1, "f32", orientation)
    table = np.zeros((1, 1, 5, 5), np.float32)
    table[0, 0, 1:, 1] = 2.0
    table[0, 0, 4, 2] = np.nan
    table[0, 0, :, 3] = -np.inf
    table[0, 0, 2:, 4] = np.inf
    table = table if orientation == "column" else table.swapaxes(2, 3)
    tensors = [torch.tensor(np.ascontiguousarray(table)), torch.ones(1, 1, 1, 1)]
    (found,) = Interpreted(program, config).run(tensors, Sizes(1, 1, 1))
    assert found.tolist() == [[[[0, 1, -1, 0, 2]]]]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_softmax_at_which_a_mixture_arrives(config: TritonMatricesConfig) -> None:
    """No product of vectors, of which one is laid out beside the softmax's numbers."""
    build = b.ProgramBuilder(5)
    weights = build.input("weights", Coefficients(2, "f32"))
    others = build.input("others", Coefficients(2, "f32"))
    matrices = build.input("matrices", Matrices(2, "f32"), "head")
    map_ = build.input("map", Map("general"))
    temperature = build.input("temperature", Scalar("f32"), "head")
    mixed, arriving = b.mix(matrices, weights), b.mix(matrices, others)
    soft = apply("straight_through", mixed, map_, arriving, temperature, orientation="column")
    build.emit("of_weights", apply("inner", matrices, soft))
    build.sum("of_matrices", apply("weigh", soft, weights))
    assert_agrees(build.build(), config, Sizes(2, 3, 2), "dense")


@pytest.mark.parametrize("orientation", ["column", "row"])
def test_more_matrices_than_registers(orientation: str) -> None:
    """17 are loaded one by one, and their sums are made in three chunks, the last one short; or
    two by two and the last by itself.
    """
    for program in programs(5, 17, "f32", orientation):
        for config in (CONFIGS[1], CONFIGS[4]):
            assert_agrees(program, config, Sizes(1, 9, 2), "dense")
