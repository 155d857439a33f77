"""triton-rows: a few whole rows a program, tokens in order, the inputs of several loaded at once.

A program keeps its rows' carries in registers from the first token to the last, so every tensor is
read or written once. What ``unroll`` tokens need that no token before them computes is loaded
together, so that memory is waited for once in ``unroll`` tokens. (Loading a token's inputs some
tokens ahead and handing registers on from token to token was tried and is slower: a copy of a
register waits for the load that fills it. docs/gpu-log.md has the figures.)

Tables whose maps may collide are sorted by a small function before (``sort_…``), but where a call
has so few tokens that this takes longer than the tokens: then their maps are sorted as they come.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pdssm_compiler.ir.program import Program
from pdssm_compiler.schedules.emit.names import in_text_names
from pdssm_compiler.schedules.emit.triton import TritonBody
from pdssm_compiler.schedules.emit.triton_kernel import (
    tables_to_sort,
    write_function,
    write_header,
    write_sorts,
)
from pdssm_compiler.schedules.signature import Signature
from pdssm_compiler.schedules.source import KernelSource, Phase, Writer
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Config, Problem, Template
from pdssm_compiler.schedules.templates.triton_tiles import (
    block_of,
    compiler_options,
    limit,
    preferred_shapes,
    shapes,
    tile_work,
)
from pdssm_compiler.schedules.work import Work

# Preparing a table, a launch of its own, pays with more tokens than this.
_FEW_TOKENS = 3


@dataclass(frozen=True)
class TritonRowsConfig(Config):
    """How rows are run.

    Attributes:
        rows: rows of one program; a power of two.
        num_warps: warps of one program.
        unroll: tokens whose inputs are loaded together.
        prepared: whether tables are sorted before.
    """

    rows: int
    num_warps: int
    unroll: int
    prepared: bool = True


class TritonRows(Template[TritonRowsConfig]):
    """The template; see the module's text."""

    name = "triton-rows"
    backend = "triton"
    kinds = ("cuda", "hip")
    config_type = TritonRowsConfig

    def space(self, program: Program, target: Target) -> Iterator[TritonRowsConfig]:
        choices = (True, False) if tables_to_sort(program) else (True,)
        for shape in shapes(program, target):
            for prepared in choices:
                yield TritonRowsConfig(*shape, prepared)

    def heuristic(self, program: Program, target: Target, problem: Problem) -> TritonRowsConfig:
        few = problem.length is not None and problem.length <= _FEW_TOKENS
        prepared = not few or not tables_to_sort(program)
        for rows, num_warps, unroll in preferred_shapes(program, target):
            config = TritonRowsConfig(rows, num_warps, 1 if few else unroll, prepared)
            if self.feasible(program, target, config) is None:
                return config
        # What feasible refuses, with its reason.
        return config

    def feasible(self, program: Program, target: Target, config: TritonRowsConfig) -> str | None:
        if target.kind not in self.kinds:
            return f"{self.name} is for GPUs, not for {target}"
        return limit(
            _signature(program, config), target, config.rows, config.num_warps, config.unroll
        )

    def work(
        self, program: Program, target: Target, config: TritonRowsConfig, rows: int, length: int
    ) -> Work:
        tile = tile_work(program, target, config.rows, config.num_warps, config.unroll)
        launches = 1 + config.prepared * len(tables_to_sort(program))
        return tile.of(-(-rows // config.rows), length, launches)

    def lower(self, program: Program, target: Target, config: TritonRowsConfig) -> KernelSource:
        program = in_text_names(program)
        writer = Writer()
        signature = _signature(program, config)
        body = TritonBody(signature, writer)
        title = f"{self.name} {config}\n{program.text}"
        write_header(writer, title, config.rows, block_of(program), [body])
        sorts, scratch = write_sorts(body)
        write_function("scan", body, config.unroll)
        return KernelSource(
            "triton",
            writer.text,
            "scan",
            program,
            self.name,
            asdict(config),
            target,
            compiler_options(config.num_warps),
            (*sorts, Phase("scan", signature.arguments)),
            scratch,
        )


def _signature(program: Program, config: TritonRowsConfig) -> Signature:
    tables = tables_to_sort(program) if config.prepared else frozenset[str]()
    return Signature(program, sorted_maps=tables)
