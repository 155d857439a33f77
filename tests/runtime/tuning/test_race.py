"""Races: bad candidates of every kind are rows, the tuner goes on, and none wins."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.compile_service import choose
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.tuning import provenance, race, resolve, tuner
from pdssm_compiler.runtime.tuning.effort import Effort
from pdssm_compiler.runtime.tuning.isolated import HungError, Isolated, RaisedError
from pdssm_compiler.runtime.tuning.log import append_rows, read_log
from pdssm_compiler.runtime.tuning.measure import Measured, prepare, roof_of
from pdssm_compiler.runtime.tuning.outcomes import row_of
from pdssm_compiler.runtime.tuning.precompile import Compilers, compile_job
from pdssm_compiler.runtime.tuning.problem import TuningProblem
from pdssm_compiler.runtime.tuning.race import Progress, Race
from pdssm_compiler.runtime.tuning.rows import Row
from pdssm_compiler.runtime.tuning.space import space_of
from pdssm_compiler.runtime.tuning.tuner import Limits, log_of, tune_problems
from pdssm_compiler.schedules.registry import TEMPLATES
from pdssm_compiler.schedules.templates.cpu_rows import CpuRows, CpuRowsConfig
from pdssm_compiler.schedules.templates.torch_chunks import TorchChunks
from tests.runtime.tuning.planted import STATUS, Does, PlantedProblem, plant

# Everything, whatever its time.
WHOLE = Effort(100, 5, 0.05, 1e9, 9)
PROGRAM = pd_scan(PdScan(6, 3))
SIZES = Sizes(2, 50, 3)


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Few configs, in a cache of their own."""
    monkeypatch.setenv(settings.CACHE_DIR, str(tmp_path))
    monkeypatch.delitem(TEMPLATES, "torch-chunks")
    monkeypatch.delitem(TEMPLATES, "torch-tokens")
    few = [CpuRowsConfig(heads) for heads in (1, 2)]
    monkeypatch.setattr(CpuRows, "space", lambda *_: iter(few))
    resolve.forget()
    yield
    resolve.forget()


@pytest.fixture
def _planted(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch.setitem)


@pytest.mark.usefixtures("_planted")
def test_bad_candidates_of_every_kind_are_rows_and_none_wins() -> None:
    problem = PlantedProblem(PROGRAM.text, "planted", "forward", SIZES)
    # Good kernels are there, so that time runs out for the bad ones alone.
    entries = space_of(problem)
    for entry in (*entries.first, *entries.others):
        if entry.template.name == "cpu-rows":
            assert compile_job(problem.job(entry.text)).error is None
    seen: list[Progress] = []
    limits = Limits(compile_seconds=8, measure_seconds=8)
    (result,) = tune_problems([problem], WHOLE, workers=2, limits=limits, told=seen.append)
    assert result.complete
    rows, wrong = read_log(log_of(problem))
    assert wrong == []
    planted = {Does(r.config["does"]): r for r in result.rows if r.template == "planted"}
    assert {does: r.status for does, r in planted.items()} == STATUS
    told = {does: r.error or "" for does, r in planted.items()}
    assert "states[" in told[Does.wrong_values]
    assert told[Does.writes_beside] == "wrote beside states"
    assert "was ended by signal 6" in told[Does.aborts]
    assert told[Does.hangs] == "no answer after 8 s"
    assert "out of memory" in told[Does.takes_too_much]
    assert "illegal memory access" in told[Does.breaks_the_device]
    assert "no kernel can be made of this" in told[Does.does_not_compile]
    assert told[Does.compiles_for_ever] == "no answer after 8 s"
    assert "exited with status 7" in told[Does.ends_its_compiler]
    # Whatever came before them, the right ones were measured.
    right = [r for r in result.rows if r.status == "ok"]
    assert {r.template for r in right} == {"cpu-rows", "planted"}
    assert all(r.floor_ms is not None for r in right)
    assert [r.error for r in right] == [None] * len(right)
    assert len([r for r in right if r.template == "cpu-rows"]) == 3
    assert result.winner is not None
    assert result.winner.template == "cpu-rows"
    # The heuristic's was timed twice.
    assert result.heuristic is not None
    assert result.heuristic.again_ms is not None
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert seen[-1].heuristic_ms is not None
    # What won is what calls take.
    taken = choose(problem.program, problem.target, None, problem.bucket)
    assert taken.reason.startswith("tuned on this machine")
    assert taken.template.name == "cpu-rows"
    assert len(rows) >= len(result.rows)


def small(**changes: Any) -> TuningProblem:
    told = {"text": PROGRAM.text, "label": "small", "direction": "forward", "sizes": SIZES}
    return TuningProblem(**told | changes)


