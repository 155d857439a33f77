"""Where a call's schedule comes from, in which order, and what that costs."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pdssm_compiler import ScanSpec, compile, explain, pd_scan
from pdssm_compiler.ir.passes import specialise
from pdssm_compiler.ir.programs import PdScan
from pdssm_compiler.ir.programs import pd_scan as program_of_scan
from pdssm_compiler.runtime import kernels, plan, settings
from pdssm_compiler.runtime.compile_service import Schedule, choices, choose
from pdssm_compiler.runtime.errors import NoTemplateError, TuningWarning
from pdssm_compiler.runtime.tuning import log, resolve
from pdssm_compiler.runtime.tuning.log import (
    append_rows,
    file_name,
    folder_name,
    predicted_name,
)
from pdssm_compiler.runtime.tuning.provenance import kernel_versions
from pdssm_compiler.runtime.tuning.resolve import family, tuned
from pdssm_compiler.schedules.target import Target, gpu_target, named_target
from pdssm_compiler.schedules.templates.base import Problem
from pdssm_compiler.schedules.templates.cpu_rows import CpuRowsConfig
from pdssm_compiler.schedules.templates.cuda_chunks import CudaChunks, CudaChunksConfig
from pdssm_compiler.schedules.templates.cuda_rows import CudaRows, CudaRowsConfig
from pdssm_compiler.schedules.templates.torch_tokens import TorchTokensConfig
from pdssm_compiler.schedules.templates.triton_rows import TritonRowsConfig
from tests.runtime.tuning.made_rows import CPU, PROGRAM, predicted, row

SIZES = Problem.bucket(8, 100)
H100 = gpu_target("cuda", "sm_90", 32, 132, 227 << 10, "NVIDIA H100 80GB HBM3")


@pytest.fixture(autouse=True)
def logs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The user's logs are in ``user/autotune_logs``, the shipped ones in ``shipped``."""
    monkeypatch.setenv(settings.CACHE_DIR, str(tmp_path / "user"))
    monkeypatch.setattr(resolve, "shipped_logs", lambda: tmp_path / "shipped")
    monkeypatch.setattr(plan, "_plans", {})
    resolve.forget()
    yield tmp_path
    resolve.forget()


def of_user(*rows: Any) -> Path:
    path = log.user_logs() / folder_name(CPU.name) / file_name(PROGRAM)
    append_rows(path, rows)
    return path


def shipped(folder: Path, device: str, *rows: Any) -> None:
    append_rows(folder / "shipped" / folder_name(device) / file_name(PROGRAM), rows)


def chosen(problem: Problem = SIZES, target: Target = CPU) -> Schedule:
    return choose(PROGRAM, target, None, problem)


def test_the_order(logs: Path) -> None:
    assert chosen().reason == "heuristic"
    shipped(logs, CPU.name, row(CpuRowsConfig(2)))
    resolve.forget()
    assert chosen().config == CpuRowsConfig(2)
    assert chosen().reason == f"shipped log for {folder_name(CPU.name)}, for 8 rows of 100 tokens"
    of_user(row(CpuRowsConfig(4)))
    resolve.forget()
    assert chosen().config == CpuRowsConfig(4)
    assert chosen().reason == "tuned on this machine, for 8 rows of 100 tokens"
    explicit = choose(PROGRAM, CPU, CpuRowsConfig(5), SIZES)
    assert (explicit.config, explicit.reason) == (CpuRowsConfig(5), "explicit config")
    named = choose(PROGRAM, CPU, "torch-tokens", SIZES)
    assert (named.config, named.reason) == (TorchTokensConfig(), "explicit template")
    assert choose(PROGRAM, CPU, None, SIZES, logs=False).reason == "heuristic"


def test_another_backend_may_win() -> None:
    of_user(row(TorchTokensConfig(split=True), "torch-tokens"))
    assert chosen().template.name == "torch-tokens"


