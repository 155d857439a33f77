"""Kernels compiled before anything is timed, side by side in processes of their own.

A compiler takes seconds a kernel and one core, and a GPU waits meanwhile. The processes leave what
they make in the kernel cache, where the timed calls find it. One that fails, or takes its process
with it, is told and ends nothing else.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from pdssm_compiler.ir.passes import specialise
from pdssm_compiler.ir.passes.specialise import inverse_program
from pdssm_compiler.ir.types import Table
from pdssm_compiler.runtime.cache import default_cache
from pdssm_compiler.runtime.compile_service import (
    choose,
    config_text,
    lower,
    obtain,
    read_config,
)
from pdssm_compiler.runtime.key import key_of
from pdssm_compiler.runtime.plan import program_of
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Problem


@dataclass(frozen=True)
class Job:
    """A kernel to compile.

    Attributes:
        text: the program's text form.
        config: the schedule, as text.
        target: the device.
        alignment: bytes that every pointer is a multiple of, or 0.
    """

    text: str
    config: str
    target: Target
    alignment: int


@dataclass(frozen=True)
class Compiled:
    """What became of a job: seconds, and the error if it failed."""

    seconds: float
    error: str | None = None


def helper_jobs(text: str, target: Target, heads: int) -> Iterator[Job]:
    """The small programs that a program's plan runs before it: those that invert its tables.
    (Promises hold by construction where this is for, and are not verified.)
    """
    program = program_of(text)
    for input_ in specialise(program).inputs:
        if input_.inverse_of is None:
            continue
        helper = inverse_program(program.state_size, input_)
        # A table is read as a sequence of its maps.
        assert isinstance(input_.type, Table)
        problem = Problem.bucket(heads, input_.type.size)
        schedule = choose(specialise(helper), target, None, problem)
        yield Job(helper.text, config_text(schedule.config), target, 0)


def compile_job(job: Job) -> Compiled:
    """Put a kernel into the cache, unless it is there."""
    start = time.perf_counter()
    error = None
    try:
        source, _ = lower(program_of(job.text), job.target, read_config(job.config))
        obtain(source, key_of(source, job.alignment), job.alignment, default_cache())
    except Exception as failure:
        # Whatever a compiler raises is what became of this kernel.
        error = f"{type(failure).__name__}: {failure}"
    return Compiled(time.perf_counter() - start, error)


def compile_all(
    jobs: Iterable[Job], workers: int, advance: Callable[[], None]
) -> dict[Job, Compiled]:
    """Compile every job; gives what became of each.

    Args:
        jobs: what to compile; one that comes twice is compiled once.
        workers: processes at a time; 0 compiles in this one.
        advance: called after each.
    """
    waiting = list(dict.fromkeys(jobs))
    done: dict[Job, Compiled] = {}
    if default_cache() is None:
        # Nothing could be handed on.
        return done
    if workers == 0:
        for job in waiting:
            done[job] = compile_job(job)
            advance()
        return done
    _in_processes(waiting, min(workers, len(waiting) or 1), done, advance)
    for job in waiting:
        # A process that dies ends its pool: what was left is given one pool each.
        if job not in done:
            _in_processes([job], 1, done, advance)
        if job not in done:
            done[job] = Compiled(0.0, "the compiler's process died")
            advance()
    return done


def _in_processes(
    jobs: list[Job], workers: int, done: dict[Job, Compiled], advance: Callable[[], None]
) -> None:
    """Compile in a pool, until all is done or a process dies. The processes are new ones: a forked
    child cannot use CUDA or TVM's threads.
    """
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            futures: dict[Future[Compiled], Job] = {pool.submit(compile_job, j): j for j in jobs}
            for future in as_completed(futures):
                done[futures[future]] = future.result()
                advance()
        except BrokenProcessPool:
            return
