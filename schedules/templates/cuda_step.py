"""cuda-step: a team of warps a row, for a token or a few: the step of a model that generates.

Nothing is prepared or fetched ahead; a scatter-add collects by comparing where the sources go. So
a step is one short kernel, most of whose time is its launch and two loads in series. With
``early`` it is launched while the kernel before it ends, and waits for that by itself.

It also runs rows so wide that a ring of their tokens does not fit shared memory: the loads of one
token's elements are many enough to keep the memory busy.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pdssm_compiler.ir.program import Program
from pdssm_compiler.schedules.emit.cuda_kernel import (
    MOST_ELEMENTS,
    MOST_WARPS,
    declare_row,
    kernel,
    locate_row,
    whole_team,
)
from pdssm_compiler.schedules.emit.lane_body import LANES, MOST_STATES
from pdssm_compiler.schedules.emit.names import in_text_names
from pdssm_compiler.schedules.emit.shared_memory import SharedMemory
from pdssm_compiler.schedules.emit.tvm_step import StepLanes
from pdssm_compiler.schedules.source import KernelSource, Writer
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Config, Problem, Template
from pdssm_compiler.schedules.work import Work, bytes_in, bytes_out, collects, values_of

# More tokens than this are worth fetching ahead.
MOST_TOKENS = 3
# Rows of a block whose teams need barriers: the hardware's, but for the block's own.
_MOST_TEAMS = 15


@dataclass(frozen=True)
class CudaStepConfig(Config):
    """How rows are run.

    Attributes:
        rows: rows of a block.
        team: warps that hold a row's elements together.
        early: whether blocks may begin before the kernel before this one has ended; they wait for
            it before they read anything. Not measured yet, so no heuristic takes it.
    """

    rows: int
    team: int = 1
    early: bool = False

    @property
    def warps(self) -> int:
        """Warps of a block."""
        return self.rows * self.team


class CudaStep(Template[CudaStepConfig]):
    """The template; see the module's text."""

    name = "cuda-step"
    backend = "tvm-cuda"
    kinds = ("cuda",)
    config_type = CudaStepConfig
    reads_logits = True

    def suits(self, program: Program, target: Target, problem: Problem) -> bool:
        if program.state_size > MOST_STATES:
            return True
        return problem.length is not None and problem.length <= MOST_TOKENS

    def space(self, program: Program, target: Target) -> Iterator[CudaStepConfig]:
        for team in sorted({1, whole_team(program)}):
            for early in (False, True) if _may_be_early(target) else (False,):
                yield from (CudaStepConfig(rows, team, early) for rows in (1, 2, 4, 8, 16))

    def heuristic(self, program: Program, target: Target, problem: Problem) -> CudaStepConfig:
        wide = program.state_size > MOST_STATES
        return CudaStepConfig(1, whole_team(program)) if wide else CudaStepConfig(4)

    def feasible(self, program: Program, target: Target, config: CudaStepConfig) -> str | None:
        if target.kind != "cuda":
            return f"{self.name} is for NVIDIA GPUs, not for {target}"
        if config.early and not _may_be_early(target):
            return f"{target} launches no kernel while another ends; GPUs do since sm_90"
        if config.rows < 1 or config.team < 1:
            return f"rows and team are at least 1, not {config.rows} and {config.team}"
        if config.warps > MOST_WARPS:
            return f"{config.warps} warps are more than a block has"
        if config.team > 1 and config.rows > _MOST_TEAMS:
            return f"{config.rows} teams are more than a block has barriers for"
        most = MOST_ELEMENTS * LANES * config.team
        if program.state_size > most:
            return f"a state size of {program.state_size} is more than {most}, what a team holds"
        shared = _shared(_body(program, Writer(), config)).bytes
        if shared > target.shared_memory:
            return f"{shared} bytes of shared memory are more than {target.shared_memory}"
        return None

    def work(
        self, program: Program, target: Target, config: CudaStepConfig, rows: int, length: int
    ) -> Work:
        body = _body(program, Writer(), config)
        return Work(
            moved=rows * length * (bytes_in(program) + bytes_out(program)),
            blocks=-(-rows // config.rows),
            threads=config.warps * LANES,
            shared_bytes=_shared(body).bytes,
            steps=length,
            collecting=length * collects(program),
            exchanges=length * (config.team > 1 or body.elements > 1),
            waits=length,
            issued=rows * length * config.team * body.elements * values_of(program),
        )

    def lower(self, program: Program, target: Target, config: CudaStepConfig) -> KernelSource:
        program = in_text_names(program)
        writer = Writer()
        body = _body(program, writer, config)
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
                "rows_together": config.rows,
                "early": config.early,
            },
            inverts=any(i.inverse_of is not None for i in program.inputs),
        )

    def _block(self, writer: Writer, body: StepLanes, config: CudaStepConfig) -> None:
        """The rows of a block, side by side."""
        if config.early:
            writer.line('T.evaluate(T.call_extern("void", "lane_wait_for_others"))')
        writer.line(f"lane: T.let = thread % {body.lanes}")
        body.alike("team", f"thread // {body.lanes}")
        if (shared := _shared(body)).bytes:
            shared.write(writer)
        body.arrays()
        if body.needs_worst():
            writer.line('worst = T.alloc_buffer((1,), "uint64", scope="local")')
        declare_row(writer)
        writer.line(f"row: T.let = block * {config.rows} + team")
        with writer.block("if row < rows:"):
            locate_row(writer)
            body.start_row()
            with writer.block("for u in T.serial(T.Cast('int32', L)):"):
                forward = body.program.direction == "forward"
                step = "T.Cast('int64', u)"
                writer.line(f"t: T.let = {step if forward else f'L - 1 - {step}'}")
                body.token()
            body.end_row()


def _may_be_early(target: Target) -> bool:
    """Whether kernels can be launched before those that they depend on have ended."""
    # sm_90 is of the major version 9, sm_120 of 12.
    return int("".join(filter(str.isdigit, target.arch))) >= 90


def _body(program: Program, writer: Writer, config: CudaStepConfig) -> StepLanes:
    """What the warps of a block write."""
    return StepLanes(program, writer, rows=config.rows, team=config.team)


def _shared(body: StepLanes) -> SharedMemory:
    """Shared memory of a block."""
    return SharedMemory((), tuple(body.exchange_buffers()), teams=body.teams)
