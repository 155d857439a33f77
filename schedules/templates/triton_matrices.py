"""triton-matrices: programs over matrices on GPUs.

No matrix is in memory: each function adds them up, with fused multiply-adds, where it chooses,
sums or weighs their entries, and a backward adds them up once more in each of its functions. What
bounds it is arithmetic, so the tile of a program holds the coefficients of its tokens in registers
and uses each entry of a head's matrices for all of them.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import Matrices
from pdssm_compiler.schedules.emit import triton_matrices as emit
from pdssm_compiler.schedules.emit.matrices import (
    IN_REGISTERS,
    Shape,
    orientation_of,
    refused,
    tables_of,
)
from pdssm_compiler.schedules.emit.matrices_work import work_of
from pdssm_compiler.schedules.emit.names import in_text_names
from pdssm_compiler.schedules.source import KernelSource, Writer
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Config, Problem, Template
from pdssm_compiler.schedules.work import Work

_LARGEST = 1024
# Registers of a thread for what is no tile's, and the most that tiles may have of those that a
# device has: with more, compilers keep some in memory.
_OTHERS, _MOST = 24, 320
# States from which on a tile of lanes does not stay in a processor's cache.
_MANY_STATES = 512
# Of a choice by few tokens: lanes of a program, and rows of its tile at most.
_NARROW, _TALLEST = 8, 256
# Cycles that a load is waited for, bytes that the second-level cache gives a processor in one, and
# programs of a processor at once, about (docs/mixture.md).
_WAIT, _BYTES_A_CYCLE, _AT_ONCE = 600, 20, 4
# Fields that say nothing of how matrices are cut.
_OF_LAUNCHES = ("num_warps", "programs")


@dataclass(frozen=True)
class TritonMatricesConfig(Config):
    """How matrices are cut; all but ``programs`` and ``together`` are powers of two.

    Attributes:
        tokens: of a program's tile.
        lanes: entries of the axis that is not chosen along, of a program's tile.
        rows: of the other axis, computed together.
        tile: of the other axis, where a program has a tile of every matrix, or of a matrix for
            each of some tokens.
        num_warps: of one program.
        together: tokens that such a program loads together, or has; any number.
        programs: a processor, that the tokens are split for where they are summed over.
        soft_rows: rows that are computed together where the columns of a softmax are added up,
            which takes fewer registers than what follows it.
        vector: lanes that a thread has side by side, at most, of a tile of tokens.
        tile_vector: the same of a tile of every matrix.
        ahead: whether what a turn of a loop reads is loaded a turn before.
        matrices: whose entries are loaded together where a choice goes through them, a program of
            ``together`` tokens with a tile of each one's matrix: for few tokens. 0 where it goes
            through rows, with a tile of tokens.
    """

    tokens: int
    lanes: int
    rows: int
    tile: int
    num_warps: int
    together: int = 1
    programs: int = 8
    soft_rows: int = 1
    vector: int = 4
    tile_vector: int = 4
    ahead: bool = False
    matrices: int = 0


class TritonMatrices(Template[TritonMatricesConfig]):
    """The template; see the module's text."""

    name = "triton-matrices"
    backend = "triton"
    kinds = ("cuda", "hip")
    config_type = TritonMatricesConfig
    over_matrices = True

    def space(self, program: Program, target: Target) -> Iterator[TritonMatricesConfig]:
        lanes = target.warp_size
        if _only_chooses(program):
            for narrow, together in product((8, 16), (1, 2, 4)):
                yield _of_few(program, target, narrow, together)
        for warps, ahead in product((2, 4, 8), (False, True)):
            if not program.sum_outputs:
                for tokens, rows in product((4, 8, 16), (1, 2, 4, 8)):
                    yield TritonMatricesConfig(tokens * warps, lanes, rows, 8, warps, ahead=ahead)
                continue
            for tokens, rows, soft_rows in product((4, 8), (1, 2, 4, 8), (2, 4)):
                for tile, together, programs in product((4, 8), (1, 2, 4, 6), (8, 16, 32)):
                    for vector, tile_vector in product((4, 2), repeat=2):
                        yield TritonMatricesConfig(
                            tokens * warps,
                            lanes,
                            rows,
                            tile * warps,
                            warps,
                            together,
                            programs,
                            soft_rows,
                            vector,
                            tile_vector,
                            ahead,
                        )

    def heuristic(
        self, program: Program, target: Target, problem: Problem
    ) -> TritonMatricesConfig:
        entries, many = _entries(program), program.state_size >= _MANY_STATES
        few = _few(program, target, problem)
        if few is not None and self.feasible(program, target, few) is None:
            return few
        # A row's numbers, of 32 bits.
        numbers = entries * _wide(program)
        # More rows, and more tokens, that are loaded together hide more of memory's latency, and
        # take registers; how many is from measurements and counts (docs/mixture.md).
        rows, soft_rows = _rows(48, numbers), _rows(32, numbers)
        if not program.sum_outputs:
            # Of small matrices every line is near.
            rows, soft_rows = _rows(64 if many else 32, numbers), 1
        together = 6 if entries <= 8 else 2
        programs = 16 if many else 8
        # Compilers take more registers for four lanes than a third program leaves, where tensors
        # are of a power of two of this size.
        size = program.state_size
        tile_vector = 2 if entries <= 6 and size >= 1024 and size & (size - 1) == 0 else 4
        for tokens, tile, loaded, most in (
            (32, 32, together, 8),
            (32, 16, together, 8),
            (32, 16, 2, 2),
            (16, 16, 1, 1),
            (8, 8, 1, 1),
            (4, 4, 1, 1),
        ):
            config = TritonMatricesConfig(
                tokens,
                target.warp_size,
                min(rows, most),
                tile,
                4,
                loaded,
                programs,
                min(soft_rows, most),
                4 if entries <= 6 else 2,
                tile_vector,
            )
            if self.feasible(program, target, config) is None:
                break
        # What feasible refuses, with its reason.
        return config

    def feasible(
        self, program: Program, target: Target, config: TritonMatricesConfig
    ) -> str | None:
        if target.kind not in self.kinds:
            return f"{self.name} is for GPUs, not for {target}"
        wrong = refused(program)
        if wrong is not None:
            return f"{self.name} does not take {wrong}"
        for name in ("tokens", "lanes", "rows", "soft_rows", "tile", "num_warps"):
            value = getattr(config, name)
            if not 0 < value <= _LARGEST or value & (value - 1):
                return f"{name} is a power of two up to {_LARGEST}, not {value}"
        for name in ("vector", "tile_vector"):
            if getattr(config, name) not in (1, 2, 4):
                return f"{name} is 1, 2 or 4, not {getattr(config, name)}"
        if config.num_warps > 16:
            return f"num_warps is at most 16, not {config.num_warps}"
        if not 1 <= config.together <= 8:
            return f"together is from 1 to 8, not {config.together}"
        if not 0 <= config.matrices <= 8:
            return f"matrices is from 0 to 8, not {config.matrices}"
        if config.matrices and not _only_chooses(program):
            return "matrices is for what only chooses; this has gradients as well, so use 0"
        if config.programs < 1:
            return f"programs is at least 1, not {config.programs}"
        held = _registers(program, config, target)
        if held > min(target.registers, _MOST):
            return f"its tiles take some {held} registers of {min(target.registers, _MOST)}"
        most = max(config.rows, config.soft_rows)
        if most * min(_entries(program), IN_REGISTERS) > 64:
            return f"{most} rows of {_entries(program)} matrices are too long a text"
        return None

    def work(
        self,
        program: Program,
        target: Target,
        config: TritonMatricesConfig,
        rows: int,
        length: int,
    ) -> Work:
        return work_of(
            program,
            shape_of(program, asdict(config)),
            config.num_warps,
            config.num_warps * target.warp_size,
            min(target.registers, _registers(program, config, target)),
            config.programs * max(1, target.processors),
            rows,
            length,
        )

    def lower(
        self, program: Program, target: Target, config: TritonMatricesConfig
    ) -> KernelSource:
        program = in_text_names(program)
        writer = Writer()
        writer.comment(f"{self.name} {config}\n{program.text}")
        text = emit.TritonMatrices(program, writer, shape_of(program, asdict(config)))
        phases = text.write()
        return KernelSource(
            "triton",
            writer.text,
            phases[-1].entry,
            program,
            self.name,
            asdict(config),
            target,
            {"num_warps": config.num_warps, "num_stages": 1, "enable_fp_fusion": True},
            tuple(phases),
            tuple(text.scratch()),
        )