def test_the_nearest_gpu_is_told(logs: Path) -> None:
    found = (TritonRowsConfig(1, 1, n) for n in (2, 4, 8))
    config = {"template": "triton-rows", "target": "cuda:sm_90"}
    shipped(logs, "NVIDIA A100", row(next(found), **config | {"target": "cuda:sm_80"}))
    assert list(tuned(PROGRAM, H100, SIZES)) == []
    resolve.forget()
    shipped(logs, "NVIDIA GH200", row(next(found), **config))
    resolve.forget()
    (near,) = tuned(PROGRAM, H100, SIZES)
    assert near.reason == (
        "shipped log for nvidia-gh200, the nearest GPU, for 8 rows of 100 tokens"
    )
    shipped(logs, "NVIDIA H200", row(next(found), **config))
    resolve.forget()
    nearest, next_one = tuned(PROGRAM, H100, SIZES)
    assert nearest.reason.startswith("shipped log for nvidia-h200, the nearest GPU")
    assert (nearest.config.unroll, next_one.config.unroll) == (8, 4)
    # A target that is only an architecture has no log of its own.
    assert [each.config.unroll for each in tuned(PROGRAM, named_target("sm_90"), SIZES)] == [4, 8]


def test_where_a_prediction_stands(logs: Path) -> None:
    """Behind all that was measured on the GPU, before what was measured on another."""
    gpu = named_target("h100")
    folder = log.user_logs() / folder_name(gpu.name)
    configs = [TritonRowsConfig(1, 1, n) for n in (1, 2, 4, 8)]
    mine = {"template": "triton-rows", "target": "cuda:sm_90", "device": gpu.name, "threads": 0}
    shipped(logs, "NVIDIA H200", row(configs[0], **mine | {"device": "NVIDIA H200"}))
    base = predicted(1.0, configs[3], heuristic=True, changes=0)
    append_rows(folder / predicted_name(PROGRAM), [base, predicted(0.5, configs[1])])
    resolve.forget()
    first, last = tuned(PROGRAM, gpu, SIZES)
    assert (first.config, first.predicted) == (configs[1], True)
    assert first.reason == "cost model, from 7 rows of another GPU, for 8 rows of 100 tokens"
    assert (last.config, last.predicted) == (configs[0], False)
    # Another length asks for a prediction of its own; what was measured speaks for it.
    assert [each.config for each in tuned(PROGRAM, gpu, Problem.bucket(8, 200))] == [configs[0]]
    shipped(logs, gpu.name, row(configs[2], **mine))
    append_rows(folder / file_name(PROGRAM), [row(configs[3], **mine)])
    resolve.forget()
    found = [each.config for each in tuned(PROGRAM, gpu, SIZES)]
    assert found == [configs[3], configs[2], configs[1], configs[0]]
    assert choose(PROGRAM, gpu, None, SIZES).reason.startswith("tuned on this machine")


def test_a_prediction_is_for_a_gpu_of_its_figures(logs: Path) -> None:
    gpu = named_target("h100")
    path = log.user_logs() / folder_name(gpu.name) / predicted_name(PROGRAM)
    append_rows(path, [predicted(1.0, heuristic=True)])
    # A device's own clock says a little else than its maker.
    assert len(list(tuned(PROGRAM, replace(gpu, bandwidth=3352 * 10**9), SIZES))) == 1
    for change in ({"bandwidth": 10**12}, {"processors": 66}, {"shared_memory": 99 << 10}):
        resolve.forget()
        with pytest.warns(TuningWarning, match="run pdssm-compiler tune --target again"):
            assert list(tuned(PROGRAM, replace(gpu, **change), SIZES)) == []


def test_a_predicted_row_in_a_log_of_measured_ones_is_none_of_them() -> None:
    """As where somebody has put files together."""
    of_user(row(CpuRowsConfig(4)), predicted(0.001), replace(row(CpuRowsConfig(4)), **UNMEASURED))
    assert chosen().config == CpuRowsConfig(4)


UNMEASURED = {
    name: getattr(predicted(0.001), name)
    for name in ("status", "ms", "spread", "predicted_ms", "basis", "figures")
}


def test_another_number_of_threads_is_told_and_not_taken(logs: Path) -> None:
    now = torch.get_num_threads()
    of_user(row(CpuRowsConfig(4), threads=now + 1))
    assert chosen().config != CpuRowsConfig(4)
    told = f"tuned on this machine with {now + 1} threads, not the {now} of now"
    assert chosen().reason == f"heuristic; {told}"
    assert chosen(Problem.bucket(1, 100)).reason == "heuristic"
    # Slower than those of other threads, and of the same log.
    of_user(row(CpuRowsConfig(3), ms=9.0))
    resolve.forget()
    assert (chosen().config, chosen().reason.partition(",")[0]) == (
        CpuRowsConfig(3), "tuned on this machine",
    )  # fmt: skip


