"""The parser: what it reads, and where it says a text is wrong."""

import math

import pytest

from pdssm_compiler.ir import ParseError, ProgramBuilder, VerificationError, parse_program
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import Vector

TEXT = """\
scan N=4 forward
input %diagonal : token vec<f64>
input %drive : token vec<f64>
carry %state : vec<f64> = zero
body {
  %0 = mul %diagonal, %state : vec<f64>
  %1 = add %0, %drive : vec<f64>
  next %state = %1
  emit %states = %1
}
final %last = %state
"""


def test_comments_blank_lines_and_spaces_are_skipped() -> None:
    noisy = "# a scan\n\n" + TEXT.replace("\n", "   # noted\n\n").replace("  %", "\t%")
    assert parse_program(noisy) == parse_program(TEXT)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, -0.0, 1e-300, 0.1, 1e22])
def test_constants_keep_every_bit(number: float) -> None:
    build = ProgramBuilder(2)
    build.emit("y", b.mul(build.input("x", Vector("f64")), number))
    program = build.build()
    again = parse_program(program.text)
    assert again == program
    assert _the_constant(again).hex() == number.hex()


def _the_constant(program: Program) -> float:
    return next(v.attribute("value") for v in program.body if v.op == "constant")


# What replaces what in TEXT, the line it is on, and what the message says.
BROKEN = {
    "not a line": ("  emit %states = %1", "  emits %states", 9, "not a line of the text form"),
    "no header": ("scan N=4 forward", "", 2, "the first line must be 'scan N=... forward|"),
    "bad header": ("scan N=4 forward", "scan N=four forward", 1, "not a line of the text form"),
    "second header": ("body {", "scan N=4 forward", 5, "a second 'scan' line"),
    "bad type": ("token vec<f64>", "token vec<f65>", 2, "'vec<f65>' is not a type"),
    "unknown op": ("%0 = mul", "%0 = times", 6, "unknown op 'times'; known: add,"),
    "type rule": ("%1 = add %0, %drive", "%1 = add %0", 7, "add takes 2 arguments, got 1"),
    "wrong result": (
        "%state : vec<f64>\n  %1",
        "%state : vec<f32>\n  %1",
        6,
        "mul gives vec<f64> here, not vec<f32>",
    ),
    "undefined": ("add %0, %drive", "add %7, %drive", 7, "%7 is used before it is defined"),
    "defined twice": ("  %1 = add", "  %0 = add", 7, "%0 is defined twice"),
    "two inputs": ("input %drive", "input %diagonal", 3, "%diagonal is defined twice"),
    "carry like input": ("carry %state", "carry %drive", 4, "%drive is defined twice"),
    "operand": ("mul %diagonal, %state", "mul %diagonal, 3", 6, "'3' is neither a value nor an"),
    "literal": ("mul %diagonal, %state", "constant value=x", 6, "'x' is not a literal"),
    "next of no carry": ("next %state", "next %drive", 8, "%drive is not a carry"),
    "sum by a number": (
        "  emit",
        "  sum %y = %0 by %1\n  emit",
        9,
        "a sum is by an index, and %1",
    ),
    "second next": ("  emit %states = %1", "  next %state = %0", 9, "a second 'next' line for"),
    "final of no carry": ("final %last = %state", "final %last = %x", 11, "%x is not a carry"),
}


@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN)
def test_errors_name_the_line(case: tuple[str, str, int, str]) -> None:
    old, new, number, message = case
    assert old in TEXT
    text = TEXT.replace(old, new, 1)
    with pytest.raises(ParseError) as caught:
        parse_program(text)
    said = str(caught.value)
    assert said.startswith(f"line {number}: {message}")
    assert said.endswith(repr(text.splitlines()[number - 1].strip()))


def test_empty_text() -> None:
    with pytest.raises(ParseError, match="empty text: no 'scan' line"):
        parse_program("# nothing\n")


def test_carry_without_next() -> None:
    with pytest.raises(ParseError, match="no 'next' line for %state"):
        parse_program(TEXT.replace("  next %state = %1\n", ""))


def test_what_is_read_is_verified() -> None:
    with pytest.raises(VerificationError, match="%drive has the unknown role 'tokens'"):
        parse_program(TEXT.replace("%drive : token", "%drive : tokens"))
