"""The matches found by two table walks are those of Python's ``re``, byte for byte."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pdssm_compiler.automata import DEFAULT_PATTERNS, Text, find_spans, load_corpus
from tests.automata.regexes import machine, patterns, python_spans, texts

DEFAULTS = [named.pattern for named in DEFAULT_PATTERNS.values()]
# Bytes that begin, continue, almost finish and finish a match of the default patterns.
_PIECES = [b'"', b"\\", b"\n", b"1", b"12", b"1234", b".", b"1.2.3.4", b"a", b"_", b" ", b"\xff"]
near_misses = st.lists(st.sampled_from(_PIECES), max_size=20).map(b"".join)


@pytest.fixture(scope="module")
def library() -> tuple[Text, ...]:
    """The first files of the standard library, and a long one."""
    texts = load_corpus(None, max_bytes=4_000_000).texts
    return (*texts[:12], max(texts, key=lambda text: len(text.data)))


@pytest.mark.parametrize("pattern", DEFAULTS)
@given(data=texts | near_misses)
@example(data=b"")
@example(data=b"7")
@example(data=bytes(range(256)))
@example(data=b'""""a"b"')
@example(data=b'"never closed \\')
@example(data=b'"a\\"b" "c\n"d"e"')
@example(data=b"1.2.3.4.5.6.7.8.9")
@example(data=b"1234.5.6.7 127.0.0.1")
def test_default_patterns_on_any_bytes(pattern: str, data: bytes) -> None:
    assert find_spans(machine(pattern), data).tolist() == python_spans(pattern, data)


@pytest.mark.parametrize("pattern", DEFAULTS)
def test_default_patterns_on_the_standard_library(pattern: str, library: tuple[Text, ...]) -> None:
    scans = machine(pattern)
    for text in library:
        expected = np.array(python_spans(pattern, text.data), dtype=np.int64).reshape(-1, 2)
        np.testing.assert_array_equal(find_spans(scans, text.data), expected, err_msg=text.name)


@given(pattern=patterns(), data=st.lists(texts, min_size=1, max_size=5))
def test_random_patterns(pattern: str, data: list[bytes]) -> None:
    scans = machine(pattern)
    for text in data:
        assert find_spans(scans, text).tolist() == python_spans(pattern, text)


# Where "leftmost, longest" would give other matches than Python, Python's are found.
@pytest.mark.parametrize(
    ("pattern", "data", "spans"),
    [
        ("a|ab", b"ab abab", [[0, 1], [3, 4], [5, 6]]),
        ("ab|a", b"ab abab", [[0, 2], [3, 5], [5, 7]]),
        ("(?:a|ab)(?:c|bcd)", b"abcd abc", [[0, 4], [5, 8]]),
        ('".*?"', b'"a" "b"', [[0, 3], [4, 7]]),
        ('".*"', b'"a" "b"', [[0, 7]]),
        ("a{1,3}?", b"aaa", [[0, 1], [1, 2], [2, 3]]),
        ("(?:a??b?)*?c|a+", b"aabc", [[0, 4]]),
        # A loop is left after an iteration that consumed nothing, here before an "a".
        ("(?:b|(?:|a))*.", b"bbabb", [[0, 3], [3, 5]]),
        (".(?:(?:[ab]*?){3,4})*", b"cbaba", [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5]]),
        ("(?:|a)+.", b"aab", [[0, 1], [1, 2], [2, 3]]),
    ],
)
def test_the_alternative_that_python_prefers_wins(
    pattern: str, data: bytes, spans: list[list[int]]
) -> None:
    assert python_spans(pattern, data) == spans
    assert find_spans(machine(pattern), data).tolist() == spans


@pytest.mark.parametrize(
    ("pattern", "data", "spans"),
    [
        ("a", b"aaa", [[0, 1], [1, 2], [2, 3]]),
        ("aa", b"aaaaa", [[0, 2], [2, 4]]),
        ("ab?", b"aabab", [[0, 1], [1, 3], [3, 5]]),
        ("a.c|x", b"abcxxadc", [[0, 3], [3, 4], [4, 5], [5, 8]]),
        (r"[^\x00-\xff]", b"anything", []),
        (r"(?s).+", b"\x00\n\xff", [[0, 3]]),
    ],
)
def test_adjacent_matches_and_both_ends(pattern: str, data: bytes, spans: list[list[int]]) -> None:
    found = find_spans(machine(pattern), data)
    assert found.dtype == np.int64
    assert found.shape == (len(spans), 2)
    assert found.tolist() == spans == python_spans(pattern, data)