def test_a_row_of_another_device_of_the_same_folder_is_not_taken(logs: Path) -> None:
    """Names that differ in their hyphens alone have one folder."""
    of_user(row(CpuRowsConfig(4), device=CPU.name.replace(" ", "-", 1)))
    assert chosen().reason == "heuristic"
    # Of GPUs, it is the nearest one's.
    config = {"template": "triton-rows", "target": "cuda:sm_90", "device": H100.name, "threads": 0}
    shipped(logs, H100.name, row(TritonRowsConfig(1, 1, 2), **config))
    resolve.forget()
    (own,) = tuned(PROGRAM, H100, SIZES)
    (other,) = tuned(PROGRAM, replace(H100, name=H100.name.replace(" ", "-")), SIZES)
    assert own.reason == "shipped log for nvidia-h100-80gb-hbm3, for 8 rows of 100 tokens"
    assert other.reason.startswith("shipped log for nvidia-h100-80gb-hbm3, the nearest GPU, for")
    assert (own.near, other.near) == (False, True)


def test_families() -> None:
    assert family("cuda:sm_90") == family("cuda:sm_90") != family("cuda:sm_80")
    assert family("cuda:sm_100") != family("cuda:sm_120")
    assert family("hip:gfx942") == family("hip:gfx90a") != family("hip:gfx1100")


def test_another_cpu_says_nothing(logs: Path) -> None:
    shipped(logs, "Another CPU", row())
    assert chosen().reason == "heuristic"