def test_rows_of_another_number_of_threads_are_of_another_race() -> None:
    problem = small()
    log = log_of(problem)
    (entry, *_) = space_of(problem).first
    foreign = row_of(problem, entry, "ok", problem.threads + 1, {}, None, ms=1e-9)
    append_rows(log, [foreign])
    (result,) = tune_problems([problem], "none")
    assert (result.rows, result.winner) == ([], None)
    assert read_log(log) == ([foreign], [])


def test_what_is_begun_in_time_has_the_heuristics_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever kernel is compiled first, as on a GPU."""
    lates = iter([False])
    monkeypatch.setattr(Race, "_is_late", lambda self: next(lates, True))
    monkeypatch.setattr(Race, "_compiled_ones", lambda self, search, batch: reversed(batch))
    (result,) = tune_problems([small()], WHOLE)
    assert [(row.heuristic, row.status) for row in result.rows] == [(True, "ok")]
    assert (result.complete, result.untried, result.measured) == (False, False, 1)


def test_a_race_goes_on_where_the_last_one_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without a cache nothing can be handed on, and what measures compiles.
    monkeypatch.setenv(settings.CACHE_ENABLED, "0")
    problem = small()

    def interrupted(progress: Progress) -> None:
        if progress.done == 1 and not progress.what.startswith("compiling"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune_problems([problem], WHOLE, told=interrupted)
    kept, wrong = read_log(log_of(problem))
    assert (len(kept), wrong) == (1, [])
    (result,) = tune_problems([problem], WHOLE)
    assert result.measured == 2
    assert len(result.rows) == 3
    seen: list[Progress] = []
    (again,) = tune_problems([problem], WHOLE, told=seen.append)
    assert (again.measured, again.complete) == (0, True)
    assert again.rows == result.rows
    assert seen == []
    newer = provenance.kernel_versions() | {"torch": "99"}
    monkeypatch.setattr(race, "kernel_versions", lambda: newer)
    with pytest.raises(KeyboardInterrupt):  # it begins anew
        tune_problems([problem], WHOLE, told=interrupted)
    assert read_log(log_of(problem))[0][-1].versions["torch"] == "99"


def test_a_budget_ends_a_race() -> None:
    (result,) = tune_problems([small()], WHOLE, budget=0.0)
    assert (result.complete, result.measured, result.rows) == (False, 0, [])


class Clocked(Isolated):
    """Measures in no time what the heuristic says, and nothing else before it is given up."""

    def __init__(self, now: list[float], takes: float) -> None:
        super().__init__()
        self.now, self.takes = now, takes

    def ask(self, function: Any, argument: Any, seconds: float) -> Any:
        if function is roof_of:
            raise RaisedError("there is no time")
        others = '"max_heads": 1,' in argument.config or '"max_heads": 2,' in argument.config
        took = self.takes if others else 1.0
        self.now[0] += min(took, seconds)
        if took > seconds:
            raise HungError(f"no answer after {seconds:.0f} s")
        return Measured(None, took, 0.0)


@pytest.mark.parametrize(("takes", "rows", "ends"), [(1e9, 1, 31), (4.0, 3, 30)])
def test_a_budget_is_not_overrun(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, takes: float, rows: int, ends: float
) -> None:
    """By a candidate that hangs, nor by timing the fastest again; and what was cut short by it is
    no row.
    """
    monkeypatch.setenv(settings.CACHE_ENABLED, "0")
    now = [0.0]
    monkeypatch.setattr(race, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with Compilers(1) as compilers, Clocked(now, takes) as worker:
        found = Race(small(), WHOLE, tmp_path / "log.jsonl", compilers, worker, 30.0).run()
    assert len(found.rows) == rows
    assert {row.status for row in found.rows} == {"ok"}
    assert found.heuristic is not None
    assert found.heuristic.again_ms is not None
    assert now[0] <= ends


def test_an_effort_may_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were a budget, and each program has it."""
    monkeypatch.setenv(settings.CACHE_ENABLED, "0")
    monkeypatch.setattr(CpuRows, "space", lambda *_: map(CpuRowsConfig, (1, 2, *range(9, 60))))
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(race, "time", clock)
    monkeypatch.setattr(tuner, "time", clock)
    monkeypatch.setattr(tuner, "Isolated", lambda: Clocked(now, 1.0))
    level = replace(WHOLE, limit=20.0)
    problems = [small(), small(sizes=Sizes(2, 500, 3))]
    for budget, ends in ((None, 40), (10.0, 10)):
        monkeypatch.setenv(settings.CACHE_DIR, f"{settings.cache_dir()}{ends}")
        now[0] = 0.0
        found = tune_problems(problems, level, budget=budget, workers=1)
        assert [result.complete for result in found] == [False, False]
        assert ends - 8 <= now[0] <= ends + 1
    assert tuner._share(None, 3, WHOLE.limit) is None


