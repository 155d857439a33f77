"""Whole Triton functions around the body of a token: what every template shares.

A function runs the tokens of its rows in order, from ``begin`` to ``end`` if it is split into
chunks, loading the inputs of ``unroll`` tokens together.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from math import prod

from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import Table
from pdssm_compiler.schedules.emit.triton import Kept, TritonBody, parameters
from pdssm_compiler.schedules.signature import Argument, sorted_form
from pdssm_compiler.schedules.source import Phase, Runs, Writer


def write_header(
    writer: Writer,
    title: str,
    rows: int,
    block: int,
    bodies: Iterable[TritonBody],
    helpers: Iterable[str] = (),
) -> None:
    """The module's head: what it was made from, its constants, the functions its bodies call, and
    those that its skeleton does.
    """
    writer.comment(title)
    writer.line("import triton")
    writer.line("import triton.language as tl")
    writer.line()
    writer.line(f"ROWS = tl.constexpr({rows})")
    writer.line(f"BLOCK = tl.constexpr({block})")
    writer.line(f"LEVELS = tl.constexpr({block.bit_length() - 1})")
    writer.line()
    called = [helper for body in bodies for helper in body.helpers()]
    for helper in dict.fromkeys([*called, *helpers]):
        for line in helper.strip("\n").splitlines():
            writer.line(line)
        writer.line()


def write_function(name: str, body: TritonBody, unroll: int) -> None:
    """One function, decorated."""
    writer = body.writer
    with function(writer, name, body.signature.arguments, "chunk" if body.split else "tokens"):
        body.rows()
        if body.split:
            body.chunk()
        body.pointers()
        body.start_rows()
        if body.split:
            writer.line("count = end - begin")
        count = "count" if body.split else "L"
        write_tokens(body, count, unroll, lambda step: _token(body, step))
        body.end_rows()


def function(
    writer: Writer, name: str, arguments: Iterable[Argument], runs: Runs
) -> AbstractContextManager[None]:
    """A function of these tensors, around its body."""
    writer.line()
    writer.line("@triton.jit")
    return writer.block(f"def {name}({', '.join([*parameters(arguments), *size_names(runs)])}):")


def size_names(runs: Runs) -> Sequence[str]:
    """The parameters after the tensors and the error word."""
    more = {"chunk": ("span",), "next chunk": ("blocks", "chunks"), "matrices": ("span",)}
    return ("rows", "L", "H", *more.get(runs, ()))


def tables_to_sort(program: Program) -> frozenset[str]:
    """The tables whose maps the body scatters by; sorted once a call instead of once a token."""
    return _scattered(program, "select")


def maps_to_sort(program: Program) -> frozenset[str]:
    """The map inputs that the body scatters by."""
    return _scattered(program, "input")


def _scattered(program: Program, source: str) -> frozenset[str]:
    if program.state_size == 1:
        return frozenset()
    maps = [value.args[1] for value in program.body if value.op == "scatter_add"]
    found = (map_ for map_ in maps if map_.op == source)
    return frozenset((m.args[0] if source == "select" else m).name for m in found)


def write_sorts(body: TritonBody) -> tuple[list[Phase], tuple[Argument, ...]]:
    """Functions that sort the tables which the body reads sorted, and the scratch they fill."""
    maps = body.signature.sorted_maps
    tables = [a for a in body.signature.inputs if a.name in maps and isinstance(a.type, Table)]
    phases = [_write_sort(body.writer, table, body.program.state_size) for table in tables]
    return phases, tuple(part for table in tables for part in sorted_form(table))


def _write_sort(writer: Writer, table: Argument, state_size: int) -> Phase:
    """A function that sorts the maps of a table, a program for each map of a block of heads."""
    arguments = (table, *sorted_form(table))
    entry = f"sort_{table.name}"
    write = writer.line
    with function(writer, entry, arguments, "map"):
        write("h = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)")
        write("j = tl.arange(0, BLOCK)")
        write(f"inside = (h < H)[:, None] & (j < {state_size})[None, :]")
        write("lane = tl.broadcast_to(j[None, :], (ROWS, BLOCK))")
        write(f"here = lane + tl.program_id(0) * {state_size}")
        table_, order, last = (f"{a.name} + h[:, None] * {a.name}_sH + here" for a in arguments)
        write(f"loaded = tl.load({table_}, mask=inside, other=0)")
        write(f"loaded = tl.minimum(tl.maximum(loaded, 0), {state_size - 1}).to(tl.int32)")
        write("loaded = tl.where(inside, loaded, lane)")
        write("order, first_of, last_of, hit = segments(loaded, lane)")
        write(f"tl.store({order}, order * 2 + first_of, mask=inside)")
        write(f"tl.store({last}, tl.where(hit, last_of, -1), mask=inside)")
    return Phase(entry, arguments, "map")


# Partial sums whose loads are in flight together.
_TOGETHER = 8


def write_totals(
    writer: Writer, state_size: int, partials: Sequence[tuple[Argument, Argument]]
) -> list[Phase]:
    """Functions that add up the sums of a row's chunks, for each sum, from its ``[B, C, H, ...]``
    to its ``[B, H, ...]``; a program for each of an index's groups and block of rows.
    """
    return [_write_total(writer, state_size, partial, total) for partial, total in partials]


def _write_total(writer: Writer, state_size: int, partial: Argument, total: Argument) -> Phase:
    arguments = (partial, total)
    entry = f"total_{total.name}"
    write = writer.line
    # All numbers of a group are alike, the parts of complex ones too.
    count = prod(total.own_shape(state_size)) // (total.groups or 1)
    size, step = 1 << (count - 1).bit_length(), 2 if total.complex else 1
    with function(writer, entry, arguments, "groups"):
        groups = total.groups or 1
        write(f"row = (tl.program_id(0) // {groups}).to(tl.int64) * ROWS + tl.arange(0, ROWS)")
        write(f"i = tl.arange(0, {size})")
        write(f"inside = (row < rows)[:, None] & (i < {count})[None, :]")
        write(f"here = tl.program_id(0) % {groups} * {count} + i[None, :]")
        for name in (argument.name for argument in arguments):
            offset = f"(row // H) * {name}_sB + (row % H) * {name}_sH"
            write(f"{name}_at = {name} + ({offset})[:, None] * {step} + here")
        write(f"total = tl.zeros((ROWS, {size}), tl.{total.dtype})")
        with (
            writer.block(f"for first in range(0, L, {_TOGETHER}):"),
            writer.block(f"for number in tl.static_range({_TOGETHER}):"),
        ):
            write("c = first + number")
            at = f"{partial.name}_at + c * {partial.name}_sC * {step}"
            write(f"total += tl.load({at}, mask=inside & (c < L), other=0.0)")
        write(f"tl.store({total.name}_at, total, mask=inside)")
    return Phase(entry, arguments, "groups")


# The token that a step of a loop runs.
TokenOf = Callable[[str], str]


def write_tokens(body: TritonBody, count: str, unroll: int, token_of: TokenOf) -> None:
    """A loop over ``count`` steps, the inputs of ``unroll`` loaded together."""
    writer = body.writer
    start = "0"
    if unroll > 1:
        start = "whole"
        writer.line(f"whole = {count} - {count} % {unroll}")
        with writer.block(f"for first in range(0, whole, {unroll}):"):
            load_together(body, unroll, token_of)
            run_together(body, unroll)
        writer.line("# The tokens that do not fill a group.")
    with writer.block(f"for first in range({start}, {count}):"):
        load_together(body, 1, token_of)
        run_together(body, 1)


def load_together(body: TritonBody, tokens: int, token_of: TokenOf) -> None:
    """The inputs of the tokens at ``first`` and after."""
    for number in range(tokens):
        step = f"first + {number}" if number else "first"
        body.writer.line(f"t_{number} = {token_of(step)}")
    load_tokens(body, tokens)


def load_tokens(body: TritonBody, tokens: int, slot: str = "_", kept: Kept | None = None) -> None:
    """The inputs of the tokens ``t<slot>0``, …, to slots of the same names."""
    # Indices first: the maps they select wait for them.
    for values in (body.indices(), body.ahead()):
        for number in range(tokens):
            for value in values:
                body.load(value, f"{slot}{number}", f"t{slot}{number}", kept)


def run_together(body: TritonBody, tokens: int, slot: str = "_") -> None:
    """The tokens whose inputs are loaded."""
    for number in range(tokens):
        body.writer.line(f"t = t{slot}{number}")
        body.token(f"{slot}{number}")


def _token(body: TritonBody, step: str) -> str:
    if body.program.direction == "forward":
        return f"begin + {step}" if body.split else step
    return f"{'end' if body.split else 'L'} - 1 - ({step})"
