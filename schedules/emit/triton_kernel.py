"""Whole Triton functions around the body of a token: what every template shares.

A function runs the tokens of its rows in order, from ``begin`` to ``end`` if it is split into
chunks, loading the inputs of ``unroll`` tokens together.
"""

from collections.abc import Iterable, Sequence

from pdssm_compiler.schedules.emit.triton import TritonBody
from pdssm_compiler.schedules.source import Writer


def write_header(
    writer: Writer, title: str, rows: int, block: int, bodies: Iterable[TritonBody]
) -> None:
    """The module's head: what it was made from, its constants, the functions its bodies call."""
    writer.comment(title)
    writer.line("import triton")
    writer.line("import triton.language as tl")
    writer.line()
    writer.line(f"ROWS = tl.constexpr({rows})")
    writer.line(f"BLOCK = tl.constexpr({block})")
    writer.line(f"LEVELS = tl.constexpr({block.bit_length() - 1})")
    writer.line()
    for helper in dict.fromkeys(helper for body in bodies for helper in body.helpers()):
        for line in helper.strip("\n").splitlines():
            writer.line(line)
        writer.line()


def write_function(name: str, body: TritonBody, unroll: int) -> None:
    """One function, decorated."""
    writer = body.writer
    writer.line()
    writer.line("@triton.jit")
    with writer.block(f"def {name}({', '.join([*body.parameters(), *size_names(body.split)])}):"):
        body.rows()
        body.pointers()
        body.start_rows()
        _tokens(body, unroll)
        body.end_rows()


def size_names(split: bool) -> Sequence[str]:
    """The parameters after the tensors and the error word."""
    return ("rows", "L", "H", "span") if split else ("rows", "L", "H")


def _tokens(body: TritonBody, unroll: int) -> None:
    writer = body.writer
    count = "L"
    if body.split:
        count = "count"
        writer.line("count = end - begin")
    if unroll > 1:
        writer.line(f"whole = {count} - {count} % {unroll}")
        with writer.block(f"for first in range(0, whole, {unroll}):"):
            _group(body, unroll)
        writer.line("# The tokens that do not fill a group.")
    with writer.block(f"for first in range({'whole' if unroll > 1 else '0'}, {count}):"):
        _group(body, 1)


def _group(body: TritonBody, tokens: int) -> None:
    for number in range(tokens):
        step = f"first + {number}" if number else "first"
        body.writer.line(f"t_{number} = {_token(body, step)}")
    # Indices first: the maps they select wait for them.
    for values in (body.indices(), body.ahead()):
        for number in range(tokens):
            for value in values:
                body.load(value, f"_{number}", f"t_{number}")
    for number in range(tokens):
        body.writer.line(f"t = t_{number}")
        body.token(f"_{number}")


def _token(body: TritonBody, step: str) -> str:
    """The token that a step of the loop runs."""
    if body.program.direction == "forward":
        return f"begin + {step}" if body.split else step
    return f"{'end' if body.split else 'L'} - 1 - ({step})"
