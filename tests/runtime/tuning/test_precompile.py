"""Compiling in processes: what succeeds, what fails, what takes its process with it."""

import os
import threading
import time
from typing import Any

import pytest

from benchmarks.cases import GPU
from benchmarks.command import narrowed
from benchmarks.measure import jobs_of
from pdssm_compiler.runtime.cache import default_cache
from pdssm_compiler.runtime.compile_service import lower, read_config
from pdssm_compiler.runtime.key import key_of
from pdssm_compiler.runtime.plan import program_of
from pdssm_compiler.runtime.tuning.precompile import (
    Compiled,
    Compilers,
    Job,
    compile_all,
    compile_job,
)
from pdssm_compiler.schedules.target import cpu_target, named_target
from tests.benchmarks.conftest import AGENDA


class Deadly(Job):
    """A job whose process ends as it reads it."""

    def __reduce__(self) -> Any:
        return os._exit, (3,)


def jobs(section: str) -> list[Job]:
    agenda = narrowed(AGENDA, sections=section)
    return list(dict.fromkeys(jobs_of(agenda.cases(), cpu_target(), 0)))


def is_cached(job: Job) -> bool:
    source, _ = lower(program_of(job.text), job.target, read_config(job.config))
    cache = default_cache()
    assert cache is not None
    return cache.load(key_of(source, job.alignment)) is not None


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("PDSSM_CACHE_DIR", str(tmp_path))


def test_a_process_that_dies_takes_no_other_kernel_with_it() -> None:
    good = jobs("step")[:1]
    deadly = Deadly("scan", "", cpu_target(), 0)
    steps: list[int] = []
    done = compile_all([*good, deadly, *good], 2, lambda: steps.append(1))
    assert set(done) == {*good, deadly}
    assert done[deadly].error == "the process exited with status 3"
    assert all(done[job].error is None for job in good)
    assert all(is_cached(job) for job in good)
    assert len(steps) == len(done)


def test_what_a_compiler_raises_is_told() -> None:
    (first, *_) = jobs("step")
    unknown = Job(first.text, 'cpu-rows {"nonsense": 1}', first.target, 0)
    error = compile_job(unknown).error
    assert error is not None
    assert error.startswith("NoTemplateError: not a config of cpu-rows")


def test_where_nothing_is_kept_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDSSM_CACHE", "0")
    assert compile_all(jobs("step"), 0, lambda: None) == {}


def test_helpers_over_maps_are_compiled_too() -> None:
    of_maps = [job for job in jobs("step") if "diagonal" not in job.text]
    assert len(of_maps) == 1
    assert compile_all(of_maps, 0, lambda: None)[of_maps[0]].error is None
    assert is_cached(of_maps[0])


def test_the_kernels_of_a_gpu_that_is_absent() -> None:
    """What a run on an H100 compiles can be told without one."""
    target = named_target("sm_90")
    every = list(jobs_of(GPU.cases(), target, 16))
    assert {job.config.partition(" ")[0] for job in every} == {
        "cuda-step", "cuda-rows", "cuda-chunks", "triton-rows", "triton-lookback",
        "triton-chunks",
    }  # fmt: skip
    few = set(jobs_of(narrowed(GPU, quick=True).cases(), target, 16))
    assert few < set(every)


class Endless(Job):
    """A job whose process reads it for ever."""

    def __reduce__(self) -> Any:
        return time.sleep, (1000,)


def test_leaving_ends_what_is_being_compiled() -> None:
    """As an interruption does."""
    compilers = Compilers(2)
    job = Endless("scan", "", cpu_target(), 0)
    made: list[Compiled] = []

    def compile_it() -> None:
        made.extend(found for _, found in compilers.compile([job]))

    waiting = threading.Thread(target=compile_it)
    waiting.start()
    time.sleep(3)
    with compilers:
        pass
    waiting.join(30)
    assert not waiting.is_alive()
    assert [found.error is None for found in made] == [False]
    assert all(process.pid is None for process in compilers._all)


def test_a_compiler_that_hangs_is_ended() -> None:
    done = compile_all([Endless("scan", "", cpu_target(), 0)], 1, lambda: None, seconds=1.0)
    (found,) = done.values()
    assert found.hung
    assert found.error == "no answer after 1 s"


def test_a_deadline_ends_what_is_being_compiled_but_for_what_is_needed() -> None:
    (needed, *_) = jobs("step")
    endless = Endless("scan", "", cpu_target(), 0)
    with Compilers(2) as compilers:
        found = list(compilers.compile([endless, needed], time.monotonic(), [needed]))
        assert [(job, made.error) for job, made in found] == [(needed, None)]
        # Its process is free for the next one.
        again = list(compilers.compile([needed, endless], time.monotonic() + 0.3))
        assert {job for job, _ in again} <= {needed}
        (only,) = compilers.compile([needed])
        assert only[1].error is None
