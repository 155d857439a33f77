"""triton-matrices: programs over matrices on GPUs.

No matrix is in memory: each function adds them up, with fused multiply-adds, where it chooses,
sums or weighs their entries, and a backward adds them up once more in each of its functions. What
bounds it is arithmetic, so the tile of a program holds the coefficients of its tokens in registers
and uses each entry of a head's matrices for all of them.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class TritonMatricesConfig(Config):
    """How matrices are cut; all but ``programs`` are powers of two.

    Attributes:
        tokens: of a program's tile.
        lanes: entries of the axis that is not chosen along, of a program's tile.
        rows: of the other axis, computed together.
        tile: of the other axis, where a program has a tile of every matrix.
        num_warps: of one program.
        together: tokens that such a program loads together.
        programs: a processor, that the tokens are split for where they are summed over.
        tiled: whether a program's lanes of the matrices lie apart from those of others.
        vector: of these, that a thread has side by side, at most.
        ahead: whether what a turn of a loop reads is loaded a turn before.
    """

    tokens: int
    lanes: int
    rows: int
    tile: int
    num_warps: int
    together: int = 1
    programs: int = 8
    tiled: bool = False
    vector: int = 4
    ahead: bool = False


class TritonMatrices(Template[TritonMatricesConfig]):
    """The template; see the module's text."""

    name = "triton-matrices"
    backend = "triton"
    kinds = ("cuda", "hip")
    config_type = TritonMatricesConfig
    over_matrices = True

    def space(self, program: Program, target: Target) -> Iterator[TritonMatricesConfig]:
        for tokens in (16, 32, 64, 128):
            for lanes in (32, 64, 128):
                for rows in (1, 2, 4, 8):
                    for tile in (8, 16, 32):
                        for num_warps in (4, 8):
                            for together in (1, 2, 4):
                                yield TritonMatricesConfig(
                                    tokens, lanes, rows, tile, num_warps, together
                                )

    def heuristic(
        self, program: Program, target: Target, problem: Problem
    ) -> TritonMatricesConfig:
        few = _entries(program) <= IN_REGISTERS
        # More rows hide more of memory's latency, and take registers.
        rows = (4, 2) if few and not program.sum_outputs else (2, 1)
        for tokens, tile, together, row in (
            (32, 32, 2, rows[0]),
            (32, 16, 2, rows[0]),
            (32, 16, 2, rows[1]),
            (16, 16, 1, rows[1]),
            (8, 8, 1, 1),
            (4, 4, 1, 1),
        ):
            config = TritonMatricesConfig(tokens, target.warp_size, row, tile, 4, together)
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
        for name in ("tokens", "lanes", "rows", "tile", "num_warps"):
            value = getattr(config, name)
            if not 0 < value <= _LARGEST or value & (value - 1):
                return f"{name} is a power of two up to {_LARGEST}, not {value}"
        if config.num_warps > 16:
            return f"num_warps is at most 16, not {config.num_warps}"
        if not 1 <= config.together <= 8:
            return f"together is from 1 to 8, not {config.together}"
        if config.programs < 1:
            return f"programs is at least 1, not {config.programs}"
        held = _registers(program, config, target)
        if held > min(target.registers, _MOST):
            return f"its tiles take some {held} registers of {min(target.registers, _MOST)}"
        if config.rows * min(_entries(program), IN_REGISTERS) > 64:
            return f"{config.rows} rows of {_entries(program)} matrices are too long a text"
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
    names = ("tokens", "lanes", "rows", "tile", "together", "tiled", "vector", "ahead")
    sizes = (program.state_size, _entries(program), orientation_of(program) or "")
    return Shape(*sizes, **{name: config[name] for name in names})


def _entries(program: Program) -> int:
    tables = tables_of(program)
    sizes = [table.type.size for table in tables if isinstance(table.type, Matrices)]
    return sizes[0] if sizes else 1


def _registers(program: Program, config: TritonMatricesConfig, target: Target) -> int:
    """Of a thread, about: 32 bits each."""
    threads = config.num_warps * target.warp_size
    wide = 1 if tables_of(program)[0].type.element == "f32" else 2  # type: ignore[union-attr]
    shape = shape_of(program, asdict(config))
    held = shape.entries if shape.entries <= IN_REGISTERS else 1
    turns = 2 if shape.ahead else 1
    noise = 12 if any(value.op == "gumbel" for value in program.body) else 0
    tile = max(1, config.tokens * config.lanes // threads)
    if not program.sum_outputs:
        # A thread has its lanes apart; the largest so far, where it is, and the next one.
        lanes = max(1, config.lanes // target.warp_size)
        by_tokens = held * (tile // lanes + turns * config.rows * lanes) + (3 + noise) * tile
        return wide * by_tokens + _OTHERS
    lanes = min(config.vector, tile)
    tokens = tile // lanes
    # Four numbers of a column, and what an entry comes to; complex numbers along the loop.
    by_tokens = held * (tokens + turns * config.rows * lanes) + 7 * tile
    by_tokens += 2 * turns * config.rows * tokens
    by_tokens += (shape.chunk + noise) * tile
    entries = max(1, config.tile * config.lanes // threads)
    lanes = min(config.vector, entries)
    by_entries = (held + shape.chunk + 2 + noise) * entries
    by_entries += config.together * turns * (held + 4 * lanes + 2 * entries // lanes)
    return wide * max(by_tokens, by_entries) + _OTHERS
