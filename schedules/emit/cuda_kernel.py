"""What every kernel for NVIDIA GPUs is written inside of."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pdssm_compiler.ir.program import Program
from pdssm_compiler.schedules.emit.lane_body import LANES
from pdssm_compiler.schedules.emit.tvm import buffer_dtype
from pdssm_compiler.schedules.emit.tvm_lanes import TvmLanes
from pdssm_compiler.schedules.signature import Argument
from pdssm_compiler.schedules.source import Writer
from pdssm_compiler.schedules.target import Target

# Warps of a block.
MOST_WARPS = 32
# Elements of a lane: more do not fit its registers.
MOST_ELEMENTS = 8
# Registers of a block, on every NVIDIA GPU here.
_REGISTERS = 65536


@contextmanager
def kernel(
    writer: Writer,
    body: TvmLanes,
    sizes: Sequence[str],
    grid: tuple[str, str],
    threads: int,
    scratch: Sequence[Argument] = (),
) -> Iterator[None]:
    """A kernel, around what each of its threads does.

    Args:
        writer: what to write to.
        body: whose tensors are its parameters.
        sizes: its other parameters, 32-bit integers.
        grid: what a block is called, and how many there are.
        threads: of a block; one is called ``thread``.
        scratch: tensors beside the body's.
    """
    parameters = body.parameters()
    parameters += [f"{argument.name}_: T.handle" for argument in scratch]
    parameters += [f"{a.name}_s{axis}: T.int64" for a in scratch for axis in a.leading]
    parameters += [f"{name}: T.int32" for name in sizes]
    number, count = grid
    writer.line("@I.ir_module")
    with writer.block("class Kernel:"):
        writer.line("@T.prim_func")
        with writer.block(f"def scan({', '.join(parameters)}):"):
            writer.line('T.func_attr({"global_symbol": "scan", "tirx.noalias": True})')
            body.buffers()
            for argument in scratch:
                body.flat_buffer(argument.name, buffer_dtype(argument))
            with (
                writer.block(f"for {number} in T.thread_binding({count}, thread='blockIdx.x'):"),
                writer.block(f"for thread in T.thread_binding({threads}, thread='threadIdx.x'):"),
            ):
                yield


def declare_row(writer: Writer) -> None:
    """Variables for where a row is: TVM would repeat the divisions in every index."""
    for name in ("at_b", "at_h"):
        writer.line(f'{name} = T.alloc_buffer((1,), "int64", scope="local")')


def locate_row(writer: Writer) -> None:
    """``b`` and ``h`` of ``row``."""
    writer.line("at_b[0] = T.Cast('int64', row) // H")
    writer.line("at_h[0] = T.Cast('int64', row) % H")
    writer.line("b: T.let = at_b[0]")
    writer.line("h: T.let = at_h[0]")


def whole_team(program: Program, most: int = MOST_WARPS) -> int:
    """Warps that hold a state, at most ``most``, and no more than as few elements a lane take."""
    elements = -(-program.state_size // (LANES * most))
    return -(-program.state_size // (LANES * elements))


def registers_of(target: Target, threads: int) -> int:
    """Registers a thread may have in a block of so many."""
    return min(target.registers, _REGISTERS // threads // 8 * 8)
