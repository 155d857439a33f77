"""What a config makes of a problem, in counts: what a device has to do, however fast it is.

Each template of a GPU counts it for its own skeleton (:meth:`Template.work`), before anything is
compiled. :mod:`pdssm_compiler.schedules.cost` turns counts into seconds.
"""

from dataclasses import dataclass
from math import prod

from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import Table, is_complex, is_number
from pdssm_compiler.schedules.signature import Argument, Signature, width_of
from pdssm_compiler.schedules.target import Target

# What a processor runs at once: registers, threads, blocks, as on NVIDIA's largest GPUs. Smaller
# ones have room for fewer threads, which blocks of so much shared memory do not fill.
_REGISTERS, _THREADS, _BLOCKS = 65536, 2048, 32
# Bytes of shared memory that each block takes besides its own.
RESERVED_BYTES = 1024


@dataclass(frozen=True)
class Work:
    """A launch, or several, one after the other.

    What stands in series is that of one block; ``waves`` of blocks follow one another.

    Attributes:
        moved: bytes between the device and its memory.
        blocks: of the launch.
        threads: of a block.
        shared_bytes: of a block.
        registers: of a thread, about.
        ahead: bytes that a block has on their way at once while it computes; 0 where it waits
            for what it loads, which ``waits`` counts.
        steps: tokens in series.
        collecting: those among them whose targets collect what is scattered to them, a search
            without lists counted several times.
        exchanges: those among them whose elements pass through shared memory and a barrier.
        tiles: groups of tokens that are begun.
        waits: times that nothing is done but wait for memory.
        issued: values of all tokens of all blocks, once for each warp that computes them.
        passes: carries that go from block to block, or from team to team, in series; of the whole
            problem.
        launches: launches, one after the other.
    """

    moved: float
    blocks: int
    threads: int
    shared_bytes: int = 0
    registers: int = 0
    ahead: float = 0.0
    steps: float = 0.0
    collecting: float = 0.0
    exchanges: float = 0.0
    tiles: float = 0.0
    waits: float = 0.0
    issued: float = 0.0
    passes: float = 0.0
    launches: int = 1

    def at_once(self, target: Target) -> int:
        """How many blocks a target runs side by side, at least one on each processor."""
        return target.processors * blocks_at_once(
            target, self.threads, self.shared_bytes, self.registers
        )

    def waves(self, target: Target) -> int:
        """How many blocks follow one another in one place."""
        return max(1, -(-self.blocks // self.at_once(target)))


def blocks_at_once(target: Target, threads: int, shared_bytes: int, registers: int = 0) -> int:
    """Blocks that one processor runs side by side, at least 1: what fits by shared memory,
    registers and threads.
    """
    found = [_BLOCKS, _THREADS // max(1, threads)]
    if target.shared_memory:
        found.append((target.shared_memory + RESERVED_BYTES) // (shared_bytes + RESERVED_BYTES))
    if registers:
        found.append(_REGISTERS // (registers * threads))
    return max(1, min(found))


def bytes_in(program: Program) -> int:
    """Bytes that a token of a row reads."""
    arguments = Signature(program).inputs
    return sum(_bytes(a, program) for a in arguments if a.role in ("token", "lagged"))


def bytes_out(program: Program) -> int:
    """Bytes that a token of a row writes."""
    return sum(_bytes(a, program) for a in Signature(program).token_outputs)


def table_entries(program: Program) -> int:
    """Entries of a head's tables."""
    tables = (i.type for i in program.inputs if isinstance(i.type, Table))
    return sum(table.size * program.state_size for table in tables)


def collects(program: Program) -> bool:
    """Whether targets collect what is scattered to them."""
    return any(value.op == "scatter_add" for value in program.body)


def values_of(program: Program) -> int:
    """Numbers that an element of a token is computed by, a complex one counted twice."""
    values = (v for v in program.body if not v.is_leaf and is_number(v.type))
    return sum(2 if is_complex(v.type) else 1 for v in values)


def _bytes(argument: Argument, program: Program) -> int:
    return width_of(argument.dtype) * prod(argument.own_shape(program.state_size))
