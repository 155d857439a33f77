"""``build_bimachine``: two scans that are what the module says, and no larger than needed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdssm_compiler.automata import (
    DEFAULT_PATTERNS,
    Bimachine,
    PatternTooLargeError,
    ScanAutomaton,
    backward_symbols,
    build_bimachine,
    byte_automaton,
    walk,
)
from tests.automata.regexes import machine, patterns, python_spans, texts


def forward_symbols(scans: Bimachine, data: bytes) -> np.ndarray:
    classes = backward_symbols(scans, np.frombuffer(data, dtype=np.uint8))
    return scans.pair_symbol[classes, walk(scans.backward, classes, reverse=True)]


@given(pattern=patterns(), data=texts)
def test_a_forward_state_tells_whether_the_byte_is_in_a_match(pattern: str, data: bytes) -> None:
    scans = machine(pattern)
    inside = np.zeros(len(data), dtype=np.bool_)
    for start, end in python_spans(pattern, data):
        inside[start:end] = True
    states = walk(scans.forward, forward_symbols(scans, data))
    np.testing.assert_array_equal(states != scans.forward.start, inside)


@given(pattern=patterns(), data=texts)
def test_only_pairs_that_can_occur_have_a_symbol(pattern: str, data: bytes) -> None:
    scans = machine(pattern)
    assert (forward_symbols(scans, data) != scans.forward.pad).all()
    assert set(np.unique(scans.pair_symbol)) == set(range(scans.forward.symbols))


@given(pattern=patterns())
def test_both_scans_are_complete_and_every_state_is_reached(pattern: str) -> None:
    scans = machine(pattern)
    for scan in (scans.backward, scans.forward):
        assert scan.start == 0
        assert scan.pad == scan.symbols - 1
        assert (scan.maps[scan.pad] == scan.start).all()
        reached = {scan.start}
        for _ in range(scan.states):
            reached |= set(scan.maps[:, sorted(reached)].reshape(-1).tolist())
        assert reached == set(range(scan.states))


@given(pattern=patterns())
def test_no_two_forward_states_or_symbols_are_alike(pattern: str) -> None:
    scans = machine(pattern)
    maps, begins = scans.forward.maps, scans.begins
    kinds = np.vstack([np.arange(scans.forward.states) > 0, begins])
    labels = np.unique(kinds, axis=1, return_inverse=True)[1].reshape(-1)
    for _ in range(scans.forward.states):
        table = np.vstack([labels, labels[maps]])
        labels = np.unique(table, axis=1, return_inverse=True)[1].reshape(-1)
    assert len(set(labels.tolist())) == scans.forward.states
    # The pad may be like a symbol: it is kept apart so that its number is known.
    rows = np.hstack([maps, begins])[: scans.forward.pad]
    assert len(np.unique(rows, axis=0)) == scans.forward.pad


@given(st.sampled_from(sorted(DEFAULT_PATTERNS)), st.data())
def test_a_match_may_begin_where_a_prefix_of_the_rest_is_accepted(
    name: str, data: st.DataObject
) -> None:
    automaton = byte_automaton(DEFAULT_PATTERNS[name].pattern)
    scans = build_bimachine(automaton)
    text = data.draw(texts)
    classes = automaton.byte_class[np.frombuffer(text, dtype=np.uint8)]
    states = walk(scans.backward, classes, reverse=True)
    for i, class_ in enumerate(classes):
        # Outside a match, one begins where some prefix of the rest is accepted.
        state, begins = automaton.start, False
        for following in classes[i:]:
            state = automaton.transitions[following, state]
            begins = begins or bool(automaton.accepting[state])
        symbol = scans.pair_symbol[class_, states[i]]
        assert scans.begins[symbol, scans.forward.start] == begins
        assert (scans.forward.maps[symbol, scans.forward.start] != scans.forward.start) == begins


@pytest.mark.parametrize(
    ("name", "backward", "forward"),
    [
        ("integers", (3, 2), (3, 2)),
        ("identifiers", (4, 3), (4, 2)),
        ("strings", (5, 5), (8, 4)),
        ("dotted-quads", (4, 14), (15, 16)),
    ],
)
def test_size_of_the_default_patterns(
    name: str, backward: tuple[int, int], forward: tuple[int, int]
) -> None:
    scans = build_bimachine(byte_automaton(DEFAULT_PATTERNS[name].pattern))
    assert (scans.backward.symbols, scans.backward.states) == backward
    assert (scans.forward.symbols, scans.forward.states) == forward


def test_the_arrays_of_a_pattern_whose_matches_touch() -> None:
    scans = build_bimachine(byte_automaton("aa"))
    # Classes: other bytes, a, pad. Sets: none, one "a" to go, two or more.
    np.testing.assert_array_equal(scans.backward.maps, [[0, 0, 0], [1, 2, 2], [0, 0, 0]])
    np.testing.assert_array_equal(scans.pair_symbol, [[0, 3, 3], [3, 1, 2], [3, 3, 3]])
    # States: outside, after the first "a", after the second.
    np.testing.assert_array_equal(scans.forward.maps, [[0, 0, 0], [0, 2, 0], [1, 2, 1], [0, 0, 0]])
    np.testing.assert_array_equal(
        scans.begins, [[False] * 3, [False] * 3, [True, False, True], [False] * 3]
    )
    arrays = (scans.backward.maps, scans.forward.maps, scans.pair_symbol, scans.begins)
    assert [array.dtype for array in arrays] == [np.int32, np.int32, np.int32, np.bool_]
    for array in (*arrays, scans.byte_class):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_matches_without_end_need_no_more_states_than_the_automaton() -> None:
    scans = machine("[ab]*a[ab]{6}c")
    automaton = byte_automaton("[ab]*a[ab]{6}c")
    # Once it is known that a match follows, how it will end does not matter any more.
    assert scans.forward.states <= automaton.states


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ((3, 256), "pattern 'abcd' needs 5 states of the forward scan and the limit is 3"),
        ((256, 4), "pattern 'abcd' needs 6 symbols of the forward scan and the limit is 4"),
    ],
)
def test_limits(limits: tuple[int, int], message: str) -> None:
    automaton = byte_automaton("abcd")
    with pytest.raises(PatternTooLargeError) as caught:
        build_bimachine(automaton, *limits)
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith("use smaller counts or raise the limit")


def test_counts_are_of_what_a_scan_runs() -> None:
    scan = ScanAutomaton(np.zeros((3, 5), dtype=np.int32), start=0, pad=2)
    assert (scan.symbols, scan.states) == (3, 5)
