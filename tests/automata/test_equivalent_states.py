"""``equivalent_states`` finds Moore's partition, and the small renumberings beside it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pdssm_compiler.automata.refine import equivalent_states, first_seen_order, merge_columns


def moore(transitions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The partition by the plain method: refine by all symbols until long enough."""
    for _ in range(len(labels)):
        table = np.vstack([labels, labels[transitions]])
        labels = np.unique(table, axis=1, return_inverse=True)[1].reshape(-1)
    return first_seen_order(labels)


@given(
    seed=st.integers(0, 2**32 - 1),
    symbols=st.integers(1, 3),
    states=st.integers(1, 24),
    marked=st.integers(0, 3),
    copies=st.integers(1, 3),
)
def test_states_are_alike_if_no_sequence_of_symbols_tells_them_apart(
    seed: int, symbols: int, states: int, marked: int, copies: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = np.zeros(states, dtype=np.int64)
    labels[rng.integers(states, size=marked)] = 1
    transitions = rng.integers(states, size=(symbols, states))
    # Copies of a state lead to some copy of each of its successors.
    labels = np.tile(labels, copies)
    transitions = np.tile(transitions, copies)
    transitions += states * rng.integers(copies, size=transitions.shape)
    found = equivalent_states(transitions, labels)
    np.testing.assert_array_equal(found, moore(transitions, labels))
    assert found.max() < states


def test_a_block_that_waits_to_be_a_splitter_is_itself_split() -> None:
    # Few automata need both halves of such a block; this one does.
    transitions = np.array([[9, 6, 11, 8, 2, 10, 11, 2, 6, 8, 5, 12, 4]])
    labels = np.array([0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 1, 1, 1])
    expected = [0, 1, 2, 3, 2, 4, 5, 5, 6, 3, 7, 2, 2]
    assert equivalent_states(transitions, labels).tolist() == expected
    assert moore(transitions, labels).tolist() == expected


def test_labels_may_have_several_columns() -> None:
    transitions = np.array([[0, 1, 2, 3]])
    labels = np.array([[0, 1], [0, 2], [0, 1], [1, 1]])
    assert equivalent_states(transitions, labels).tolist() == [0, 1, 0, 2]


def test_numbers_are_given_in_the_order_of_first_appearance() -> None:
    assert first_seen_order(np.array([7, 3, 7, 9, 3])).tolist() == [0, 1, 0, 2, 1]
    table = np.array([[1, 0, 1, 1], [0, 0, 0, 1]])
    assert merge_columns(table).tolist() == [0, 1, 0, 2]
