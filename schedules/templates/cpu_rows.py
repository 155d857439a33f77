"""cpu-rows: blocks of neighbouring heads on each thread, tokens in order.

Rows are independent, so threads share them out. A thread takes a block of heads of one sequence
through each token together: their elements are neighbours in memory, so it reads and writes
streams instead of strides. The carries of a block stay in the first-level cache, and every tensor
is read or written once.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import Map, Scalar, is_complex, precision
from pdssm_compiler.schedules.emit.names import in_text_names
from pdssm_compiler.schedules.emit.tvm_rows import RowsBody, token_bytes_of
from pdssm_compiler.schedules.signature import Signature
from pdssm_compiler.schedules.source import KernelSource, Writer
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Config, Problem, Template

# A block's carries may take this much of the first-level cache, which is 32 KiB or more.
_CARRY_BYTES = 16 * 1024
# A block's carries stand on a thread's stack, which has a few MiB.
_STACK_BYTES = 1024 * 1024
# Tokens further ahead have left the cache by their turn.
_FURTHEST = 1024
# Elements of a scan that a thread does while another wakes up: some 20 µs at 1 or 2 ns each.
_LEAST_PARALLEL = 16 * 1024
# Smaller outputs are likely still in the last-level cache when they are read.
_STREAM_BYTES = 48 << 20


@dataclass(frozen=True)
class CpuRowsConfig(Config):
    """How rows are run.

    Attributes:
        max_heads: heads of one sequence that a thread takes through a token together, at most; a
            launch takes fewer where threads would be idle.
        split_scatter: compute what is scattered in a vector loop of its own.
        prefetch: how many tokens ahead memory is asked for; 0 leaves it to the processor.
            Not where outputs are streamed.
        narrow_tables: keep a head's tables clamped and in the fewest bytes, where they are small.
        stream_bytes: token outputs of a call that together have at least this many bytes are
            written past the caches; 0 never does.
    """

    max_heads: int
    split_scatter: bool = True
    prefetch: int = 1
    narrow_tables: bool = True
    stream_bytes: int = _STREAM_BYTES


class CpuRows(Template[CpuRowsConfig]):
    """The template; see the module's text."""

    name = "cpu-rows"
    backend = "tvm"
    kinds = ("cpu",)
    config_type = CpuRowsConfig

    def space(self, program: Program, target: Target) -> Iterator[CpuRowsConfig]:
        for max_heads in (1, 2, 4, 8, 16, 32):
            for split_scatter in (True, False):
                for prefetch in (1, 0, 2):
                    for narrow_tables in (True, False):
                        yield CpuRowsConfig(max_heads, split_scatter, prefetch, narrow_tables)

    def heuristic(self, program: Program, target: Target, problem: Problem) -> CpuRowsConfig:
        fitting = _CARRY_BYTES // max(1, carry_bytes(program))
        return CpuRowsConfig(max_heads=max(1, min(16, fitting)))

    def feasible(self, program: Program, target: Target, config: CpuRowsConfig) -> str | None:
        if target.kind != "cpu":
            return f"{self.name} is for CPUs, not for {target}"
        if config.max_heads < 1:
            return f"max_heads is at least 1, not {config.max_heads}"
        block = config.max_heads * carry_bytes(program)
        if block > _STACK_BYTES and config.max_heads > 1:
            return (
                f"the carries of {config.max_heads} heads take {block} bytes of a thread's stack, "
                f"more than {_STACK_BYTES}; use fewer heads"
            )
        if not 0 <= config.prefetch <= _FURTHEST:
            return f"prefetch is a number of tokens up to {_FURTHEST}, not {config.prefetch}"
        if config.stream_bytes < 0:
            return f"stream_bytes is a number of bytes, not {config.stream_bytes}"
        return None

    def lower(self, program: Program, target: Target, config: CpuRowsConfig) -> KernelSource:
        program = in_text_names(program)
        writer = Writer()
        body = RowsBody(
            program, writer, config.max_heads, config.split_scatter, config.narrow_tables
        )
        writer.comment(f"{self.name} {config}\n{program.text}")
        writer.line("@I.ir_module")
        with writer.block("class Kernel:"):
            for entry, loop in (("scan", "T.parallel"), ("scan_serial", "T.serial")):
                self._function(writer, body, program, config, entry, loop)
        return KernelSource("tvm", writer.text, "scan", program, self.name, asdict(config), target)

    def _function(
        self,
        writer: Writer,
        body: RowsBody,
        program: Program,
        config: CpuRowsConfig,
        entry: str,
        loop: str,
    ) -> None:
        """One entry: ``scan`` on the threads of TVM's pool, ``scan_serial`` on the caller's.

        A pool does not survive a fork, and waking it costs more than a short scan.
        """
        own = ("tasks: T.int32", "heads: T.int32", "stream: T.int32")
        parameters = ", ".join([*body.parameters(), *own])
        writer.line("@T.prim_func")
        with writer.block(f"def {entry}({parameters}):"):
            writer.line(f'T.func_attr({{"global_symbol": "{entry}", "tirx.noalias": True}})')
            for size in _sizes(body):
                writer.line(f"{size} = T.int64()")
            body.buffers()
            body.functions()
            with writer.block(f"for task in {loop}(tasks):"):
                body.arrays()
                # Blocks are shared out evenly; the last of a sequence may have fewer heads. What a
                # division gives is kept in variables: TVM would repeat it in every index.
                for name in ("blocks", "share", "first", "count", "at", "first_head", "slots"):
                    body.local(name, (1,), "int64")
                writer.line("blocks[0] = (H + heads - 1) // heads")
                writer.line("share[0] = (B * blocks[0] + tasks - 1) // tasks")
                writer.line("first[0] = share[0] * task")
                writer.line("count[0] = T.min(share[0], B * blocks[0] - first[0])")
                with writer.block("for block in T.serial(T.max(count[0], T.int64(0))):"):
                    writer.line("at[0] = (first[0] + block) // blocks[0]")
                    writer.line("first_head[0] = (first[0] + block - at[0] * blocks[0]) * heads")
                    writer.line("slots[0] = T.min(T.Cast('int64', heads), H - first_head[0])")
                    writer.line("b: T.let = at[0]")
                    with _each_row(writer):
                        body.start_row()
                    with writer.block("for step in T.serial(L):"):
                        forward = program.direction == "forward"
                        writer.line(f"t: T.let = {'step' if forward else 'L - 1 - step'}")
                        with _each_row(writer):
                            if config.prefetch:
                                # Streamed lines must not be in the caches, and what asks for
                                # memory ahead takes the buffers they go through.
                                with writer.block("if stream == 0:"):
                                    body.prefetch(config.prefetch)
                            body.token()
                            body.write_behind()
                        body.write_last()
                    with _each_row(writer):
                        body.end_row()
                body.finish()
        writer.line()


