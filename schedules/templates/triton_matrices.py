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
# Fields that say nothing of how matrices are cut.
_OF_LAUNCHES = ("num_warps", "programs")


@dataclass(frozen=True)
class TritonMatricesConfig(Config):
    """How matrices are cut; all but ``programs`` and ``together`` are powers of two.

    Attributes:
        tokens: of a program's tile.
        lanes: entries of the axis that is not chosen along, of a program's tile.
        rows: of the other axis, computed together.
        tile: of the other axis, where a program has a tile of every matrix.
        num_warps: of one program.
        together: tokens that such a program loads together; any number.
        programs: a processor, that the tokens are split for where they are summed over.
        soft_rows: rows that are computed together where the columns of a softmax are added up,
            which takes fewer registers than what follows it.
        vector: lanes that a thread has side by side, at most, of a tile of tokens.
        tile_vector: the same of a tile of every matrix.
        ahead: whether what a turn of a loop reads is loaded a turn before.
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


class TritonMatrices(Template[TritonMatricesConfig]):
    """The template; see the module's text."""

    name = "triton-matrices"
    backend = "triton"
    kinds = ("cuda", "hip")
    config_type = TritonMatricesConfig
    over_matrices = True

    def space(self, program: Program, target: Target) -> Iterator[TritonMatricesConfig]:
        lanes = target.warp_size
        for warps, ahead in product((2, 4, 8), (False, True)):
            if not program.sum_outputs:
                for tokens, rows in product((4, 8, 16), (1, 2, 4, 8)):
                    yield TritonMatricesConfig(tokens * warps, lanes, rows, 8, warps, ahead=ahead)
                continue
            for tokens, rows, soft_rows in product((4, 8), (1, 2, 4, 8), (2, 4)):
                for tile, together, programs in product((4, 8), (1, 2, 4, 6), (8, 32)):
                    for vector, tile_vector in ((4, 4), (4, 2), (2, 2)):
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
