"""What cannot be run is refused: at once, on one line, with what to do."""

import time

import pytest

from pdssm_compiler.automata import (
    EmptyMatchError,
    InvalidPatternError,
    PatternError,
    PatternTooLargeError,
    UnsupportedPatternError,
    build_bimachine,
    byte_automaton,
)
from pdssm_compiler.ir.errors import PdssmError

NO_AUTOMATON = "which has no automaton here; "


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        (
            "a(b",
            InvalidPatternError,
            "pattern 'a(b' is not a regular expression: missing ), unterminated subpattern at "
            "position 1; correct it there",
        ),
        ("a**", InvalidPatternError, "multiple repeat"),
        (r"\8", InvalidPatternError, "invalid group reference 8 at position 1"),
        ("a(?i)", InvalidPatternError, "global flags not at the start"),
        ("(?x)a", UnsupportedPatternError, f"uses the verbose flag, {NO_AUTOMATON}remove the"),
        ("(?L)a", UnsupportedPatternError, f"uses the locale flag, {NO_AUTOMATON}name the bytes"),
        ("(?i:a)b", UnsupportedPatternError, "flags for a group ((?i at byte 0)"),
        ("(?-i:a)b", UnsupportedPatternError, "flags for a group ((?- at byte 0)"),
        (r"(.)\1", UnsupportedPatternError, r"uses a back-reference (\1 at byte 3)"),
        ("(?P<x>a)(?P=x)", UnsupportedPatternError, "uses a back-reference ((?P= at byte 8)"),
        ("a(?=b)", UnsupportedPatternError, "uses look-around ((?= at byte 1)"),
        ("a(?!b)", UnsupportedPatternError, "uses look-around ((?! at byte 1)"),
        ("(?<=a)b", UnsupportedPatternError, "uses look-around ((?<= at byte 0)"),
        ("(?<!a)b", UnsupportedPatternError, "uses look-around ((?<! at byte 0)"),
        ("(a)?(?(1)b|c)", UnsupportedPatternError, "uses a conditional group ((?( at byte 4)"),
        ("(?>a)b", UnsupportedPatternError, "uses an atomic group ((?> at byte 0)"),
        ("a++b", UnsupportedPatternError, "uses a possessive quantifier (++ at byte 1)"),
        ("é{1,2}+b", UnsupportedPatternError, "a possessive quantifier ({1,2}+ at byte 2)"),
        (
            "^a",
            UnsupportedPatternError,
            "pattern '^a' uses an anchor (^ at byte 0), which has no automaton here; remove it "
            "and filter the matches afterwards, or escape it if a byte is meant",
        ),
        ("a$", UnsupportedPatternError, "uses an anchor ($ at byte 1)"),
        (r"\bword", UnsupportedPatternError, r"uses an anchor (\b at byte 0)"),
        (r"\Ba", UnsupportedPatternError, r"uses an anchor (\B at byte 0)"),
        (r"\Aa\Z", UnsupportedPatternError, r"uses an anchor (\A at byte 0)"),
        ("(" * 200 + "a" + ")" * 200 + "+", UnsupportedPatternError, "nested too deeply; flatten"),
        (
            "a*",
            EmptyMatchError,
            "pattern 'a*' matches the empty string, which is no run of bytes; make it consume at "
            "least one byte, for example with + in place of *",
        ),
        ("", EmptyMatchError, "pattern '' matches the empty string"),
        ("a|b?", EmptyMatchError, "pattern 'a|b?' matches the empty string"),
        ("a" * 10_001, PatternTooLargeError, "is 10,001 bytes long, and at most 10,000 are read"),
        (
            "a{255}",
            PatternTooLargeError,
            "the automaton of pattern 'a{255}' has 257 states and the limit is 256; use smaller "
            "counts or raise the limit",
        ),
        ("(?:a{200}){200}", PatternTooLargeError, "has more than 20,000 parts once its repet"),
    ],
)
def test_message(pattern: str, error: type[PatternError], message: str) -> None:
    with pytest.raises(error) as caught:
        byte_automaton(pattern)
    text = str(caught.value)
    assert message in text
    assert "\n" not in text
    assert len(text) < 300
    assert isinstance(caught.value, PdssmError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("pattern", ["a\ud800", "(" * 5000 + ")" * 5000, "a{99999999999}"])
def test_what_python_cannot_compile_is_one_of_our_errors(pattern: str) -> None:
    with pytest.raises((InvalidPatternError, UnsupportedPatternError)):
        byte_automaton(pattern)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(a|b)*a(a|b){20}", "was given up after 1,000,0"),
        ("(?:.*a){1,30}.{20}b", "was given up after 1,0"),
        ("(a?){2000}b", "was given up after 1,0"),
        ("((a{,50}){,50}){,50}b", "has more than 20,000 parts"),
        ("(" * 25 + "a" + ")*" * 25 + "b", "has more than 20,000 parts"),
        ("a{4000000000}", "has more than 20,000 parts"),
        ("|".join(f"a{{{count}}}b" for count in range(1, 200)), "has more than 20,000 parts"),
        ("a.{12}b", "states of the backward scan, before equal ones are merged"),
        ("(?:a.{9}b|c.{8}d)+e", "needs 2,049 symbols of the forward scan and the limit is 256"),
    ],
)
def test_a_hostile_pattern_is_given_up_within_seconds(pattern: str, message: str) -> None:
    began = time.monotonic()
    with pytest.raises(PatternTooLargeError) as caught:
        build_bimachine(byte_automaton(pattern))
    assert time.monotonic() - began < 10
    assert message in str(caught.value)


def test_repetitions_of_nothing_take_no_time() -> None:
    assert byte_automaton("(?:(?:){4000000000}|){4000000000}a").states == 3
