"""Kernels compiled before anything is timed, side by side in processes of their own.

A compiler takes seconds a kernel and one core, and a GPU waits meanwhile. The processes leave what
they make in the kernel cache, where the timed calls find it. One that fails, or takes its process
with it, is told and ends nothing else.
"""

import os
import queue
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
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
from pdssm_compiler.runtime.tuning.isolated import DiedError, HungError, Isolated, RaisedError
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Problem

# Triton has taken minutes for wide states; beyond this it is taken to hang.
COMPILE_SECONDS = 600.0


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
    """What became of a job: seconds, the error if it failed, and whether it took too long."""

    seconds: float
    error: str | None = None
    hung: bool = False


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    jobs: Iterable[Job],
    workers: int,
    advance: Callable[[], None],
    seconds: float = COMPILE_SECONDS,
) -> dict[Job, Compiled]:
    """Compile every job; gives what became of each.

    Args:
        jobs: what to compile; one that comes twice is compiled once.
        workers: processes at a time; 0 compiles in this one.
        advance: called after each.
        seconds: after which a compiler is taken to hang.
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
    with Compilers(min(workers, len(waiting) or 1), seconds) as compilers:
        for job, made in compilers.compile(waiting):
            done[job] = made
            advance()
    return done


class Compilers:
    """Processes that compile, side by side; kept until the end, but for those that fail.

    Args:
        workers: how many.
        seconds: after which a compiler is taken to hang.
    """

    def __init__(self, workers: int, seconds: float = COMPILE_SECONDS) -> None:
        self._seconds = seconds
        # The one that was used last first: it has imported what a compiler needs.
        self._idle: queue.LifoQueue[Isolated] = queue.LifoQueue()
        self._all = [Isolated() for _ in range(workers)]
        for process in self._all:
            self._idle.put(process)
        # A thread waits for each process.
        self._threads = ThreadPoolExecutor(workers)
        # What each is at.
        self._at: dict[Job, Isolated] = {}

    def compile(
        self, jobs: Iterable[Job], deadline: float | None = None, needed: Collection[Job] = ()
    ) -> Iterator[tuple[Job, Compiled]]:
        """Begin jobs; gives what becomes of them, as they end. Whoever stops asking ends what is
        being compiled.

        Args:
            jobs: what to compile.
            deadline: by :func:`time.monotonic`, after which nothing is waited for but what is
                needed; None for no end.
            needed: jobs that are waited for in any case.
        """
        left = {self._threads.submit(self._one, job): job for job in jobs}
        return self._as_they_end(left, deadline, needed)

    def _as_they_end(
        self, left: dict[Future[Compiled], Job], deadline: float | None, needed: Collection[Job]
    ) -> Iterator[tuple[Job, Compiled]]:
        try:
            while left:
                seconds = None if deadline is None else deadline - time.monotonic()
                if seconds is not None and seconds <= 0:
                    wanted = [future for future, job in left.items() if job in needed]
                    seconds = None
                else:
                    wanted = list(left)
                if not wanted:
                    return
                for future in wait(wanted, seconds, FIRST_COMPLETED).done:
                    yield left.pop(future), future.result()
        finally:
            running = [job for future, job in left.items() if not future.cancel()]
            for process in filter(None, map(self._at.get, running)):
                process.end()

    def _one(self, job: Job) -> Compiled:
        process = self._at[job] = self._idle.get()
        try:
            return process.ask(compile_job, job, self._seconds)
        except HungError as error:
            return Compiled(self._seconds, str(error), hung=True)
        except (DiedError, RaisedError) as error:
            return Compiled(0.0, str(error))
        finally:
            self._at.pop(job, None)
            self._idle.put(process)

    def __enter__(self) -> "Compilers":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._all:
            process.close()
        self._threads.shutdown(cancel_futures=True)
