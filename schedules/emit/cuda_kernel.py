"""What every kernel for NVIDIA GPUs is written inside of."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pdssm_compiler.ir.program import Program
from pdssm_compiler.schedules.emit.lane_body import LANES, lane_dtype, place_of_row
from pdssm_compiler.schedules.emit.tvm_lanes import TvmLanes
from pdssm_compiler.schedules.signature import Argument
from pdssm_compiler.schedules.source import Writer
from pdssm_compiler.schedules.target import Target

# Warps of a block.
MOST_WARPS = 32
# Elements of a lane: more do not fit its registers.
MOST_ELEMENTS = 8
# The first compute capability whose blocks can be clusters.
_CLUSTERS_FROM = 90
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
                body.flat_buffer(argument.name, lane_dtype(argument))
            with (
                writer.block(f"for {number} in T.thread_binding({count}, thread='blockIdx.x'):"),
                writer.block(f"for thread in T.thread_binding({threads}, thread='threadIdx.x'):"),
            ):
                yield


def declare_row(writer: Writer, rows: int = 1) -> None:
    """Variables for where a row is: TVM would repeat the divisions in every index."""
    for name in ("at_b", "at_h"):
        writer.line(f'{name} = T.alloc_buffer((1,), "int64", scope="local")')
    if rows > 1:
        writer.line('team_row = T.alloc_buffer((1,), "int32", scope="local")')


def locate_row(writer: Writer, rows: int = 1, state_size: int = 0) -> None:
    """``b`` and ``h`` of ``row``; of several rows a warp, ``row`` numbers groups of them, and
    these are of the lane's own.
    """
    b, h = "T.Cast('int64', row) // H", "T.Cast('int64', row) % H"
    if rows > 1:
        writer.line(f"team_row[0] = row * {rows}")
        side = f"T.min(thread % {LANES}, {rows * state_size - 1}) // {state_size}"
        own = f"T.min(team_row[0] + {side}, rows - 1)"
        b, h = (f"T.Cast('int64', {place})" for place in place_of_row(own))
    writer.line(f"at_b[0] = {b}")
    writer.line(f"at_h[0] = {h}")
    writer.line("b: T.let = at_b[0]")
    writer.line("h: T.let = at_h[0]")


def whole_team(program: Program, most: int = MOST_WARPS) -> int:
    """Warps that hold a state, at most ``most``, and no more than as few elements a lane take."""
    elements = -(-program.state_size // (LANES * most))
    return -(-program.state_size // (LANES * elements))


def tile_refused(template: str, target: Target, tile: int) -> str | None:
    """Why a template cannot run tiles of so many tokens on a target; None if it can."""
    if target.kind != "cuda":
        return f"{template} is for NVIDIA GPUs, not for {target}"
    if tile < 2 or tile % 2 or tile > LANES:
        return f"tile must be even, from 2 to {LANES}, not {tile}"
    return None


def has_clusters(target: Target) -> bool:
    """Whether blocks of a launch can be clusters, which reach one another's shared memory."""
    return target.kind == "cuda" and int(target.arch.removeprefix("sm_")) >= _CLUSTERS_FROM


def rows_refused(program: Program, rows: int, team: int) -> str | None:
    """Why a warp cannot hold so many rows side by side; None if it can."""
    if rows < 1:
        return f"rows is at least 1, not {rows}"
    if rows == 1:
        return None
    if team > 1 or rows * program.state_size > LANES:
        return f"{rows} rows of {program.state_size} states do not fit a warp"
    if any(value.op == "invert" for value in program.body):
        return "rows that invert maps have a warp each"
    return None


def most_rows(program: Program) -> int:
    """As many rows as a warp holds side by side."""
    most = max(1, LANES // program.state_size)
    return most if rows_refused(program, most, 1) is None else 1


def registers_of(target: Target, threads: int) -> int:
    """Registers a thread may have in a block of so many."""
    return min(target.registers, _REGISTERS // threads // 8 * 8)