def test_where_calls_tune_the_own_log_speaks_for_its_own_buckets_alone(
    logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of them are in it depends on what was called before."""
    of_user(row(CpuRowsConfig(4)))
    near = Problem.bucket(8, 200)
    assert chosen(near).config == CpuRowsConfig(4)
    monkeypatch.setenv(settings.TUNE, "quick")
    assert chosen(near).reason == "heuristic"
    assert chosen().config == CpuRowsConfig(4)
    # What was shipped stays what it is.
    shipped(logs, CPU.name, row(CpuRowsConfig(2)))
    resolve.forget()
    assert chosen(near).config == CpuRowsConfig(2)
    assert chosen().config == CpuRowsConfig(4)


@pytest.mark.parametrize(
    ("rows", "length", "found"),
    [
        (8, 100, True),
        (8, 127, True),
        (8, 64, True),
        (8, 255, True),
        (8, 511, True),
        (8, 512, False),
        (8, 63, False),
        (8, 1, False),
        (1, 100, False),
        (64, 100, False),
    ],
)
def test_which_sizes_a_row_speaks_for(rows: int, length: int, found: bool) -> None:
    of_user(row(CpuRowsConfig(4)))
    reason = chosen(Problem.bucket(rows, length)).reason
    assert reason.startswith("tuned" if found else "heuristic")


def test_the_nearest_length_speaks() -> None:
    of_user(row(CpuRowsConfig(4), length=100), row(CpuRowsConfig(5), length=400))
    for length, heads in ((64, 4), (200, 4), (300, 5), (1000, 5)):
        assert chosen(Problem.bucket(8, length)).config == CpuRowsConfig(heads)
    # Of two sizes in one bucket, what was measured last.
    of_user(row(CpuRowsConfig(6), length=101, ms=9.0))
    resolve.forget()
    assert chosen().config == CpuRowsConfig(6)


def test_the_buckets_own_rows_come_before_those_of_near_lengths(logs: Path) -> None:
    """Of all that was measured on the device, whoever measured it."""
    of_user(row(CpuRowsConfig(4), length=200))
    shipped(logs, CPU.name, row(CpuRowsConfig(2)))
    resolve.forget()
    assert chosen().reason == f"shipped log for {folder_name(CPU.name)}, for 8 rows of 100 tokens"
    assert chosen(Problem.bucket(8, 200)).reason.startswith("tuned on this machine")
    # Where neither has the bucket, the own log speaks.
    assert chosen(Problem.bucket(8, 400)).reason.startswith("tuned on this machine")
    # Another GPU's bucket is not this GPU's near length.
    config = {"template": "triton-rows", "target": "cuda:sm_90", "threads": 0}
    shipped(logs, "NVIDIA H200", row(TritonRowsConfig(1, 1, 2), device="NVIDIA H200", **config))
    mine = row(TritonRowsConfig(1, 1, 4), device=H100.name, length=200, **config)
    append_rows(log.user_logs() / folder_name(H100.name) / file_name(PROGRAM), [mine])
    resolve.forget()
    assert [each.config.unroll for each in tuned(PROGRAM, H100, SIZES)] == [4, 2]


def wrong_row(config: Any, template: str = "cpu-rows", **changes: Any) -> Any:
    """Of today's versions."""
    fields = {"status": "wrong", "ms": None, "error": "states[0] is 2", "length": 9000}
    return row(config, template, versions=kernel_versions(), **fields | changes)


def test_what_was_found_wrong_is_taken_for_no_sizes(logs: Path) -> None:
    same = choose(PROGRAM, CPU, None, SIZES).config
    path = of_user(wrong_row(same), row(CpuRowsConfig(4)))
    shipped(logs, CPU.name, row(same, length=1000))
    resolve.forget()
    # The winner of a bucket stays; the config is none of a near bucket's, nor the heuristic's.
    assert chosen().config == CpuRowsConfig(4)
    told = f"{path} says that it was wrong, for 8 rows of 9000 tokens: states\\[0\\] is 2"
    with pytest.warns(TuningWarning, match=f"max_heads.* is passed over: {told}"):
        assert choose(PROGRAM, CPU, None, Problem.bucket(8, 2000), wrong=True).config == same
    with pytest.warns(TuningWarning, match=f"which the heuristic says, is passed over: {told}"):  # noqa: SIM117
        with pytest.raises(NoTemplateError, match=f"cpu-rows: {told}.*'torch-chunks'"):
            chosen(Problem.bucket(8, 9000))
    # Who asks for it has it; and there may be another template.
    assert choose(PROGRAM, CPU, "cpu-rows", SIZES).config == same
    gpu = named_target("h100")
    first = choose(PROGRAM, gpu, None, SIZES)
    mine = {"device": gpu.name, "target": str(gpu), "threads": 0}
    other = log.user_logs() / folder_name(gpu.name) / file_name(PROGRAM)
    append_rows(other, [wrong_row(first.config, first.template.name, **mine)])
    resolve.forget()
    with pytest.warns(TuningWarning, match=f"{first.template.name} .* is passed over"):
        second = choose(PROGRAM, gpu, None, SIZES)
    assert second.template is not first.template
    assert second.reason == f"heuristic; without {first.template.name}, which was wrong here"


@pytest.mark.parametrize(
    "after",
    [
        {"versions": {"torch": "0"}},  # measured by other versions
        {"device": "Another CPU"},
        {"status": "crash"},
    ],
)
def test_what_does_not_say_that_a_config_is_wrong(after: dict[str, Any]) -> None:
    same = choose(PROGRAM, CPU, None, SIZES).config
    of_user(replace(wrong_row(same), **after))
    resolve.forget()
    assert chosen().reason == "heuristic"


def test_what_is_right_when_it_is_measured_again_is_taken_again() -> None:
    same = choose(PROGRAM, CPU, None, SIZES).config
    of_user(wrong_row(same), row(same, length=9000, versions=kernel_versions()))
    resolve.forget()
    assert chosen().reason == "heuristic"


def test_where_calls_tune_a_wrong_config_is_its_own_buckets_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which others are there depends on what was called before, which ranks do not share."""
    monkeypatch.setenv(settings.TUNE, "quick")
    of_user(wrong_row(choose(PROGRAM, CPU, None, SIZES).config))
    resolve.forget()
    assert chosen().reason == "heuristic"
    with pytest.warns(TuningWarning), pytest.raises(NoTemplateError, match="it was wrong"):
        chosen(Problem.bucket(8, 9000))


def test_a_config_of_before_a_field_that_matters_is_passed_over() -> None:
    """Rows of 16 states and less share a warp since a field says how many."""
    gpu = named_target("h100")
    path = log.user_logs() / folder_name(gpu.name) / file_name(PROGRAM)
    config = asdict(CudaRowsConfig(8, 4))
    of_gpu = {"device": gpu.name, "target": str(gpu), "threads": 0, "batch": 512, "heads": 64}
    append_rows(path, [row(config, "cuda-rows", **of_gpu)])
    sizes = Problem.bucket(512 * 64, 100)
    assert CudaRows().heuristic(PROGRAM, gpu, sizes).rows > 1
    assert choose(PROGRAM, gpu, None, sizes).config == CudaRowsConfig(8, 4)
    for lacking, told in (("rows", "before cuda-rows had 'rows', which is"), ("helpers", None)):
        path.unlink()
        of_before = {name: value for name, value in config.items() if name != lacking}
        append_rows(path, [row(of_before, "cuda-rows", **of_gpu)])
        resolve.forget()
        if told is None:
            assert choose(PROGRAM, gpu, None, sizes).config == CudaRowsConfig(8, 4)
        else:
            with pytest.warns(TuningWarning, match=f"{told} .* without a log; tune again"):
                assert choose(PROGRAM, gpu, None, sizes).reason == "heuristic"


@pytest.mark.parametrize(("teams", "asked", "taken"), [(7, None, 1), (7, 0, 0), (1, None, 0)])
def test_a_config_of_before_clusters_has_them_by_todays_rule(
    teams: int, asked: int | None, taken: int
) -> None:
    """What else it says holds with them, but of one team a block; and what was measured without
    them since is kept.
    """
    gpu = named_target("h100")
    path = log.user_logs() / folder_name(gpu.name) / file_name(PROGRAM)
    config = asdict(CudaChunksConfig(4, 3, teams))
    if asked is None:
        del config["clusters"]
    sizes = Problem.bucket(1024, 4000)
    of_gpu = {"device": gpu.name, "target": str(gpu), "threads": 0}
    append_rows(path, [row(config, "cuda-chunks", batch=1024, heads=1, length=4000, **of_gpu)])
    resolve.forget()
    assert CudaChunks().heuristic(PROGRAM, gpu, sizes).clusters == 1
    found = choose(PROGRAM, gpu, None, sizes).config
    assert found == CudaChunksConfig(4, 3, teams, clusters=taken)


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (row(template="gone"), "there is no template 'gone' any more"),
        (row({"max_heads": 2, "old": 1}), "not a config of cpu-rows any more"),
        (row({"split_scatter": True}), "not a config of cpu-rows any more"),
        (row({"max_heads": True}), "max_heads must be an int, got True"),
        (row(CpuRowsConfig(0)), "max_heads is at least 1, not 0"),
        (row(TritonRowsConfig(1, 1, 1), "triton-rows"), "triton-rows is not for cpu"),
    ],
)
def test_what_cannot_run_is_told_once_and_passed_over(logs: Path, bad: Any, told: str) -> None:
    shipped(logs, CPU.name, row(CpuRowsConfig(7)))
    of_user(bad)
    with pytest.warns(TuningWarning) as warned:
        assert chosen().config == CpuRowsConfig(7)
    assert told in str(warned[0].message)
    assert len(warned) == 1
    assert chosen().config == CpuRowsConfig(7)


def test_a_corrupt_log_is_told(recwarn: pytest.WarningsRecorder) -> None:
    path = of_user(row(CpuRowsConfig(4)))
    with path.open("a") as file:
        file.write('{"schema": 99}\n{"half')
    assert chosen().config == CpuRowsConfig(4)
    assert [w.category for w in recwarn] == [TuningWarning]
    assert "(and 1 more lines)" in str(recwarn[0].message)


def test_what_is_compiled_ahead_of_time_is_what_logs_say_and_the_heuristic_elsewhere() -> None:
    of_user(row(CpuRowsConfig(4)))
    found = {s.reason: (s.config, sizes) for s, sizes in choices(PROGRAM, CPU)}
    config, sizes = found["tuned on this machine, for 8 rows of 100 tokens"]
    assert config == CpuRowsConfig(4)
    assert Problem.bucket(8, 100) in sizes
    assert Problem() in found["heuristic"][1]


SCAN = specialise(program_of_scan(PdScan(6, None, map_source="none")))


def scanned(length: int, rows: int = 4) -> torch.Tensor:
    tensor = torch.full((rows, length, 2, 6), 0.5, dtype=torch.complex64)
    states, _ = pd_scan(tensor, tensor)
    return states


def tune_the_scan() -> None:
    path = log.user_logs() / folder_name(CPU.name) / file_name(SCAN)
    append_rows(path, [row(CpuRowsConfig(3), program=SCAN.fingerprint)])


def test_explain_says_which_source_decided() -> None:
    tune_the_scan()
    scanned(100)
    scanned(3)
    scanned(2000)
    told = [(e.config, e.reason) for e in explain()]
    assert [reason for _, reason in told] == [
        "tuned on this machine, for 8 rows of 100 tokens",
        "heuristic",
    ]
    assert '"max_heads": 3' in told[0][0]


def test_a_kernel_that_another_source_asked_for_is_not_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = counted(monkeypatch)
    path = log.user_logs() / folder_name(CPU.name) / file_name(SCAN)
    same = choose(SCAN, CPU).config
    append_rows(path, [row(same, program=SCAN.fingerprint, heuristic=True)])
    scanned(3)
    scanned(100)
    assert len(made) == 1
    assert [e.reason.partition(",")[0] for e in explain()] == [
        "heuristic",
        "tuned on this machine",
    ]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every kernel that is compiled or loaded from now on."""
    made: list[Any] = []
    build = kernels.build_schedule

    def counting(*arguments: Any) -> Any:
        made.append(arguments)
        return build(*arguments)

    monkeypatch.setattr(kernels, "build_schedule", counting)
    return made


def test_what_does_not_compile_any_more_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    build = kernels.build_schedule

    def fails(program: Any, target: Any, schedule: Schedule, alignment: int) -> Any:
        if schedule.config == CpuRowsConfig(3):
            raise RuntimeError("no kernel")
        return build(program, target, schedule, alignment)

    monkeypatch.setattr(kernels, "build_schedule", fails)
    tune_the_scan()
    with pytest.warns(TuningWarning, match="is passed over: RuntimeError: no kernel"):
        scanned(100)
    assert [e.reason for e in explain()] == ["heuristic"]
    tensor = torch.ones(1, 100, 1, 6, dtype=torch.complex64)
    with pytest.raises(RuntimeError, match="no kernel"):  # what the caller asks for is not
        compile(ScanSpec(6, map_source="none"), "cpu", config=CpuRowsConfig(3))(tensor, tensor)


def test_new_lengths_compile_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = counted(monkeypatch)
    tune_the_scan()
    scanned(100)
    scanned(5)
    assert len(made) == 2
    for number in range(50):
        scanned(1 + 37 * number, rows=1 + number % 9)
    assert len(made) == 2


class Refused:
    """A lock that nobody may take."""

    def __enter__(self) -> None:
        raise AssertionError("a warm call takes a lock")

    acquire = __enter__

    def __exit__(self, *_: Any) -> None:
        pass


def test_a_warm_call_takes_no_lock_and_reads_no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    tune_the_scan()
    first = scanned(100)
    assert explain()[0].reason.startswith("tuned")
    (found,) = plan.plans()
    with monkeypatch.context() as watched:
        owners = ((found.kernels, "_lock"), (plan, "_plans_lock"), (resolve, "_lock"))
        for owner, name in owners:
            watched.setattr(owner, name, Refused())
        watched.setattr(resolve, "warned_rows", None)
        again = scanned(101)
        with pytest.raises(AssertionError, match="takes a lock"):
            scanned(1)  # the first of another bucket does
    torch.testing.assert_close(again[:, :100], first)


_TRACED = """
import os, sys
import torch
from pdssm_compiler import explain, pd_scan
tensors = [torch.full((4, 100 + n, 2, 6), 0.5, dtype=torch.complex64) for n in range(9)]
for tensor in tensors[:3]:
    pd_scan(tensor, tensor)
print(explain()[0].reason)
os.path.exists("/begin")
for tensor in tensors:
    pd_scan(tensor, tensor)
os.path.exists("/end")
"""
_MARKS = ("begin", "end")


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_warm_call_makes_no_system_call_on_files(tmp_path: Path) -> None:
    tune_the_scan()
    trace = tmp_path / "trace"
    calls = "trace=%file,flock,fcntl"
    command = ["strace", "-e", calls, "-o", str(trace), sys.executable, "-c", _TRACED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith("tuned on this machine")
    lines = trace.read_text().splitlines()
    begin, end = (next(n for n, line in enumerate(lines) if f'"/{m}"' in line) for m in _MARKS)
    assert any(file_name(SCAN) in line for line in lines[:begin])  # it was read once, before
    assert lines[begin + 1 : end] == []


def test_compiled_scans_are_tuned_too() -> None:
    tune_the_scan()
    scan = compile(ScanSpec(6, map_source="none"), "cpu")
    tensor = torch.full((4, 100, 2, 6), 0.5, dtype=torch.complex64)
    scan(tensor, tensor)
    assert explain()[-1].reason.startswith("tuned on this machine")
