"""triton-rows: a few whole rows a program, tokens in order, the inputs of several loaded at once.

A program keeps its rows' carries in registers from the first token to the last, so every tensor is
read or written once. What ``unroll`` tokens need that no token before them computes is loaded
together, so that memory is waited for once in ``unroll`` tokens. (Loading a token's inputs some
tokens ahead and handing registers on from token to token was tried and is slower: a copy of a
register waits for the load that fills it. docs/gpu-log.md has the figures.)
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pdssm_compiler.ir.program import Program
from pdssm_compiler.schedules.emit.triton import TritonBody
from pdssm_compiler.schedules.source import KernelSource, Writer
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Problem, Template

# Elements of one tile a thread may hold before the compiler spills (measured: registers reported
# by the compiler for N = 32 … 256).
_MOST_ELEMENTS = 512

# Values of all unrolled tokens together: more than this takes minutes to compile.
_MOST_VALUES = 160


@dataclass(frozen=True)
class TritonRowsConfig:
    """How rows are run.

    Attributes:
        rows: rows of one program; a power of two.
        num_warps: warps of one program.
        unroll: tokens whose inputs are loaded together.
    """

    rows: int
    num_warps: int
    unroll: int


class TritonRows(Template[TritonRowsConfig]):
    """The template; see the module's text."""

    name = "triton-rows"
    backend = "triton"
    kinds = ("cuda", "hip")
    config_type = TritonRowsConfig

    def space(self, program: Program, target: Target) -> Iterator[TritonRowsConfig]:
        narrow = _rows_of_a_warp(program, target)
        for num_warps in (1, 2, 4, 8):
            for rows in sorted({1, narrow, narrow * num_warps}):
                for unroll in (1, 2, 4, 8, 16):
                    yield TritonRowsConfig(rows, num_warps, unroll)

    def heuristic(self, program: Program, target: Target, problem: Problem) -> TritonRowsConfig:
        # One warp a program spreads few rows over many processors; more warps only where a
        # scatter's tile would not fit one warp's registers.
        rows = _rows_of_a_warp(program, target)
        for num_warps in (1, 2, 4, 8):
            for unroll in (16, 8, 4, 2, 1):
                config = TritonRowsConfig(rows, num_warps, unroll)
                if self.feasible(program, target, config) is None:
                    return config
        return TritonRowsConfig(rows, 8, 1)

    def feasible(self, program: Program, target: Target, config: TritonRowsConfig) -> str | None:
        if target.kind not in self.kinds:
            return f"{self.name} is for GPUs, not for {target}"
        if config.rows < 1 or config.rows & (config.rows - 1):
            return f"rows must be a power of two, not {config.rows}"
        block = _block(program)
        threads = config.num_warps * target.warp_size
        spread = any(value.op in ("scatter_add", "invert") for value in program.body)
        tile = config.rows * block * (block if spread else 1)
        if tile > _MOST_ELEMENTS * threads:
            return (
                f"a tile of {tile} elements is more than {_MOST_ELEMENTS} for each of {threads} "
                f"threads; use more warps or fewer rows"
            )
        leaves = len([v for v in program.body if v.is_leaf])
        if config.unroll < 1:
            return f"unroll is at least 1, not {config.unroll}"
        # Two words a number.
        held = leaves * config.unroll * 2 * config.rows * block // threads
        if held > target.registers and config.unroll > 1:
            return f"loading {config.unroll} tokens together needs {held} registers a thread"
        if config.unroll * len(program.body) > _MOST_VALUES and config.unroll > 1:
            return f"unrolling {config.unroll} tokens of {len(program.body)} values is too long"
        if spread and config.unroll * tile > 256 * threads and config.unroll > 1:
            return f"unrolling {config.unroll} tokens repeats a tile of {tile} elements too often"
        return None

    def lower(self, program: Program, target: Target, config: TritonRowsConfig) -> KernelSource:
        writer = Writer()
        body = TritonBody(program, writer)
        writer.comment(f"{self.name} {config}\n{program.text}")
        writer.line("import triton")
        writer.line("import triton.language as tl")
        writer.line()
        writer.line(f"ROWS = tl.constexpr({config.rows})")
        writer.line(f"BLOCK = tl.constexpr({_block(program)})")
        writer.line()
        for helper in body.helpers():
            for line in helper.strip("\n").splitlines():
                writer.line(line)
            writer.line()
        writer.line()
        parameters = ", ".join([*body.parameters(), "rows", "L", "H"])
        writer.line("@triton.jit")
        with writer.block(f"def scan({parameters}):"):
            body.rows()
            body.pointers()
            body.start_rows()
            self._tokens(writer, body, program, config.unroll)
            body.end_rows()
        return KernelSource(
            "triton",
            writer.text,
            "scan",
            program,
            self.name,
            asdict(config),
            target,
            {"num_warps": config.num_warps, "num_stages": 1, "enable_fp_fusion": True},
        )

    def _tokens(self, writer: Writer, body: TritonBody, program: Program, unroll: int) -> None:
        if unroll > 1:
            writer.line(f"whole = L - L % {unroll}")
            with writer.block(f"for first in range(0, whole, {unroll}):"):
                self._group(writer, body, program, unroll)
            writer.line("# The tokens that do not fill a group.")
        with writer.block(f"for first in range({'whole' if unroll > 1 else '0'}, L):"):
            self._group(writer, body, program, 1)

    def _group(self, writer: Writer, body: TritonBody, program: Program, tokens: int) -> None:
        forward = program.direction == "forward"
        for number in range(tokens):
            step = f"first + {number}" if number else "first"
            writer.line(f"t_{number} = {step if forward else f'L - 1 - ({step})'}")
        # Indices first: the maps they select wait for them.
        for values in (body.indices(), body.ahead()):
            for number in range(tokens):
                for value in values:
                    body.load(value, f"_{number}", f"t_{number}")
        for number in range(tokens):
            writer.line(f"t = t_{number}")
            body.token(f"_{number}")


def _block(program: Program) -> int:
    """The state size rounded up to a power of two."""
    return 1 << (program.state_size - 1).bit_length()


def _rows_of_a_warp(program: Program, target: Target) -> int:
    """Rows narrower than a warp share one."""
    return max(1, target.warp_size // _block(program))
