"""Choosing for a GPU that is not here: what is chosen, what it rests on, and who follows it."""

import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import pdssm_compiler.runtime.tuning.predict as predicting
from pdssm_compiler import ScanSpec, Workload, compile, predict
from pdssm_compiler.runtime import compile_service, settings
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.compile_service import choices, choose
from pdssm_compiler.runtime.errors import ArgumentError, TuningWarning
from pdssm_compiler.runtime.tuning import log, on_call, resolve
from pdssm_compiler.runtime.tuning.evidence import Evidence, evidence
from pdssm_compiler.runtime.tuning.expected import Model
from pdssm_compiler.runtime.tuning.log import append_rows, read_log
from pdssm_compiler.runtime.tuning.predict import predict_problems, prediction_file
from pdssm_compiler.runtime.tuning.resolve import Tuned
from pdssm_compiler.runtime.tuning.winners import expected_winner
from pdssm_compiler.schedules.registry import TEMPLATES
from pdssm_compiler.schedules.target import Target, describe, described_target, named_target
from pdssm_compiler.schedules.templates.triton_rows import TritonRowsConfig
from tests.runtime.tuning.made_rows import PROGRAM, predicted
from tests.runtime.tuning.simulated import H100, SMALL, candidates, measured, problems, seconds

SPEC = ScanSpec(32, 32)
LONG = Workload(SPEC, 1, 32768, 32, "LONG", directions=("forward",))


@pytest.fixture(autouse=True)
def logs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The user's logs, empty; those that are shipped are there."""
    monkeypatch.setenv(settings.CACHE_DIR, str(tmp_path / "user"))
    resolve.forget()
    yield log.user_logs()
    resolve.forget()


def test_what_is_predicted_is_taken(logs: Path) -> None:
    target = named_target("l40s")
    (made,) = predict(LONG, "l40s")
    assert made.fallback is None
    assert made.ranked > 100
    assert made.winner is not None
    path = prediction_file(made.problem)
    assert path.parent == logs / "nvidia-l40s"
    rows, wrong = read_log(path)
    assert wrong == []
    assert rows == list(made.rows)
    assert {row.status for row in rows} == {"predicted"}
    assert sum(row.heuristic for row in rows) == 1
    expected = [row.predicted_ms for row in rows]
    assert expected == sorted(expected)
    assert all(row.ms is None and row.basis == made.winner.basis for row in rows)
    # By everyone who chooses for that GPU and those sizes.
    program, bucket = made.problem.program, made.problem.bucket
    schedule = choose(program, target, None, bucket)
    assert (schedule.template.name, vars(schedule.config)) == (
        made.winner.template, made.winner.config,
    )  # fmt: skip
    told = r"cost model, from .*\d+ rows of NVIDIA H100 .*, for 32 rows of 32768 tokens"
    assert re.fullmatch(told, schedule.reason)
    assert [reason.reason for reason, sizes in choices(program, target) if bucket in sizes] == [
        schedule.reason
    ]
    # Asked for again, it takes the place of what was there.
    predict(LONG, target)
    assert len(read_log(path)[0]) == len(rows)


