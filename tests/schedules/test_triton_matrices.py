"""What ``triton-matrices`` takes and refuses; no kernel is compiled here."""

from dataclasses import asdict, replace
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdssm_compiler.ir import Program
from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.programs import LEARNED, mixture
from pdssm_compiler.schedules.emit.matrices import grid
from pdssm_compiler.schedules.target import named_target
from pdssm_compiler.schedules.templates.base import Problem
from pdssm_compiler.schedules.templates.triton_matrices import (
    TritonMatrices,
    TritonMatricesConfig,
    shape_of,
)

TEMPLATE, H200 = TritonMatrices(), named_target("h200")
CONFIG = TritonMatricesConfig(32, 32, 2, 32, 4, 2)


def gradients(program: Program) -> Program:
    """Its adjoint."""
    return adjoint(program, LEARNED, surrogate="dense").program


@given(
    st.sampled_from((1, 5, 64, 100, 128, 1024, 2816)),
    st.integers(1, 40),
    st.sampled_from(("f32", "f64")),
    st.sampled_from(("column", "row")),
    st.booleans(),
    st.sampled_from(("h200", "sm_80", "gfx942")),
)
def test_the_heuristic_s_choice_is_feasible(
    n: int, entries: int, element: str, orientation: str, noisy: bool, target: str
) -> None:
    program = mixture(n, entries, element, orientation, noisy)
    for each in (program, gradients(program)):
        config = TEMPLATE.heuristic(each, named_target(target), Problem())
        assert TEMPLATE.feasible(each, named_target(target), config) is None


@pytest.mark.parametrize(
    ("sizes", "few"),
    [
        ((16, 128, 32), True),
        ((64, 256, 64), True),
        ((64, 128, 8), True),
        ((1024, 128, 8), False),
        ((64, 1024, 6), False),  # so much that is read anew takes longer than waiting
        ((65536, 128, 32), False),
    ],
)
def test_few_tokens_go_through_matrices(sizes: tuple[int, int, int], few: bool) -> None:
    """By more programs than tiles of tokens are; and the tuner tries it."""
    tokens, n, entries = sizes
    program = mixture(n, entries, "f32", "column")
    config = TEMPLATE.heuristic(program, H200, Problem.bucket(1, tokens))
    assert (config.matrices > 0) == few
    if few:
        assert config in set(TEMPLATE.space(program, H200))
        of_tiles = TEMPLATE.heuristic(program, H200, Problem())
        blocks = [
            grid(shape_of(program, asdict(each)), "choose_", (1, tokens, 1), 1)
            for each in (config, of_tiles)
        ]
        assert prod(blocks[0]) >= 16 * prod(blocks[1])


def test_only_choices_go_through_matrices() -> None:
    """The gradient of weights alone has no sums over tokens either."""
    choice = mixture(128, 32, "f32", "column")
    weights = adjoint(choice, ("mixture_weights",), surrogate="dense").program
    assert not weights.sum_outputs
    config = TEMPLATE.heuristic(weights, H200, Problem.bucket(1, 16))
    assert config.matrices == 0
    assert all(each.matrices == 0 for each in TEMPLATE.space(weights, H200))
    wrong = TEMPLATE.feasible(weights, H200, replace(config, matrices=8))
    assert wrong == "matrices is for what only chooses; this has gradients as well, so use 0"


@given(
    st.integers(0, 12).map(lambda bits: 1 << bits),
    st.sampled_from((1, 5, 100, 256, 2816)),
    st.integers(1, 40),
    st.sampled_from(("f32", "f64")),
    st.booleans(),
    st.sampled_from(("h200", "sm_80", "gfx942")),
)
def test_whatever_the_tokens_the_choice_is_feasible(
    tokens: int, n: int, entries: int, element: str, noisy: bool, target: str
) -> None:
    program = mixture(n, entries, element, "column", noisy)
    config = TEMPLATE.heuristic(program, named_target(target), Problem.bucket(1, tokens))
    assert TEMPLATE.feasible(program, named_target(target), config) is None


@pytest.mark.parametrize(("n", "entries"), [(64, 6), (128, 8), (1024, 6), (2816, 6)])
def test_the_tuner_tries_what_the_heuristic_says(n: int, entries: int) -> None:
    """At the published sizes, and loads ahead of it."""
    program = mixture(n, entries, "f32", "column")
    config = TEMPLATE.heuristic(program, H200, Problem())
    # Of a choice nothing else counts.
    tried = {(c.tokens, c.rows, c.num_warps, c.ahead) for c in TEMPLATE.space(program, H200)}
    assert {(config.tokens, config.rows, config.num_warps, a) for a in (False, True)} <= tried
    backward = gradients(program)
    config = TEMPLATE.heuristic(backward, H200, Problem())
    assert {config, replace(config, ahead=True)} <= set(TEMPLATE.space(backward, H200))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": 3}, "rows is a power of two up to 1024, not 3"),
        ({"soft_rows": 0}, "soft_rows is a power of two up to 1024, not 0"),
        ({"vector": 8}, "vector is 1, 2 or 4, not 8"),
        ({"tile_vector": 3}, "tile_vector is 1, 2 or 4, not 3"),
        ({"together": 9}, "together is from 1 to 8, not 9"),
        ({"matrices": 9}, "matrices is from 0 to 8, not 9"),
        ({"programs": 0}, "programs is at least 1, not 0"),
        ({"num_warps": 32}, "num_warps is at most 16, not 32"),
        ({"tokens": 128}, "its tiles take some"),
        ({"rows": 4, "ahead": True}, "its tiles take some"),
        ({"soft_rows": 16}, "16 rows of 8 matrices are too long a text"),
    ],
)
def test_what_is_refused(changed: dict[str, int], message: str) -> None:
    program = gradients(mixture(128, 8, "f32", "column"))
    assert TEMPLATE.feasible(program, H200, CONFIG) is None
    told = TEMPLATE.feasible(program, H200, replace(CONFIG, **changed))
    assert told is not None
    assert message in told


@given(
    st.sampled_from((1, 100, 128)),
    st.sampled_from((1, 2, 8)),
    st.sampled_from((1, 4, 8)),
    st.sampled_from((2, 8)),
)
def test_all_functions_read_the_same_layout(n: int, rows: int, soft: int, tile: int) -> None:
    """Whatever each goes through together: all of it lies behind the last row."""
    program = gradients(mixture(n, 2, "f32", "column"))
    shape = shape_of(program, asdict(replace(CONFIG, rows=rows, soft_rows=soft, tile=tile)))
    assert shape.looped >= n
    assert {shape.looped % each for each in (rows, soft, tile)} == {0}
