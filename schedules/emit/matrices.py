"""Programs over matrices: how the matrices of a head are laid out and cut, for every backend.

One axis of a matrix is *looped* over, the one that a choice is made along; the other lies on
*lanes*. They are laid out for that first, ``[looped, K, lanes]``, with zeros behind both axes'
ends, so that no load needs a mask.
"""

from dataclasses import dataclass

from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import Matrices
from pdssm_compiler.ir.value import Value, topological
from pdssm_compiler.schedules.signature import Argument, Signature

# Coefficients of a token that are in registers; of more, entries are loaded with them one by one.
IN_REGISTERS = 16
# Coefficients whose sums are in registers together, where there are more.
_TOGETHER = 8
# Matrices whose products a CPU's text has one by one. Of more it has a loop, which takes as long:
# products within products are too deep for Python's parser from 200 on, and compile for half a
# minute before that.
WRITTEN_OUT = 16


@dataclass(frozen=True)
class Shape:
    """How matrices are laid out and cut.

    Attributes:
        size: ``N``.
        entries: ``K``.
        orientation: ``column``: rows are looped over, columns on the lanes; or ``row``.
        tokens: of a tile of tokens and lanes.
        lanes: of a tile.
        rows: of the looped axis, computed together.
        tile: of the looped axis in a tile of entries.
        together: tokens that are loaded together there.
        tiled: whether a tile's lanes are apart from those of others, ``[lanes / tile, looped, K,
            tile]``, so that a program reads one piece of memory from its begin to its end.
        soft_rows: those of the looped axis that are computed together where the columns of a
            softmax are added up.
        vector: lanes of a thread that lie side by side, at most, where it has a tile of tokens.
        tile_vector: the same where it has a tile of entries.
        ahead: whether what a turn of a loop reads is loaded a turn before.
        matrices: of a choice by ``together`` tokens with a tile of entries each, those whose
            entries are loaded together; 0 where choices are made by tiles of tokens.
    """

    size: int
    entries: int
    orientation: str
    tokens: int
    lanes: int
    rows: int
    tile: int
    together: int = 1
    tiled: bool = False
    soft_rows: int = 1
    vector: int = 4
    tile_vector: int = 4
    ahead: bool = False
    matrices: int = 0

    @property
    def looped(self) -> int:
        """The looped axis with its end."""
        step = max(self.rows, self.soft_rows, self.tile)
        return -(-self.size // step) * step

    @property
    def padded(self) -> int:
        """The axis on lanes with its end."""
        return -(-self.size // self.lanes) * self.lanes

    @property
    def columns(self) -> int:
        """Tiles of lanes."""
        return self.padded // self.lanes

    @property
    def numbers(self) -> int:
        """Of a head's matrices as they are laid out."""
        return self.looped * self.entries * self.padded

    @property
    def entry_step(self) -> int:
        """From an entry of a matrix to the same of the next matrix."""
        return self.lanes if self.tiled else self.padded

    @property
    def row_step(self) -> int:
        """From an entry to the next one along the looped axis."""
        return self.entries * self.entry_step

    @property
    def column_step(self) -> int:
        """From a tile of lanes to the next."""
        return self.looped * self.row_step if self.tiled else self.lanes

    @property
    def chunk(self) -> int:
        """Coefficients whose sums are in registers together."""
        return self.entries if self.entries <= IN_REGISTERS else _TOGETHER

    @property
    def chunks(self) -> int:
        """How many times so many."""
        return -(-self.entries // self.chunk)

    @property
    def order(self) -> tuple[int, int, int, int]:
        """The axes of ``[H, K, N, N]``, as they are laid out."""
        return (0, 2, 1, 3) if self.orientation == "column" else (0, 3, 1, 2)


# Tokens that are not worth splitting further.
_SHORTEST = 64


def split(shape: Shape, wanted: int, rows: int, length: int) -> tuple[int, int]:
    """How many parts tokens are summed over in, and the tokens of each.

    Args:
        shape: how matrices are cut.
        wanted: programs at a time.
        rows: ``B * H``.
        length: ``T``.
    """
    programs = shape.looped // shape.tile * shape.columns * rows * shape.chunks
    parts = max(1, min(-(-wanted // programs), length // _SHORTEST))
    span = -(-length // parts)
    return -(-length // span), span


def grid(
    shape: Shape, entry: str, sizes: tuple[int, int, int], parts: int
) -> tuple[int, int, int]:
    """The programs of a function, by its name.

    Args:
        shape: how matrices are cut.
        entry: the function's name.
        sizes: ``B``, ``T``, ``H``.
        parts: of :func:`split`.
    """
    batch, length, heads = sizes
    if entry.startswith("weigh_"):
        tiles = shape.looped // shape.tile * shape.columns
        return tiles, parts, batch * heads * shape.chunks
    chunks = shape.chunks if entry.startswith("inner_") else 1
    few = shape.matrices and entry.startswith("choose_")
    tokens = shape.together if few else shape.tokens
    return -(-batch * length // tokens), shape.columns, heads * chunks


def orientation_of(program: Program) -> str | None:
    """Which axis is chosen along, the same for all choices; None if they differ."""
    found = {dict(v.attributes)["orientation"] for v in program.body if _has_orientation(v)}
    return found.pop() if len(found) == 1 else None


def _has_orientation(value: Value) -> bool:
    return "orientation" in dict(value.attributes)


def tables_of(program: Program) -> list[Argument]:
    """The matrices that a program reads."""
    return [a for a in Signature(program).inputs if isinstance(a.type, Matrices)]


def refused(program: Program) -> str | None:
    """Why the functions cannot run a program, or None."""
    if orientation_of(program) is None:
        return "all choices of a program must be by columns, or by rows"
    if program.carries or program.checks or program.final_outputs:
        return "a program over matrices that has carries or checks"
    if len(tables_of(program)) != 1:
        return "a program of one head's matrices is wanted"
    for out in program.token_outputs:
        if out.value.op not in ("argmax", "inner"):
            return f"a token output that is neither argmax nor inner, but {out.value.op}"
    for value in program.body:
        if value.op in ("argmax", "straight_through"):
            mixes = [v for v in topological(value.args[:1]) if v.op == "mix"]
            if len(mixes) != 1:
                return f"a choice of what is no mixture, but of {value.args[0].op}"
    for total in program.sum_outputs:
        if total.value.op != "weigh" or total.index is not None:
            return f"a sum that is not of weigh, but of {total.value.op}"
    return None