def test_time_is_left_for_the_last_timings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(settings.CACHE_ENABLED, "0")
    now = [0.0]
    monkeypatch.setattr(race, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(CpuRows, "space", lambda *_: map(CpuRowsConfig, (1, 2, *range(9, 60))))
    with Compilers(1) as compilers, Clocked(now, 1.0) as worker:
        found = Race(small(), WHOLE, tmp_path / "log.jsonl", compilers, worker, 30.0).run()
    assert not found.complete
    # Eight seconds are left, and four timings take four of them here.
    assert 22 <= found.measured <= 23
    assert now[0] <= 30


class AsOfAGpu(Isolated):
    """Notes what it is asked while kernels are compiled, and fails to make the reference."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def ask(self, function: Any, argument: Any, seconds: float) -> Any:
        if function is prepare:
            self.asked.append("reference")
            raise RaisedError("OutOfMemoryError")
        if function is not roof_of:
            self.asked.append(argument.config.partition(" ")[0])
        return Measured(None, 3.0 if "torch" in getattr(argument, "config", "") else 1.0, 0.0)


def test_a_gpu_waits_neither_for_the_reference_nor_for_plain_pytorch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The reference is made while kernels are compiled; what needs no compiler comes after them,
    and what cannot win is not timed again.
    """
    monkeypatch.setattr(Race, "_on_cpu", False)
    monkeypatch.setitem(TEMPLATES, "torch-chunks", TorchChunks())
    monkeypatch.setattr(TorchChunks, "space", lambda *_: iter(()))
    seen: list[str] = []
    with Compilers(1) as compilers, AsOfAGpu() as worker:
        race_ = Race(small(), WHOLE, tmp_path / "log.jsonl", compilers, worker)
        race_.told = lambda progress: seen.append(progress.what)
        found = race_.run()
    assert worker.asked[:3] == ["reference", "cpu-rows", "torch-chunks"]
    assert worker.asked.count("reference") == 1
    assert worker.asked.count("torch-chunks") == 1
    assert seen.index("compiling 2") < seen.index("computing the reference")
    assert seen.index("computing the reference") < seen.index("compiling 2, 1 done")
    assert {row.status for row in found.rows} == {"ok"}
    assert len(found.rows) == 4


def test_no_effort_measures_nothing() -> None:
    (result,) = tune_problems([small()], "none")
    assert (result.complete, result.measured, result.rows) == (True, 0, [])
    assert not log_of(small()).exists()


def test_an_effort_that_is_not_there() -> None:
    with pytest.raises(ArgumentError, match="effort must be one of 'none', 'quick', 'full', got"):
        tune_problems([small()], "most")


def test_a_log_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(settings.CACHE_DIR, str(tmp_path / "file"))
    with pytest.raises(ArgumentError, match=r"cannot be written: .*; set PDSSM_CACHE_DIR to"):
        tune_problems([small()], WHOLE)


def test_a_roof_that_cannot_be_measured_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A caller's tensors may leave no memory for a large copy."""
    monkeypatch.setenv(settings.CACHE_ENABLED, "0")
    asked: list[object] = []

    class Full(Isolated):
        def ask(self, function: Any, argument: Any, seconds: float) -> Any:
            asked.append(function)
            if function is roof_of:
                raise RaisedError("OutOfMemoryError")
            return Measured(None, 1.0, 0.0, floor_bytes=8)

    with Compilers(1) as compilers, Full() as worker:
        result = Race(small(), WHOLE, tmp_path / "log.jsonl", compilers, worker).run()
    assert [(r.status, r.floor_ms) for r in result.rows] == [("ok", None)] * 3
    assert asked.count(roof_of) == 1


def test_a_template_that_cannot_run_a_program_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.CACHE_ENABLED, "0")
    monkeypatch.setitem(TEMPLATES, "torch-chunks", TorchChunks())
    monkeypatch.setattr(TorchChunks, "feasible", lambda *_: "it has no summary")
    (result,) = tune_problems([small()], Effort(1, 3, 0.05, 1.0, 1))
    refused = [row for row in result.rows if row.status == "infeasible"]
    assert [(r.template, r.error) for r in refused] == [("torch-chunks", "it has no summary")]
    (again,) = tune_problems([small()], Effort(1, 3, 0.05, 1.0, 1))
    kept: list[Row] = read_log(log_of(small()))[0]
    assert len([row for row in kept if row.status == "infeasible"]) == 1
    assert again.rows == result.rows