def test_a_file_describes_the_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is compiled for it, for all sizes and for these, takes what the model chose."""
    monkeypatch.setattr(compile_service, "obtain", lambda *_: ({}, "disk"))
    spec = ScanSpec(32, 32, map_class="permutation")
    gpu = tmp_path / "gpu.toml"
    # Less shared memory than the H100 has, so what won there does not fit.
    gpu.write_text(describe(replace(H100, name="My GPU", shared_memory=99 << 10)))
    workload = Workload(spec, 1, 32768, 32, directions=("forward",))
    with warnings.catch_warnings():
        # What other GPUs' logs name does not fit, which is no news.
        warnings.simplefilter("error", TuningWarning)
        (made,) = predict(workload, gpu)
        every = choices(made.problem.program, described_target(gpu))
    assert made.winner is not None
    scan = compile(spec, gpu, sizes=(1, 32768, 32))
    assert scan.schedule.reason.startswith("cost model, from ")
    assert vars(scan.schedule.config) == made.winner.config
    assert "by cost model, from " in scan.explain()
    assert compile(spec, gpu).schedule.reason == "heuristic"
    (found,) = [each for each, sizes in every if made.problem.bucket in sizes]
    assert found == scan.schedule


def test_sizes_to_compile_for() -> None:
    for sizes in ((1, 2), (1, 2, 3.0), (True, 2, 3), 7):
        with pytest.raises(ArgumentError, match=r"sizes must be \(B, T, H\), three ints, got"):
            compile(SPEC, "h100", sizes=sizes)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="sizes must be at least 1"):
        compile(SPEC, "h100", sizes=(1, 0, 3))


def test_without_rows_the_heuristic_chooses_and_it_is_said(logs: Path) -> None:
    predict(LONG, "h200")
    (path,) = logs.rglob("*.predicted.jsonl")
    (problem,) = LONG.problems(torch.device("cpu"))
    target = named_target("h200")
    (made,) = predict_problems([replace(problem, absent=target)], Evidence())
    assert made.fallback == "no measured row of a GPU of the kind cuda is known"
    assert (made.rows, made.ranked, made.winner) == ((), 0, None)
    # What was predicted from more is not left to speak.
    assert not path.exists()
    assert not choose(made.problem.program, target, None, made.problem.bucket).reason.startswith(
        "cost model"
    )
    # Rows of NVIDIA's GPUs say nothing of AMD's.
    (made,) = predict(LONG, "gfx942")
    assert made.fallback == "no measured row of a GPU of the kind hip is known"
    assert any("speak for it: 0 of 3 needed" in told for told in made.passed_over)
    amd = named_target("gfx942")
    assert choose(made.problem.program, amd, None, made.problem.bucket).reason == "heuristic"


def test_a_template_that_few_rows_speak_for_is_left_out() -> None:
    problem = problems(SMALL)[0]
    rows = Evidence(tuple(s for s in measured(H100).samples if s.row.template == "cuda-chunks"))
    made = predicting.predict(problem, Model.fitted(rows), "0" * 40)
    assert {row.template for row in made.rows} <= {"cuda-chunks"}
    assert any(
        told == "cuda-rows: measured rows that speak for it: 0 of 3 needed"
        for told in made.passed_over
    )
    if not made.rows:
        assert made.fallback is not None
        assert "of which too little was measured" in made.fallback


@hypothesis_settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(range(4)),
    st.sampled_from([40, 64, 99, 163, 227]),
    st.integers(8, 400),
    st.integers(200, 8000),
)
def test_what_is_chosen_can_run(place: int, kib: int, processors: int, rate: int) -> None:
    gpu = Target(
        "cuda", "sm_90", warp_size=32, processors=processors, registers=255,
        shared_memory=kib << 10, name="Any GPU", bandwidth=rate * 10**9,
    )  # fmt: skip
    problem = replace(problems(SMALL)[place], absent=gpu)
    (made,) = predict_problems([problem], measured(H100))
    for row in made.rows:
        template = TEMPLATES[row.template]
        assert "cuda" in template.kinds
        config = template.config_type(**row.config)
        assert template.feasible(problem.program, gpu, config) is None
    # A choice, and no worse than the heuristic's by what is expected.
    if made.fallback is None:
        assert made.winner is not None
        assert made.heuristic is not None
        assert made.winner.predicted_ms <= made.heuristic.predicted_ms


def test_halving_the_bandwidth_changes_what_is_bound_by_it() -> None:
    """Every candidate takes longer or as long, and never twice as long."""
    model = Model.fitted(measured(H100))
    for problem in problems(H100):
        half = replace(H100, bandwidth=H100.bandwidth // 2)
        entries = candidates(problem)
        now = model.expected(problem.program, H100, entries, problem.sizes).seconds
        then = model.expected(problem.program, half, entries, problem.sizes).seconds
        assert (then >= now * (1 - 1e-9)).all()
        assert (then <= 2 * now * (1 + 1e-9)).all()


def test_a_measured_candidate_keeps_what_the_law_is_off_by() -> None:
    """On another GPU of the same figures what was measured is expected, whatever the law says."""
    problem = problems(H100)[0]
    mine = [s for s in measured(H100).samples if s.problem[0] == problem.program.fingerprint]
    # Of a template of which few were measured: the like of a candidate draw it to themselves.
    slow = next(s for s in mine if s.row.template == "cuda-rows")
    odd = replace(slow, row=replace(slow.row, ms=3 * slow.row.ms))
    found = Evidence(tuple(odd if s is slow else s for s in measured(H100).samples))
    model = Model.fitted(found)
    entries = [e for e in candidates(problem) if e.fields == slow.row.config]
    other = replace(H100, name="Its twin")
    expected = model.expected(problem.program, other, entries, problem.sizes)
    assert expected.seconds[0] * 1e3 == pytest.approx(odd.row.ms, rel=0.1)
    # What no row speaks for may be off by more.
    unknown = [e for e in candidates(problem) if e.changes > 2 and e.template.name == "cuda-rows"]
    assert model.expected(problem.program, other, unknown, problem.sizes).error.max() > (
        2 * expected.error[0]
    )


def test_other_sizes_of_the_bucket_are_spoken_for() -> None:
    """As many rows are the same rows, however sequences and heads make them."""
    problem = problems(H100)[0]
    batch, length, heads = problem.sizes
    model = Model.fitted(measured(H100))
    entries = candidates(problem)
    first = model.expected(problem.program, SMALL, entries[:5], problem.sizes)
    same = model.expected(problem.program, SMALL, entries[:5], (heads, length, batch))
    assert same.seconds == pytest.approx(first.seconds)
    longer = model.expected(problem.program, SMALL, entries[:5], (batch, length + 500, heads))
    assert longer.error == pytest.approx(first.error)
    far = model.expected(problem.program, SMALL, entries[:5], (batch, 4 * length, heads))
    assert (far.error >= first.error).all()
    known = [model.errors.get(entry.template.name, model.errors[""]) for entry in entries[:5]]
    assert far.error == pytest.approx(known)


def test_no_race_is_said_to_have_missed_a_faster_one() -> None:
    model = Model.fitted(measured(H100))
    for problem in problems(H100):
        entries = candidates(problem)
        expected = model.expected(problem.program, H100, entries, problem.sizes)
        assert expected.seconds.min() >= 0.97 * seconds(problem, entries).min()


def test_the_choice_is_cautious() -> None:
    def row(ms: float, spread: float, unroll: int, **more: object) -> object:
        return predicted(ms, TritonRowsConfig(1, 1, unroll), spread=spread, **more)

    base = row(1.0, 0.1, 16, heuristic=True, changes=0)
    # A gain within twice what the model may be off by is none.
    assert expected_winner([base, row(0.9, 0.1, 1)]) == base
    sure, unsure = row(0.9, 0.01, 2), row(0.85, 0.1, 4)
    assert expected_winner([base, unsure, sure]) == sure
    assert expected_winner([base, row(0.5, 0.1, 8), sure]) == row(0.5, 0.1, 8)
    few, many = row(0.5, 0.1, 1, changes=1), row(0.5, 0.1, 2, changes=3)
    assert expected_winner([base, many, few]) == few
    assert expected_winner([sure]) is None
    assert expected_winner([]) is None


def test_damaged_rows_are_told_and_left_out(logs: Path) -> None:
    before = evidence([log.shipped_logs(), log.user_logs()])
    folder = logs / "nvidia-h100-80gb-hbm3"
    whole = next(iter(sorted((log.shipped_logs() / folder.name).glob("*.jsonl"))))
    lines = whole.read_text().splitlines()
    folder.mkdir(parents=True)
    cut = lines[0][:-20] + "\n" + lines[0].replace('"schema": 1', '"schema": 9') + "\n"
    (folder / whole.name).write_text(cut)
    (folder / "n9-forward-none.jsonl").write_text(lines[0] + "\n")
    with pytest.warns(TuningWarning, match=r"is passed over.*and 1 more lines"):
        after = evidence([log.shipped_logs(), log.user_logs()])
    assert after.samples == before.samples
    assert set(after.left_out) - set(before.left_out) == {
        "1 row: the text of the program is not there"
    }


def test_a_gpu_that_nobody_described_is_left_out(logs: Path) -> None:
    sample = measured(H100).samples[0]
    log.keep_program(logs, sample.program)
    path = logs / "a-gpu" / log.file_name(sample.program)
    append_rows(path, [replace(sample.row, device="A GPU", figures=None)])
    found = evidence([logs])
    assert found.samples == ()
    (told,) = found.left_out
    assert "the figures of A GPU are not known" in told
    # With its figures it counts.
    append_rows(path, [replace(sample.row, device="A GPU")])
    (found_sample,) = evidence([logs]).samples
    assert (found_sample.target.name, found_sample.target.processors) == ("A GPU", 132)
    assert evidence([logs]).basis == "1 row of A GPU"


def test_no_prediction_is_learned_from(logs: Path) -> None:
    before = evidence([log.shipped_logs(), log.user_logs()])
    predict(LONG, "h200")
    assert list(logs.rglob("*.predicted.jsonl"))
    assert evidence([log.shipped_logs(), log.user_logs()]) == before


def test_what_is_no_absent_gpu() -> None:
    with pytest.raises(ArgumentError, match="'cpu' is a device of this machine: measure on it"):
        predict(LONG, "cpu")
    with pytest.raises(ArgumentError, match="is no GPU"):
        predict(LONG, named_target("cpu"))
    with pytest.raises(ArgumentError, match="needs the sizes of a specification: batch, length"):
        predict(SPEC, "h100")


def test_what_was_only_predicted_is_tuned_where_calls_tune(
    monkeypatch: pytest.MonkeyPatch, logs: Path
) -> None:
    asked: list[bool] = []

    def tune_problems(problems: list, effort: str, wanted: object, keep_choices: bool) -> None:
        asked.extend(wanted(problem) for problem in problems)  # type: ignore[operator]

    monkeypatch.setattr("pdssm_compiler.runtime.tuning.tuner.tune_problems", tune_problems)
    monkeypatch.setenv(settings.TUNE, "quick")
    template = TEMPLATES["triton-rows"]
    for speaks in ([], [True], [True, False]):
        said = [Tuned(template, None, "", False, each) for each in speaks]
        monkeypatch.setattr(on_call, "tuned", lambda *_, said=said: iter(said))
        on_call.tune_if_asked(PROGRAM, torch.device("cpu"), Sizes(1, 8, 1))
    assert asked == [True, True, False]


def test_a_folder_that_cannot_be_written(logs: Path) -> None:
    logs.parent.mkdir(parents=True)
    logs.write_text("")
    with pytest.raises(ArgumentError, match="cannot be written"):
        predict(LONG, "h200")
