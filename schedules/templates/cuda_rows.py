"""cuda-rows: two warps a row, one that fetches and one that computes, tokens in order.

A warp alone waits for memory, for its index arithmetic and for its own chain in turn. Here the
first warp fills a ring in shared memory with asynchronous copies, several tiles of tokens ahead;
the second waits for a tile, takes it into registers, gives the slot back and runs the tokens. The
head's tables lie in shared memory, prepared so that a scatter-add collects a few known sources
instead of adding into memory.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import is_number, precision
from pdssm_compiler.schedules.emit.tvm_lanes import LANES, TvmLanes
from pdssm_compiler.schedules.source import KernelSource, Writer
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Problem, Template

THREADS = 2 * LANES
# What a block may have without asking for more.
_SHARED_BYTES = 48 * 1024
# Elements of a lane: more do not fit its registers.
_MOST_ELEMENTS = 8
# Values of all tokens of a tile together; more takes long to compile.
_MOST_VALUES = 400


@dataclass(frozen=True)
class CudaRowsConfig:
    """How rows are run.

    Attributes:
        tile: tokens of a slot, whose inputs are in registers together; even.
        slots: slots of the ring.
    """

    tile: int
    slots: int


class CudaRows(Template[CudaRowsConfig]):
    """The template; see the module's text."""

    name = "cuda-rows"
    backend = "tvm-cuda"
    kinds = ("cuda",)
    config_type = CudaRowsConfig

    def space(self, program: Program, target: Target) -> Iterator[CudaRowsConfig]:
        for tile in (2, 4, 8, 16):
            for slots in (2, 3, 4, 6):
                yield CudaRowsConfig(tile, slots)

    def heuristic(self, program: Program, target: Target, problem: Problem) -> CudaRowsConfig:
        for tile in (16, 8, 4, 2):
            for slots in (4, 3, 2):
                config = CudaRowsConfig(tile, slots)
                if self.feasible(program, target, config) is None:
                    return config
        return CudaRowsConfig(2, 2)

    def feasible(self, program: Program, target: Target, config: CudaRowsConfig) -> str | None:
        if target.kind != "cuda":
            return f"{self.name} is for NVIDIA GPUs, not for {target}"
        if config.tile < 2 or config.tile % 2 or config.tile > LANES:
            return f"tile must be even, from 2 to {LANES}, not {config.tile}"
        if config.slots < 2:
            return f"slots is at least 2, not {config.slots}"
        if program.state_size > _MOST_ELEMENTS * LANES:
            return f"a state size of {program.state_size} is more than one warp holds"
        body = TvmLanes(program, Writer(), tile=config.tile, ring=config.slots)
        shared = body.shared_bytes()
        if shared > _SHARED_BYTES:
            return f"{shared} bytes of shared memory are more than {_SHARED_BYTES}"
        held = config.tile * _words(program, body)
        if held > target.registers - 95 and config.tile > 2:
            return f"the inputs of {config.tile} tokens take {held} registers a thread"
        values = config.tile * body.elements * len(program.body)
        if values > _MOST_VALUES and config.tile > 2:
            return f"unrolling {config.tile} tokens of {len(program.body)} values is too long"
        return None

    def lower(self, program: Program, target: Target, config: CudaRowsConfig) -> KernelSource:
        writer = Writer()
        body = TvmLanes(program, writer, tile=config.tile, ring=config.slots)
        writer.comment(f"{self.name} {config}\n{program.text}")
        parameters = ", ".join([*body.parameters(), "rows: T.int32", "aligned: T.int32"])
        writer.line("@I.ir_module")
        with writer.block("class Kernel:"):
            writer.line("@T.prim_func")
            with writer.block(f"def scan({parameters}):"):
                writer.line('T.func_attr({"global_symbol": "scan", "tirx.noalias": True})')
                body.buffers()
                with (
                    writer.block("for row in T.thread_binding(rows, thread='blockIdx.x'):"),
                    writer.block(
                        f"for thread in T.thread_binding({THREADS}, thread='threadIdx.x'):"
                    ),
                ):
                    self._block(writer, body, config)
        return KernelSource(
            "tvm-cuda", writer.text, "scan", program, self.name, asdict(config), target
        )

    def _block(self, writer: Writer, body: TvmLanes, config: CudaRowsConfig) -> None:
        """What the two warps of a row do."""
        writer.line(f"lane: T.let = thread % {LANES}")
        body.shared()
        body.arrays()
        # Kept in variables: TVM would repeat the divisions in every index.
        for name in ("at_b", "at_h"):
            writer.line(f'{name} = T.alloc_buffer((1,), "int64", scope="local")')
        writer.line("at_b[0] = T.Cast('int64', row) // H")
        writer.line("at_h[0] = T.Cast('int64', row) % H")
        writer.line("b: T.let = at_b[0]")
        writer.line("h: T.let = at_h[0]")
        body.load_tables(THREADS)
        writer.line("T.cuda.cta_sync()")
        body.prepare_tables(THREADS)
        writer.line("T.cuda.cta_sync()")
        writer.line(f"tiles: T.let = T.Cast('int32', (L + {config.tile - 1}) // {config.tile})")
        each = "for number in T.serial(tiles):"
        with writer.block(f"if thread < {LANES}:"), writer.block(each):
            self._slot(writer, config)
            # A slot's first use waits for nothing: the barrier's phase before its first.
            body.wait(f"{config.slots} + slot", f"number // {config.slots} % 2 ^ 1")
            body.produce()
            body.arrive()
        with writer.block("else:"):
            body.start_row()
            writer.line(f"whole: T.let = T.Cast('int32', L // {config.tile})")
            with writer.block("for number in T.serial(whole):"):
                self._slot(writer, config)
                body.wait("slot", f"number // {config.slots} % 2")
                body.hold()
                body.release()
                self._tokens(writer, body, f"T.unroll({config.tile})")
            # The tokens that do not fill a tile are read where they are.
            body.held = False
            with writer.block("if whole < tiles:"):
                writer.line("number: T.let = whole")
                self._slot(writer, config)
                body.wait("slot", f"number // {config.slots} % 2")
                self._tokens(writer, body, "T.serial(T.Cast('int32', L - first))")
            body.end_row()

    def _slot(self, writer: Writer, config: CudaRowsConfig) -> None:
        writer.line(f"slot: T.let = number % {config.slots}")
        writer.line(f"first: T.let = T.Cast('int64', number) * {config.tile}")

    def _tokens(self, writer: Writer, body: TvmLanes, loop: str) -> None:
        with writer.block(f"for u in {loop}:"):
            step = "first + T.Cast('int64', u)"
            forward = body.program.direction == "forward"
            writer.line(f"t: T.let = {step if forward else f'L - 1 - ({step})'}")
            body.token()


def _words(program: Program, body: TvmLanes) -> int:
    """Registers of a token's inputs, about."""
    words = 2 * body.elements * len(body.selects) + len(body.indices)
    for argument in body.streamed:
        each = precision(argument.type) // 32 if is_number(argument.type) else 1
        words += body.elements * each * (2 if argument.complex else 1)
    return words
