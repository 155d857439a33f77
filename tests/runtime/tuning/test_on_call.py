"""Calls tune nothing, unless they are asked to; then once, and never where they must not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pdssm_compiler import explain, pd_scan
from pdssm_compiler.runtime import plan, settings
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.errors import (
    ArgumentError,
    SettingError,
    TuningTimeoutError,
    TuningWarning,
)
from pdssm_compiler.runtime.tuning import on_call, resolve, tuner
from pdssm_compiler.runtime.tuning.alone import Wanted
from pdssm_compiler.runtime.tuning.log import append_rows
from pdssm_compiler.runtime.tuning.problem import TuningProblem
from pdssm_compiler.runtime.tuning.tuner import log_of, use_logs
from pdssm_compiler.schedules.templates.cpu_rows import CpuRowsConfig
from tests.runtime.tuning.made_rows import row

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(autouse=True)
def races(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[TuningProblem]]:
    """The problems that are tuned, each won by three heads."""
    run: list[TuningProblem] = []

    def tune_problems(
        problems: list[TuningProblem],
        effort: str,
        wanted: Wanted = lambda problem: True,
        keep_choices: bool = False,
    ) -> None:
        for problem in filter(wanted, problems):
            run.append(problem)
            batch, length, heads = problem.sizes
            found = row(
                CpuRowsConfig(3),
                program=problem.program.fingerprint,
                batch=batch,
                length=length,
                heads=heads,
            )
            append_rows(log_of(problem), [found])
            resolve.forget(log_of(problem))
        if not keep_choices:
            use_logs()

    monkeypatch.setattr(tuner, "tune_problems", tune_problems)
    monkeypatch.setattr(plan, "_plans", {})
    monkeypatch.setenv(settings.CACHE_DIR, str(tmp_path))
    resolve.forget()
    yield run
    resolve.forget()


def scanned(length: int, **options: Any) -> torch.Tensor:
    tensor = torch.full((2, length, 3, 6), 0.5, dtype=torch.complex64, **options)
    states, _ = pd_scan(tensor, tensor)
    return states


def test_calls_tune_nothing_by_themselves(races: list[TuningProblem]) -> None:
    scanned(100, requires_grad=True).abs().sum().backward()
    assert races == []
    assert explain()[0].reason == "heuristic"


@pytest.mark.parametrize("effort", ["quick", "full"])
def test_where_asked_a_bucket_is_tuned_once(
    races: list[TuningProblem], monkeypatch: pytest.MonkeyPatch, effort: str
) -> None:
    monkeypatch.setenv(settings.TUNE, effort)
    scanned(100)
    assert [(p.sizes, p.direction, p.device) for p in races] == [
        (Sizes(2, 100, 3), "forward", "cpu")
    ]
    assert explain()[0].reason == "tuned on this machine, for 6 rows of 100 tokens"
    for length in (64, 101, 127):
        scanned(length)
    assert len(races) == 1
    scanned(200)  # another one, though near
    assert [p.sizes.length for p in races] == [100, 200]
    scanned(100, requires_grad=True).abs().sum().backward()
    assert [p.direction for p in races] == ["forward", "forward", "backward"]


def test_what_was_chosen_stays_when_another_bucket_is_tuned(
    races: list[TuningProblem], monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned(100)
    monkeypatch.setenv(settings.TUNE, "quick")
    scanned(200)
    scanned(100)
    assert [p.sizes.length for p in races] == [200]
    assert [e.reason for e in explain()] == [
        "heuristic",
        "tuned on this machine, for 6 rows of 200 tokens",
    ]


def test_a_log_that_cannot_be_written_is_told_where_it_does_not_speak(
    races: list[TuningProblem], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise ArgumentError("the tuning logs cannot be written")

    monkeypatch.setenv(settings.TUNE, "quick")
    scanned(100)
    monkeypatch.setattr(tuner, "tune_problems", refused)
    monkeypatch.setattr(plan, "_plans", {})
    scanned(100)
    # The call itself goes on.
    told = "PDSSM_TUNE=quick tunes nothing: the tuning logs cannot be written; calls of"
    with pytest.warns(TuningWarning, match=told):
        scanned(200)


def test_a_call_that_tunes_says_so(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(settings.TUNE, "quick")
    scanned(100)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("pdssm-compiler: tuning ")
    assert "T=100" in line
    assert line.endswith("(PDSSM_TUNE=quick); this takes about a minute")
    scanned(100)
    assert capfd.readouterr().err == ""


def test_who_does_not_go_on_is_told_and_not_waited_for(
    races: list[TuningProblem], monkeypatch: pytest.MonkeyPatch
) -> None:
    def held(*_: Any, **__: Any) -> None:
        raise TuningTimeoutError("process 7 holds it")

    monkeypatch.setenv(settings.TUNE, "quick")
    monkeypatch.setattr(tuner, "tune_problems", held)
    with pytest.warns(TuningWarning, match="process 7 holds it; calls of .* take what the logs"):
        scanned(100)
    assert explain()[0].reason == "heuristic"
    scanned(101)  # is not warned of once more


def test_an_explicit_config_is_not_tuned(
    races: list[TuningProblem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(settings.TUNE, "quick")
    tensor = torch.ones(1, 3, 2, 5, dtype=torch.complex64)
    plan.run(_program_text(), [tensor, tensor], "torch-tokens")
    assert races == []


def _program_text() -> str:
    from pdssm_compiler.ir.programs import PdScan
    from pdssm_compiler.ir.programs import pd_scan as program

    return program(PdScan(5, None, map_source="none")).text


def test_shapes_alone_tune_nothing(
    races: list[TuningProblem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(settings.TUNE, "quick")
    with FakeTensorMode():
        assert scanned(100).shape == (2, 100, 3, 6)
    assert scanned(100, device="meta").shape == (2, 100, 3, 6)
    traced = torch.export.export(_Scan(), (torch.ones(2, 9, 3, 6, dtype=torch.complex64),))
    assert "pdssm_compiler.scan" in str(traced.graph)
    assert races == []
    traced.module()(torch.ones(2, 9, 3, 6, dtype=torch.complex64))
    assert len(races) == 1  # running what was traced does


class _Scan(torch.nn.Module):
    def forward(self, tensor: torch.Tensor) -> torch.Tensor:
        return pd_scan(tensor, tensor)[0]


def test_a_captured_graph_tunes_nothing(
    races: list[TuningProblem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(settings.TUNE, "quick")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    program = plan.program_of(_program_text())
    on_call.tune_if_asked(program, torch.device("cuda", 0), Sizes(1, 9, 1))
    assert races == []


def test_no_tokens_tune_nothing(
    races: list[TuningProblem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(settings.TUNE, "quick")
    scanned(0)
    assert races == []


def test_another_word_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.TUNE, "yes")
    with pytest.raises(SettingError, match="PDSSM_TUNE is none, quick or full, not 'yes'"):
        scanned(100)


def test_what_was_tuned_is_taken_by_plans_that_are_there(races: list[TuningProblem]) -> None:
    scanned(100)
    (made,) = plan.plans()
    problem = TuningProblem(made.program.text, "", "forward", Sizes(2, 100, 3))
    tuner.tune_problems([problem], "quick")
    scanned(100)
    assert [e.reason.partition(",")[0] for e in explain()] == [
        "heuristic",
        "tuned on this machine",
    ]