def shape_of(program: Program, config: dict[str, Any]) -> Shape:
    """How a program's matrices are cut by a config's fields."""
    sizes = (program.state_size, _entries(program), orientation_of(program) or "")
    cut = {name: value for name, value in config.items() if name not in _OF_LAUNCHES}
    return Shape(*sizes, **cut, tiled=True)


def _only_chooses(program: Program) -> bool:
    return not program.sum_outputs and all(
        out.value.op == "argmax" for out in program.token_outputs
    )


def _of_few(program: Program, target: Target, lanes: int, together: int) -> TritonMatricesConfig:
    """A choice that goes through matrices; see the config.

    As many threads as there are entries for one load each, of 128 bits: compilers have no more
    than three or four loads of a thread under way, whatever the text asks for.
    """
    tile = min(1 << (program.state_size - 1).bit_length(), _TALLEST)
    warps = min(16, max(1, tile * lanes // (4 * target.warp_size)))
    held = max(1, tile * lanes // (warps * target.warp_size)) * _wide(program)
    matrices = max(1, min(8, 64 // held))
    return TritonMatricesConfig(
        together, lanes, 1, tile, warps, together, tile_vector=4, matrices=matrices
    )


def _few(program: Program, target: Target, problem: Problem) -> TritonMatricesConfig | None:
    """How few tokens choose, where that is faster than by tiles of tokens; None where it is not,
    or where the sizes are not known.

    Both are estimated by what they wait for: tiles of tokens for a load a turn, as long as all are
    on the device at once; few tokens for loads too, and for the dictionary, which the second-level
    cache gives anew to each program's tokens.
    """
    if not _only_chooses(program) or problem.rows is None or problem.length is None:
        return None
    size, entries, wide = program.state_size, _entries(program), _wide(program)
    # Of a bucket the least.
    heads, tokens = problem.rows, max(1, (problem.length + 1) // 2)
    processors = max(1, target.processors)
    columns = -(-size // _NARROW)
    together = next(
        (n for n in (1, 2) if -(-tokens // n) * columns * heads <= processors),
        4,
    )
    config = _of_few(program, target, _NARROW, together)
    programs = -(-tokens // together) * heads
    turns = -(-size // config.tile) * -(-entries // config.matrices)
    read = programs * size * size * entries * 4 * wide
    cycles = max(
        -(-programs * columns // (_AT_ONCE * processors)) * turns * _WAIT,
        read / (_BYTES_A_CYCLE * processors),
    )
    rows = _rows(64 if size >= _MANY_STATES else 32, entries * wide)
    tiles = -(-tokens // 32) * -(-size // target.warp_size) * heads
    if tiles > _AT_ONCE * processors:
        return None
    of_tiles = -(-size // rows) * _WAIT
    if entries > IN_REGISTERS:
        of_tiles *= entries
    return config if cycles < of_tiles else None


def _rows(most: int, numbers: int) -> int:
    """The largest power of two of rows, up to 8, that have so many numbers at most."""
    return next((rows for rows in (8, 4, 2) if rows * numbers <= most), 1)


def _wide(program: Program) -> int:
    """Registers of a number."""
    return 1 if tables_of(program)[0].type.element == "f32" else 2  # type: ignore[union-attr]


def _entries(program: Program) -> int:
    tables = tables_of(program)
    sizes = [table.type.size for table in tables if isinstance(table.type, Matrices)]
    return sizes[0] if sizes else 1


def _registers(program: Program, config: TritonMatricesConfig, target: Target) -> int:
    """Of a thread, about: 32 bits each."""
    threads = config.num_warps * target.warp_size
    wide = _wide(program)
    shape = shape_of(program, asdict(config))
    held = shape.entries if shape.entries <= IN_REGISTERS else 1
    noise = 12 if any(value.op == "gumbel" for value in program.body) else 0
    tile = max(1, config.tokens * config.lanes // threads)

    def loaded(rows: int) -> int:
        # Compilers load late what there is no room for, but not what is of the next turn.
        return 2 * rows if shape.ahead else min(rows, 2)

    if config.matrices:
        # Of an entry what it comes to for each token, and those that are loaded.
        of_entry = config.together + max(config.matrices + 2, noise)
        entries = max(1, config.tile * config.lanes // threads)
        return wide * (entries * of_entry + config.together * config.matrices) + _OTHERS
    if not program.sum_outputs:
        # A thread has its lanes apart; the largest so far, where it is, and the next one.
        lanes = max(1, config.lanes // target.warp_size)
        by_tokens = held * (tile // lanes + loaded(config.rows) * lanes) + (3 + noise) * tile
        return wide * by_tokens + _OTHERS
    lanes = min(config.vector, tile)
    tokens = tile // lanes
    # Four numbers of a column, and what an entry comes to; complex numbers along the loop.
    rows = loaded(config.rows)
    by_tokens = held * (tokens + rows * lanes) + 2 * rows * tokens
    by_tokens += (7 + shape.chunk + noise) * tile
    entries = max(1, config.tile * config.lanes // threads)
    lanes = min(config.tile_vector, entries)
    by_entries = (held + shape.chunk + 2 + noise) * entries
    by_entries += loaded(config.together) * (held + 4 * lanes + 2 * entries // lanes)
    return wide * max(by_tokens, by_entries) + _OTHERS
