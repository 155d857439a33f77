"""The patterns known by name match what their descriptions say."""

import pytest

from pdssm_compiler.automata import DEFAULT_PATTERNS, find_spans
from tests.automata.regexes import machine

SAMPLES = {
    "integers": (b"x1 = 0042 + 3.5", [b"1", b"0042", b"3", b"5"]),
    "identifiers": (b"def _f2(x9, 3y): \xe9t", [b"def", b"_f2", b"x9", b"y", b"t"]),
    "strings": (rb'f("", "a\"b", "\\") + "open', [b'""', rb'"a\"b"', rb'"\\"']),
    "dotted-quads": (b"at 127.0.0.1, not 1.2.3", [b"127.0.0.1"]),
}


@pytest.mark.parametrize("name", DEFAULT_PATTERNS)
def test_sample(name: str) -> None:
    text, matches = SAMPLES[name]
    spans = find_spans(machine(DEFAULT_PATTERNS[name].pattern), text)
    assert [text[start:end] for start, end in spans] == matches


def test_each_has_its_name_and_one_line_about_it() -> None:
    assert sorted(DEFAULT_PATTERNS) == sorted(SAMPLES)
    for name, pattern in DEFAULT_PATTERNS.items():
        assert pattern.name == name
        assert pattern.description
        assert "\n" not in pattern.description
