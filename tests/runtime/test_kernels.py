"""Which kernel a call of given sizes runs, and when one is compiled."""

from typing import Any

import pytest

from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime import kernels
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.compile_service import BuiltKernel, Schedule
from pdssm_compiler.runtime.errors import NoTemplateError
from pdssm_compiler.runtime.kernels import Kernels
from pdssm_compiler.schedules.target import cpu_target, named_target
from pdssm_compiler.schedules.templates.base import Problem
from pdssm_compiler.schedules.templates.triton_rows import TritonRowsConfig
from tests.runtime.kernels import KEY

H100 = named_target("sm_90")
PROGRAM = pd_scan(PdScan(32, 4))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Templates of the kernels made, instead of making them."""
    made: list[str] = []

    def build(program: Any, target: Any, schedule: Schedule, alignment: int) -> BuiltKernel:
        made.append(schedule.template.name)
        return BuiltKernel(None, None, schedule, KEY, "compiled", 0.0)  # type: ignore[arg-type]

    monkeypatch.setattr(kernels, "build_schedule", build)
    return made


def test_few_long_rows_and_many_short_ones(compiled: list[str]) -> None:
    found = Kernels(PROGRAM, H100, 16, None)
    assert found.built == ()
    few = found.of(Sizes(1, 32768, 32))
    many = found.of(Sizes(64, 256, 32))
    assert compiled == ["cuda-chunks", "cuda-rows"]
    assert found.of(Sizes(1, 32768, 32)) is few
    assert found.built == (few, many)


def test_sizes_seldom_compile(compiled: list[str]) -> None:
    found = Kernels(PROGRAM, H100, 16, None)
    for length in range(0, 5000, 7):
        for rows in (1, 3, 40, 300, 511, 512, 2000):
            found.of(Sizes(rows, length, 1))
            found.of(Sizes(1, length, rows))
    # cuda-rows with all of a processor's memory for a row, with half of it, and with short tiles
    # where rows crowd the processors, shorter ones if the rows are short; cuda-chunks where blocks
    # share a row, and where each has its own.
    assert compiled == ["cuda-step", *["cuda-rows"] * 4, *["cuda-chunks"] * 2]


def test_sizes_share_a_kernel_only_within_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Kernels(PROGRAM, H100, 16, None)
    monkeypatch.setattr(found, "_find", lambda problem: problem)
    for rows in range(70):
        for length in (0, 1, 2, 3, 4, 100, 127, 128):
            assert found.of(Sizes(rows, length, 1)) == Problem.bucket(rows, length)


def test_an_explicit_config_is_for_all_sizes(compiled: list[str]) -> None:
    found = Kernels(PROGRAM, H100, 16, TritonRowsConfig(1, 1, 1))
    assert found.of(Sizes(1, 1, 1)) is found.of(Sizes(1, 10**6, 1))
    assert compiled == ["triton-rows"]


def test_a_cpu_has_one_kernel(compiled: list[str]) -> None:
    found = Kernels(PROGRAM, cpu_target(), 0, None)
    assert found.of(Sizes(1, 1, 1)) is found.of(Sizes(100, 10**6, 8))
    assert compiled == ["cpu-rows"]


def test_what_no_schedule_can_run_is_refused_before_a_call(compiled: list[str]) -> None:
    with pytest.raises(NoTemplateError):
        Kernels(pd_scan(PdScan(2**18, 4)), H100, 16, None)
    assert compiled == []
