"""triton-rows: a few whole rows a program, tokens in order, inputs loaded some tokens ahead.

A program keeps its rows' carries in registers from the first token to the last, so every tensor is
read or written once. What a token needs that no token before it computes is loaded ``prefetch``
tokens ahead, the indices that select maps as many tokens earlier still: the chain from carry to
carry then waits for arithmetic, not for memory.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.value import Value
from pdssm_compiler.schedules.emit.triton import TritonBody
from pdssm_compiler.schedules.source import KernelSource, Writer
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Problem, Template

# Elements of one tile a thread may hold before the compiler spills (measured: registers reported
# by the compiler for N = 32 … 256).
_MOST_ELEMENTS = 512


@dataclass(frozen=True)
class TritonRowsConfig:
    """How rows are run.

    Attributes:
        rows: rows of one program; a power of two.
        num_warps: warps of one program.
        prefetch: tokens between loading an input and using it.
    """

    rows: int
    num_warps: int
    prefetch: int


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
                for prefetch in (0, 1, 2, 4, 8):
                    yield TritonRowsConfig(rows, num_warps, prefetch)

    def heuristic(self, program: Program, target: Target, problem: Problem) -> TritonRowsConfig:
        # One warp a program spreads few rows over many processors; more warps only where a
        # scatter's tile would not fit one warp's registers.
        rows = _rows_of_a_warp(program, target)
        for num_warps in (1, 2, 4, 8):
            for prefetch in (4, 2, 1):
                config = TritonRowsConfig(rows, num_warps, prefetch)
                if self.feasible(program, target, config) is None:
                    return config
        return TritonRowsConfig(rows, 8, 0)

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
        held = leaves * (config.prefetch + 1) * 2 * config.rows * block // threads
        if held > target.registers:
            return f"prefetching {config.prefetch} tokens needs {held} registers a thread"
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
            self._tokens(writer, body, program, config.prefetch)
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

    def _tokens(self, writer: Writer, body: TritonBody, program: Program, prefetch: int) -> None:
        def token(step: str) -> str:
            return step if program.direction == "forward" else f"L - 1 - ({step})"

        # Slot q holds what was loaded for the token q steps from now; an index is loaded twice as
        # far ahead as the map it selects.
        for early in range(2 * prefetch):
            for value in body.indices():
                body.load(value, f"_{early}", token(str(early)), f"({early} < L)")
        for early in range(prefetch):
            for value in body.ahead():
                body.load(value, f"_{early}", token(str(early)), f"({early} < L)")
        with writer.block("for step in range(L):"):
            writer.line(f"t = {token('step')}")
            later = token(f"step + {prefetch}"), f"(step + {prefetch} < L)"
            latest = token(f"step + {2 * prefetch}"), f"(step + {2 * prefetch} < L)"
            # Loads first: they are on their way while the token is computed.
            for value in body.indices():
                body.load(value, f"_{2 * prefetch}", *latest)
            for value in body.ahead():
                body.load(value, f"_{prefetch}", *later)
            body.token("_0")
            if prefetch:
                writer.line("# Everything loaded ahead comes one token closer.")
            for values, slots in ((body.ahead(), prefetch), (body.indices(), 2 * prefetch)):
                for value in values:
                    for early in range(slots):
                        _move(writer, body, value, early)


def _move(writer: Writer, body: TritonBody, value: Value, early: int) -> None:
    here = body.raw_names(value, f"_{early}")
    there = body.raw_names(value, f"_{early + 1}")
    writer.line(f"{', '.join(here)} = {', '.join(there)}")


def _block(program: Program) -> int:
    """The state size rounded up to a power of two."""
    return 1 << (program.state_size - 1).bit_length()


def _rows_of_a_warp(program: Program, target: Target) -> int:
    """Rows narrower than a warp share one."""
    return max(1, target.warp_size // _block(program))
