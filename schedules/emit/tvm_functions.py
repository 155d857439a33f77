"""TVM text of elementary functions: series that vectorise, where the C library's are calls."""

import math

from pdssm_compiler.schedules.source import Writer

# Of an exponential, by the bits of a number: terms of its series, so that those left out are less
# than half a rounding for arguments up to ln(2) / 2; below what argument it is not made smaller;
# what rounds a number by being added; the exponent of 1 and its place.
_EXPONENTIAL = {32: (7, -87.0, 1.5 * 2**23, 127, 23), 64: (13, -708.0, 1.5 * 2**52, 1023, 52)}
# Of a logarithm: terms of its series, likewise, for numbers from √½ to √2; the bits of √½; where
# the exponent is.
_LOGARITHM = {32: (5, 0x3F3504F3, 23), 64: (10, 0x3FE6A09E667F3BCD, 52)}
# What a double of ln(2) lacks.
_LN2_LOW = 2.3190468138462996e-17


class Functions:
    """Functions of numbers of so many bits, written to a text.

    Args:
        writer: of the text.
        bits: 32 or 64.
    """

    def __init__(self, writer: Writer, bits: int) -> None:
        self.writer, self.bits = writer, bits
        self.dtype, self._integer = f"float{bits}", f"int{bits}"

    def number(self, value: float) -> str:
        """A constant."""
        return f"T.{self.dtype}({float(value)!r})"

    def exponential(self, name: str, argument: str) -> None:
        """Call the exponential of an argument that is at most 0 by a name; a NaN stays."""
        terms, least, rounds, bias, place = _EXPONENTIAL[self.bits]
        line, number = self.writer.line, self.number
        line(f"{name}_y: T.let = {argument}")
        line(f"{name}_z: T.let = T.Select({name}_y < {number(least)}, {number(least)}, {name}_y)")
        rounded = f"T.fma({name}_z, {number(1 / math.log(2))}, {number(rounds)})"
        line(f"{name}_q: T.let = {rounded} - {number(rounds)}")
        high, low = _ln2(self.bits)
        part = f"T.fma({name}_q, {number(-high)}, {name}_z)"
        line(f"{name}_r: T.let = T.fma({name}_q, {number(-low)}, {part})")
        series = number(1 / math.factorial(terms))
        for term in range(terms - 1, -1, -1):
            series = f"T.fma({name}_r, {series}, {number(1 / math.factorial(term))})"
        power = f"(T.Cast('{self._integer}', {name}_q) + {bias}) << {place}"
        line(f"{name}: T.let = {series} * T.reinterpret('{self.dtype}', {power})")

    def logarithm(self, name: str, argument: str) -> None:
        """Call the logarithm of a positive, normal, finite number by a name.

        Source: the way to sum it up of FreeBSD's ``e_log.c`` (Sun, 1993).
        """
        terms, least, place = _LOGARITHM[self.bits]
        line, number = self.writer.line, self.number
        line(f"{name}_b: T.let = T.reinterpret('{self._integer}', {argument})")
        line(f"{name}_e: T.let = ({name}_b - T.{self._integer}({least})) >> {place}")
        mantissa = f"{name}_b - ({name}_e << {place})"
        line(f"{name}_m: T.let = T.reinterpret('{self.dtype}', {mantissa})")
        # ln(1 + f) = 2 artanh(s) = f - f²/2 + s (f²/2 + R), of which the last is small.
        line(f"{name}_f: T.let = {name}_m - {number(1)}")
        line(f"{name}_s: T.let = {name}_f / ({name}_m + {number(1)})")
        line(f"{name}_h: T.let = {number(0.5)} * {name}_f * {name}_f")
        line(f"{name}_z: T.let = {name}_s * {name}_s")
        series = number(2 / (2 * terms - 1))
        for term in range(terms - 2, 0, -1):
            series = f"T.fma({name}_z, {series}, {number(2 / (2 * term + 1))})"
        line(f"{name}_q: T.let = T.Cast('{self.dtype}', {name}_e)")
        high, low = _ln2(self.bits)
        small = f"T.fma({name}_z, {series}, {name}_h)"
        rest = f"T.fma({name}_s, {small}, {name}_q * {number(low)})"
        rest = f"{name}_f - ({name}_h - {rest})"
        line(f"{name}: T.let = T.fma({name}_q, {number(high)}, {rest})")


def _ln2(bits: int) -> tuple[float, float]:
    """ln(2) in two numbers, of which the first has room for a factor."""
    high = math.floor(math.log(2) * 2.0 ** (bits // 3)) / 2.0 ** (bits // 3)
    return high, _LN2_LOW + (math.log(2) - high)
