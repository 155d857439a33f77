"""What functions over matrices do, in counts: for every entry of a matrix, a token, some values.

A function goes through matrices for each of its tokens, or through tokens for each of its entries
(:mod:`pdssm_compiler.schedules.emit.triton_matrices`), and computes every entry from all
coefficients of the token: so many multiply-adds of registers, and what follows them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.value import Value, topological
from pdssm_compiler.schedules.emit.matrices import Shape, grid, split, tables_of
from pdssm_compiler.schedules.signature import width_of
from pdssm_compiler.schedules.work import Work, bytes_in, bytes_out

# Instructions of an op for an entry, about; of a mixture, one a coefficient.
_OF_OP = {"argmax": 3, "straight_through": 6, "outer": 4, "gumbel": 40}
# Instructions that a value of a scan comes to, in which the law counts, and those of one after the
# other that take as long as a step of a scan does.
_OF_A_VALUE, _OF_A_STEP = 10.0, 32.0


@dataclass(frozen=True)
class _Function:
    """One function.

    Attributes:
        blocks: of its launch.
        instructions: of a thread.
        turns: of its loop.
    """

    blocks: int
    instructions: float
    turns: float


def work_of(
    program: Program,
    shape: Shape,
    warps: int,
    threads: int,
    registers: int,
    wanted: int,
    rows: int,
    length: int,
) -> Work:
    """The work of all functions of a program, one after the other.

    Args:
        program: what they compute.
        shape: how matrices are cut.
        warps: of a block.
        threads: of a block.
        registers: of a thread, about.
        wanted: blocks that the tokens are split for where they are summed over.
        rows: ``B * H``.
        length: ``T``.
    """
    parts, span = split(shape, wanted, rows, length)
    found = list(_functions(program, shape, threads, (1, length, rows), parts, span))
    # The blocks of the one that does most; what others do is as much more for each of them.
    blocks = max(found, key=lambda each: each.blocks * each.instructions).blocks
    instructions = sum(each.blocks * each.instructions for each in found) / blocks
    turns = sum(each.blocks * each.turns for each in found) / blocks
    return Work(
        moved=_moved(program, shape, rows, length, parts),
        blocks=blocks,
        threads=threads,
        registers=registers,
        steps=instructions / _OF_A_STEP,
        tiles=turns,
        issued=blocks * warps * instructions / _OF_A_VALUE,
        # Matrices are laid out first, and sums of parts added up last.
        launches=1 + len(found) + len(program.sum_outputs),
    )


def _functions(
    program: Program,
    shape: Shape,
    threads: int,
    sizes: tuple[int, int, int],
    parts: int,
    span: int,
) -> Iterator[_Function]:
    of_tokens = max(1.0, shape.tokens * shape.lanes / threads)
    of_entries = max(1.0, shape.tile * shape.lanes / threads)

    def over_rows(
        entry: str, roots: list[Value], more: float = 0.0, rows: int = shape.rows
    ) -> _Function:
        each = (_instructions(roots, shape.entries) + more) * of_tokens
        blocks = prod(grid(shape, entry, sizes, parts))
        return _Function(blocks, shape.size * each, shape.size / rows)

    for out in program.token_outputs:
        if out.value.op == "argmax":
            if shape.matrices:
                tiles = shape.looped // shape.tile
                each = _instructions([out.value], shape.entries) * of_entries * shape.together
                blocks = prod(grid(shape, "choose_", sizes, parts))
                turns = tiles * -(-shape.entries // shape.matrices)
                yield _Function(blocks, tiles * each, turns)
            else:
                yield over_rows("choose_", [out.value])
    for soft in (v for v in program.body if v.op == "straight_through"):
        # Of one entry of a column.
        top = over_rows("top_", [soft.args[0]])
        yield _Function(top.blocks, top.instructions / shape.size, 1.0)
        yield over_rows("soft_", [soft], rows=shape.soft_rows)
    for out in program.token_outputs:
        if out.value.op == "inner":
            yield over_rows("inner_", [out.value.args[1]], shape.chunk)
    for total in program.sum_outputs:
        each = (_instructions([total.value.args[0]], shape.entries) + shape.chunk) * of_entries
        blocks = prod(grid(shape, "weigh_", sizes, parts))
        yield _Function(blocks, span * each, span / shape.together)


def _instructions(roots: list[Value], entries: int) -> float:
    """What an entry of some values takes."""
    ops = [value.op for value in topological(roots)]
    return sum(entries if op == "mix" else _OF_OP.get(op, 0) for op in ops)


def _moved(program: Program, shape: Shape, rows: int, length: int, parts: int) -> float:
    """Bytes: what tokens read and write, what stands between functions, and the matrices."""
    (table,) = tables_of(program)
    width = width_of(table.storage)
    softs = sum(value.op == "straight_through" for value in program.body)
    inner = sum(out.value.op == "inner" for out in program.token_outputs)
    sums = len(program.sum_outputs)
    # Of each column of a softmax four numbers, which are read by every function after it.
    between = softs * 4 * shape.padded * (1 + inner + sums)
    between += inner * shape.columns * shape.entries * 2
    a_token = bytes_in(program) + bytes_out(program) + width * between
    laid_out = shape.looped * shape.entries * shape.padded * width
    return rows * (length * a_token + laid_out * (3 + 2 * sums * parts))
