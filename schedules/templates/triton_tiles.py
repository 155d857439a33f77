"""What fits a thread: the limits on tiles of rows that every Triton template shares."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pdssm_compiler.ir.program import Program
from pdssm_compiler.schedules.signature import Signature
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.work import Work, bytes_in, bytes_out, collects, values_of

# Elements of one tile a thread may hold before the compiler spills (measured: registers reported
# by the compiler for N = 32 … 256).
_MOST_ELEMENTS = 512

# Elements of a row that others are gathered from: more take minutes to compile.
_WIDEST = 1024

# Threads of one program: what a block of threads may have on every GPU here.
_MOST_THREADS = 1024

# Values of all unrolled tokens together: more than this takes minutes to compile.
_MOST_VALUES = 160


def block_of(program: Program) -> int:
    """The state size rounded up to a power of two."""
    return 1 << (program.state_size - 1).bit_length()


def rows_of_a_warp(program: Program, target: Target) -> int:
    """Rows narrower than a warp share one."""
    return max(1, target.warp_size // block_of(program))


def shapes(program: Program, target: Target) -> Iterator[tuple[int, int, int]]:
    """``rows``, ``num_warps`` and ``unroll`` worth measuring."""
    narrow = rows_of_a_warp(program, target)
    for num_warps in (1, 2, 4, 8):
        for rows in sorted({1, narrow, narrow * num_warps}):
            for unroll in (1, 2, 4, 8, 16):
                yield rows, num_warps, unroll


def preferred_shapes(program: Program, target: Target) -> Iterator[tuple[int, int, int]]:
    """The same, the best first, without measuring.

    One warp a program spreads few rows over many processors; more warps only where a tile would
    not fit one warp's registers.
    """
    rows = rows_of_a_warp(program, target)
    for num_warps in (1, 2, 4, 8):
        for unroll in (16, 8, 4, 2, 1):
            yield rows, num_warps, unroll


def limit(
    signature: Signature, target: Target, rows: int, num_warps: int, unroll: int
) -> str | None:
    """None if a kernel fits in such tiles, otherwise what does not, in one line."""
    program = signature.program
    if rows < 1 or rows & (rows - 1):
        return f"rows must be a power of two, not {rows}"
    most_warps = _MOST_THREADS // target.warp_size
    if not 1 <= num_warps <= most_warps or num_warps & (num_warps - 1):
        return f"num_warps must be a power of two up to {most_warps}, not {num_warps}"
    if program.state_size > _WIDEST:
        return f"a state size of {program.state_size} is more than {_WIDEST}"
    block = block_of(program)
    threads = num_warps * target.warp_size
    tile = rows * block
    if tile > _MOST_ELEMENTS * threads:
        return (
            f"a tile of {tile} elements is more than {_MOST_ELEMENTS} for each of {threads} "
            f"threads; use more warps or fewer rows"
        )
    leaves = len([v for v in program.body if v.is_leaf])
    if unroll < 1:
        return f"unroll is at least 1, not {unroll}"
    # Two words a number.
    held = leaves * unroll * 2 * rows * block // threads
    if held > target.registers and unroll > 1:
        return f"loading {unroll} tokens together needs {held} registers a thread"
    values = len(program.body) + _steps_of_sorts(signature, max(1, tile // threads))
    if unroll * values > _MOST_VALUES and unroll > 1:
        return f"unrolling {unroll} tokens of {values} values is too long"
    return None


def _steps_of_sorts(signature: Signature, elements: int) -> int:
    """What scatters and inverses come to in values: a bitonic network over the elements that a
    thread holds, for maps that were not sorted before, and a running sum.
    """
    levels = block_of(signature.program).bit_length() - 1
    network = elements * levels * (levels + 1) // 2
    steps = 0
    for value in signature.program.body:
        if value.op == "invert":
            steps += network
        elif value.op == "scatter_add":
            map_ = value.args[1]
            name = map_.args[0].name if map_.op == "select" else dict(map_.attributes).get("name")
            steps += levels + (0 if name in signature.sorted_maps else network)
    return steps


def compiler_options(num_warps: int) -> dict[str, Any]:
    """What Triton is told."""
    return {"num_warps": num_warps, "num_stages": 1, "enable_fp_fusion": True}


@dataclass(frozen=True)
class TileWork:
    """What programs of such tiles do with a token, to be counted for a launch.

    Attributes:
        program: the scan's.
        rows: of a program of Triton's.
        threads: of one.
        warps: of one.
        elements: numbers of each kind that a thread holds.
        registers: of a thread, about.
        unroll: tokens that are loaded together.
    """

    program: Program
    rows: int
    threads: int
    warps: int
    elements: int
    registers: int
    unroll: int

    def of(
        self, blocks: int, tokens: int, launches: int, runs: int = 1, passes: float = 0.0
    ) -> Work:
        """The work of so many programs of Triton's, each with so many tokens.

        Args:
            blocks: how many.
            tokens: of each.
            launches: one after the other.
            runs: how often tokens are read and run; written once.
            passes: carries in series.
        """
        loaded, written = bytes_in(self.program), bytes_out(self.program)
        steps = runs * tokens * self.elements
        return Work(
            moved=blocks * self.rows * tokens * (runs * loaded + written),
            blocks=blocks,
            threads=self.threads,
            registers=self.registers,
            steps=steps,
            collecting=steps * collects(self.program),
            # What is no shuffle of one warp passes through shared memory.
            exchanges=steps * (self.warps > 1 or self.elements > 1),
            tiles=runs * tokens / self.unroll,
            waits=runs * tokens / self.unroll,
            issued=blocks * self.warps * steps * values_of(self.program),
            passes=passes,
            launches=launches,
        )


def tile_work(
    program: Program, target: Target, rows: int, num_warps: int, unroll: int
) -> TileWork:
    """What tiles of a shape do with a token."""
    threads = num_warps * target.warp_size
    elements = max(1, rows * block_of(program) // threads)
    leaves = len([v for v in program.body if v.is_leaf])
    registers = min(target.registers, 32 + 2 * leaves * unroll * elements)
    return TileWork(program, rows, threads, num_warps, elements, registers, unroll)
