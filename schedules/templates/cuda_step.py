"""cuda-step: a warp a row, for a token or a few: the step of a model that generates.

Nothing is prepared or fetched ahead; a scatter-add collects by comparing where the sources go, in
registers. So a step is one short kernel, most of whose time is its launch and two loads in series.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pdssm_compiler.ir.program import Program
from pdssm_compiler.schedules.emit.cuda_kernel import declare_row, kernel, locate_row
from pdssm_compiler.schedules.emit.tvm_lanes import LANES, SharedMemory
from pdssm_compiler.schedules.emit.tvm_step import StepLanes
from pdssm_compiler.schedules.source import KernelSource, Writer
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Config, Problem, Template

# More tokens than this are worth fetching ahead.
_MOST_TOKENS = 3
# Elements of a lane: more do not fit its registers.
_MOST_ELEMENTS = 8
_MOST_WARPS = 32


@dataclass(frozen=True)
class CudaStepConfig(Config):
    """How rows are run.

    Attributes:
        warps: rows of a block.
    """

    warps: int


class CudaStep(Template[CudaStepConfig]):
    """The template; see the module's text."""

    name = "cuda-step"
    backend = "tvm-cuda"
    kinds = ("cuda",)
    config_type = CudaStepConfig

    def suits(self, program: Program, target: Target, problem: Problem) -> bool:
        return problem.length is not None and problem.length <= _MOST_TOKENS

    def space(self, program: Program, target: Target) -> Iterator[CudaStepConfig]:
        yield from (CudaStepConfig(warps) for warps in (1, 2, 4, 8, 16))

    def heuristic(self, program: Program, target: Target, problem: Problem) -> CudaStepConfig:
        return CudaStepConfig(4)

    def feasible(self, program: Program, target: Target, config: CudaStepConfig) -> str | None:
        if target.kind != "cuda":
            return f"{self.name} is for NVIDIA GPUs, not for {target}"
        if not 1 <= config.warps <= _MOST_WARPS:
            return f"warps is from 1 to {_MOST_WARPS}, not {config.warps}"
        if program.state_size > _MOST_ELEMENTS * LANES:
            return f"a state size of {program.state_size} is more than one warp holds"
        shared = _shared(StepLanes(program, Writer(), warps=config.warps)).bytes
        if shared > target.shared_memory:
            return f"{shared} bytes of shared memory are more than {target.shared_memory}"
        return None

    def lower(self, program: Program, target: Target, config: CudaStepConfig) -> KernelSource:
        writer = Writer()
        body = StepLanes(program, writer, warps=config.warps)
        threads, shared = config.warps * LANES, _shared(body)
        body.team_bytes = shared.team_bytes
        writer.comment(f"{self.name} {config}\n{program.text}")
        sizes, grid = ("rows", "aligned", "blocks"), ("block", "blocks")
        with kernel(writer, body, sizes, grid, threads):
            self._block(writer, body, config)
        return KernelSource(
            "tvm-cuda",
            writer.text,
            "scan",
            program,
            self.name,
            asdict(config),
            target,
            {
                "shared_bytes": shared.bytes,
                "threads": threads,
                "rows_of_a_block": config.warps,
            },
        )

    def _block(self, writer: Writer, body: StepLanes, config: CudaStepConfig) -> None:
        """The rows of a block, side by side."""
        writer.line(f"lane: T.let = thread % {LANES}")
        writer.line(f"team: T.let = thread // {LANES}")
        if (shared := _shared(body)).bytes:
            shared.write(writer)
        body.arrays()
        if body.needs_worst():
            writer.line('worst = T.alloc_buffer((1,), "uint64", scope="local")')
        declare_row(writer)
        writer.line(f"row: T.let = block * {config.warps} + team")
        with writer.block("if row < rows:"):
            locate_row(writer)
            body.start_row()
            with writer.block("for u in T.serial(T.Cast('int32', L)):"):
                forward = body.program.direction == "forward"
                step = "T.Cast('int64', u)"
                writer.line(f"t: T.let = {step if forward else f'L - 1 - {step}'}")
                body.token()
            body.end_row()


def _shared(body: StepLanes) -> SharedMemory:
    """Shared memory of a block."""
    return SharedMemory((), tuple(body.exchange_buffers()), teams=body.teams)