@contextmanager
def _each_row(writer: Writer) -> Iterator[None]:
    with writer.block("for slot in T.serial(slots[0]):"):
        writer.line("h: T.let = first_head[0] + slot")
        yield


def carry_bytes(program: Program) -> int:
    """Bytes of all carries of one row."""
    total = 0
    for carry in program.carries:
        elements = 1 if isinstance(carry.type, Scalar) else program.state_size
        width = 4 if isinstance(carry.type, Map) else precision(carry.type) // 8
        total += elements * width * (2 if is_complex(carry.type) else 1)
    return total


def token_bytes(signature: Signature) -> int:
    """Bytes that a token of one row writes."""
    size = signature.program.state_size
    return sum(token_bytes_of(argument, size) for argument in signature.token_outputs)


def launch(
    config: CpuRowsConfig, batch: int, length: int, heads: int, state_size: int, threads: int
) -> tuple[int, int]:
    """``tasks`` and ``heads`` of one call: as many heads a block as keep every thread busy, and
    one thread where waking another takes longer than the scan.
    """
    if threads > 1 and batch * length * heads * state_size < _LEAST_PARALLEL:
        threads = 1
    per_sequence = -(-threads // max(1, batch))
    block = max(1, min(config.max_heads, heads // max(1, per_sequence)))
    blocks = batch * -(-heads // block)
    return max(1, min(threads, blocks)), block


def _sizes(body: RowsBody) -> tuple[str, ...]:
    axes = {axis for argument in body.signature.arguments for axis in argument.leading}
    return tuple(axis for axis in ("B", "L", "H") if axis in axes or axis == "L")
