"""``byte_automaton``: the language, the byte classes and the size of the automaton."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdssm_compiler.automata import ByteAutomaton, EmptyMatchError, byte_automaton
from tests.automata.regexes import any_patterns, patterns, texts

ALL_BYTES = [bytes([value]) for value in range(256)]


def match_end(automaton: ByteAutomaton, data: bytes) -> int | None:
    """Where the match at the beginning of ``data`` ends: the last accepting position."""
    state, end = automaton.start, None
    for position, value in enumerate(data, 1):
        state = int(automaton.transitions[automaton.byte_class[value], state])
        if automaton.accepting[state]:
            end = position
    return end


# Parts that a reader of Python's syntax may get wrong, with spaces between them.
CLASSES = r"\d \D \w \W \s \S . (?s). [^a] [^\n] [\W\D] [^\W\d] [^\W\D] []a] [^]a] [a-] [\]-a] [é]"
ESCAPES = r"\x80 \377 \0 [\0-\x1f] \07 \08? [\b] \\ [\\-\]] [\[] [.] \. \- \é"
LITERALS = r"{ } a{} x{,a} ] a(?#b*) (?a)\w (?m)a (?i)[k-m] (?i)[^K] (?i)é?k"


@pytest.mark.parametrize("part", f"{CLASSES} {ESCAPES} {LITERALS}".split())
def test_each_byte_belongs_to_a_part_as_in_python(part: str) -> None:
    automaton = byte_automaton(part)
    expected = re.compile(part.encode())
    for byte in ALL_BYTES:
        for data in (byte, byte + b"8", b"a" + byte, b"x" + byte + b",a}"):
            found = expected.match(data)
            assert match_end(automaton, data) == (found and found.end()), data


@given(pattern=patterns(), data=texts)
def test_the_last_accepting_position_is_the_end_of_pythons_match(
    pattern: str, data: bytes
) -> None:
    found = re.match(pattern.encode(), data)
    assert match_end(byte_automaton(pattern, 4096), data) == (found and found.end())


@given(pattern=any_patterns)
def test_exactly_the_patterns_that_match_nothing_are_refused(pattern: str) -> None:
    if re.match(pattern.encode(), b"") is None:
        assert not byte_automaton(pattern, 4096).accepting[0]
    else:
        with pytest.raises(EmptyMatchError, match="matches the empty string"):
            byte_automaton(pattern, 4096)


@given(pattern=patterns())
def test_no_two_states_and_no_two_classes_are_alike(pattern: str) -> None:
    automaton = byte_automaton(pattern, 4096)
    states = automaton.states
    # Moore's refinement, written apart from the code under test.
    labels = automaton.accepting.astype(np.int64)
    for _ in range(states):
        table = np.vstack([labels, labels[automaton.transitions]])
        labels = np.unique(table, axis=1, return_inverse=True)[1].reshape(-1)
    assert len(set(labels.tolist())) == states
    assert len(np.unique(automaton.transitions, axis=0)) == automaton.classes
    # Every state but the dead one is reached, and all dead ends are the dead state.
    reached = {automaton.start}
    for _ in range(states):
        reached |= set(automaton.transitions[:, sorted(reached)].reshape(-1).tolist())
    assert reached | {automaton.dead} == set(range(states))
    assert (automaton.transitions[:, automaton.dead] == automaton.dead).all()
    assert not automaton.accepting[automaton.dead]


def test_the_arrays_of_integers() -> None:
    automaton = byte_automaton("[0-9]+")
    # States: start, inside, dead. Classes: other bytes, digits.
    np.testing.assert_array_equal(automaton.transitions, [[2, 2, 2], [1, 1, 2]])
    np.testing.assert_array_equal(automaton.accepting, [False, True, False])
    digits = [chr(value).isdigit() for value in range(128)] + [False] * 128
    np.testing.assert_array_equal(automaton.byte_class, digits)
    assert (automaton.start, automaton.dead, automaton.pattern) == (0, 2, "[0-9]+")
    assert automaton.transitions.dtype == np.int32
    assert automaton.byte_class.dtype == np.uint8
    assert automaton.accepting.dtype == np.bool_
    for array in (automaton.transitions, automaton.byte_class, automaton.accepting):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@given(st.integers(1, 60))
def test_a_pattern_of_n_bytes_has_n_states_a_start_and_a_dead_end(count: int) -> None:
    assert byte_automaton(f"(?:ab){{{count}}}").states == 2 * count + 2


def test_classes_are_numbered_by_their_lowest_byte() -> None:
    assert byte_automaton("b[a-c]|c").byte_class[[0, 97, 98, 99, 100]].tolist() == [0, 1, 2, 3, 0]


def test_the_limit_is_the_largest_number_of_states_allowed() -> None:
    assert byte_automaton("a{254}").states == 256
    assert byte_automaton("a{9}", max_states=11).states == 11
