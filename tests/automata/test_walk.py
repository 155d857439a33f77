"""``walk``: the state after every symbol, whichever way the rows are read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdssm_compiler.automata import ScanAutomaton, SymbolError, walk

seeds = st.integers(0, 2**32 - 1)


def random_automaton(rng: np.random.Generator, symbols: int, states: int) -> ScanAutomaton:
    maps = rng.integers(states, size=(symbols, states), dtype=np.int32)
    return ScanAutomaton(maps, start=int(rng.integers(states)), pad=symbols - 1)


@given(
    seed=seeds,
    symbols=st.integers(1, 5),
    states=st.integers(1, 6),
    # On both sides of the batch from which all rows step together.
    batch=st.sampled_from([0, 1, 3, 47, 48, 60]),
    length=st.integers(0, 9),
    dtype=st.sampled_from([np.uint8, np.int16, np.int32, np.int64]),
    reverse=st.booleans(),
)
def test_each_state_follows_from_the_one_before(
    seed: int,
    symbols: int,
    states: int,
    batch: int,
    length: int,
    dtype: type[np.integer],
    reverse: bool,
) -> None:
    rng = np.random.default_rng(seed)
    automaton = random_automaton(rng, symbols, states)
    read = rng.integers(symbols, size=(batch, length)).astype(dtype)
    result = walk(automaton, read, reverse=reverse)
    assert result.dtype == np.int32
    assert result.shape == read.shape
    before = np.full((batch, 1), automaton.start)
    if reverse:
        previous = np.hstack([result[:, 1:], before[:, : min(length, 1)]])
    else:
        previous = np.hstack([before[:, : min(length, 1)], result[:, :-1]])
    np.testing.assert_array_equal(result, automaton.maps[read, previous])


@given(seed=seeds, reverse=st.booleans())
def test_one_text_is_a_batch_of_one(seed: int, reverse: bool) -> None:
    rng = np.random.default_rng(seed)
    automaton = random_automaton(rng, 3, 4)
    read = rng.integers(3, size=20)
    alone = walk(automaton, read, reverse=reverse)
    np.testing.assert_array_equal(alone, walk(automaton, read[None], reverse=reverse)[0])


@pytest.mark.parametrize(("bad", "lies"), [([0, 3], "0 .. 3"), ([-1, 0], "-1 .. 0")])
def test_a_symbol_of_another_automaton(bad: list[int], lies: str) -> None:
    automaton = random_automaton(np.random.default_rng(0), 3, 2)
    with pytest.raises(SymbolError) as caught:
        walk(automaton, np.array(bad))
    assert str(caught.value) == (
        f"the symbols lie in {lies}, but the automaton has symbols 0 .. 2; use the symbols made "
        "for this automaton"
    )


def test_a_shape_that_is_no_batch() -> None:
    automaton = random_automaton(np.random.default_rng(0), 3, 2)
    with pytest.raises(
        SymbolError, match=r"shape \(1, 2, 3\); they must be \[T\] or \[batch, T\]"
    ):
        walk(automaton, np.zeros((1, 2, 3), dtype=np.int64))
