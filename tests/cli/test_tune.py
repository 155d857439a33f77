"""``pdssm-compiler tune``: what it measures, says and leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pdssm_compiler import (
    ScanSpec,
    Workload,
    explain,
    flash_pd_scan,
    mixture_pd_scan,
    pd_scan,
    tune,
)
from pdssm_compiler.runtime import plan, settings
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.tuning import resolve, turns
from pdssm_compiler.runtime.tuning.log import read_log
from pdssm_compiler.schedules.registry import TEMPLATES
from pdssm_compiler.schedules.templates.cpu_matrices import CpuMatrices
from pdssm_compiler.schedules.templates.cpu_rows import CpuRows, CpuRowsConfig
from pdssm_compiler.schedules.templates.torch_matrices import TorchMatrices
from pdssm_compiler.workload_files import SpecFileError, read_workloads
from pdssm_compiler.workloads import DIRECTIONS, suite, those_there_are
from tests.cli.conftest import Command, error_line

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Three candidates, in a cache of their own, on a device that nobody else tunes on."""
    monkeypatch.setenv(settings.CACHE_DIR, str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(turns, "_machine_folder", lambda: tmp_path / "machine")
    monkeypatch.delitem(TEMPLATES, "torch-chunks")
    monkeypatch.setattr(CpuRows, "space", lambda *_: iter([CpuRowsConfig(2)]))
    monkeypatch.setattr(plan, "_plans", {})
    monkeypatch.chdir(tmp_path)
    resolve.forget()
    yield
    resolve.forget()


def logs(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.jsonl"))


SMALL = ("tune", "-N", 6, "-K", 3, "-B", 2, "-T", 40, "-H", 3, "--device", "cpu")


def test_one_specification(pdssm: Command, tmp_path: Path) -> None:
    done = pdssm(*SMALL, "--direction", "forward", "--plot", "p.svg", "--ship", "shipped")
    assert done.status == 0, done.err
    assert "B=2 T=40 H=3: N=6 K=3" in done.out
    assert "│ 3 ok" in done.out
    lines = done.out.splitlines()
    (taken,) = (line for line in lines if line.startswith("calls of B=2 T=40 H=3: N=6 K=3"))
    assert taken.endswith(", tuned on this machine, for 6 rows of 40 tokens")
    assert "tuning B=2 T=40 H=3: N=6 K=3 general dictionary complex64 forward" in done.err
    assert "<svg" in (tmp_path / "p.svg").read_text()
    (log,) = logs(tmp_path / "cache")
    rows, wrong = read_log(log)
    assert wrong == []
    assert {row.template for row in rows} == {"cpu-rows", "torch-tokens"}
    assert {row.status for row in rows} == {"ok"}
    assert all(row.compile_seconds is not None for row in rows if row.template == "cpu-rows")
    (shipped,) = logs(tmp_path / "shipped")
    assert shipped.relative_to(tmp_path / "shipped") == log.relative_to(
        tmp_path / "cache" / "autotune_logs"
    )
    assert any(row.heuristic for row in read_log(shipped)[0])
    for folder in (log.parent.parent, tmp_path / "shipped"):
        assert [path.stem for path in (folder / "programs").iterdir()] == [log.stem]
    # A call of these sizes takes what won.
    tensor = torch.ones(2, 40, 3, 6, dtype=torch.complex64)
    maps = {
        "dictionary": torch.zeros(3, 3, 6, dtype=torch.int32),
        "selection": torch.zeros(2, 40, 3, dtype=torch.int32),
    }
    pd_scan(tensor, tensor, **maps)
    assert explain()[-1].reason == "tuned on this machine, for 6 rows of 40 tokens"
    # And the same command finds all of it in the log, also where it must measure nothing.
    before = log.read_bytes()
    for effort in ("quick", "none"):
        again = pdssm(*SMALL, "--direction", "forward", "--effort", effort)
        assert again.status == 0
        assert "│ 3 ok" in again.out
    assert log.read_bytes() == before


@pytest.fixture
def _one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the heuristic says, and no other."""
    monkeypatch.delitem(TEMPLATES, "torch-tokens")
    for template in (CpuRows, CpuMatrices, TorchMatrices):
        monkeypatch.setattr(template, "space", lambda *_: iter(()))


@pytest.mark.usefixtures("_one")
def test_packed_by_the_dense_surrogate(pdssm: Command, tmp_path: Path) -> None:
    """Tuned, logged, shipped, and taken by calls, as any other."""
    given = ("tune", "-N", 2, "-K", 2, "-T", 32, "-H", 3, "--device", "cpu", "--packed")
    done = pdssm(*given, "--direction", "dense", "--ship", "shipped")
    assert done.status == 0, done.err
    # The scan's backward, and the scores of maps, which are no packed sequences.
    told = "calls of B=1 T=32 H=3: N=2 K=2 general dictionary packed complex64 dense take"
    assert told in done.out
    assert len(logs(tmp_path / "shipped")) == 2
    logits = (torch.rand(3, 2, 2, 2), torch.rand(1, 32, 3, 2))
    diagonal, drive = (torch.rand(1, 32, 3, 2).to(torch.complex64) for _ in range(2))
    leaves = [each.requires_grad_() for each in (*logits, diagonal, drive)]
    offsets = torch.tensor([0, 9, 32])
    states, _ = flash_pd_scan(*leaves, surrogate="dense", cu_seqlens=offsets)
    states.abs().sum().backward()
    tuned = [kernel.reason.startswith("tuned on this machine, for ") for kernel in explain()[-3:]]
    # The forward was not asked for.
    assert tuned == [False, True, True]


@pytest.mark.usefixtures("_one")
def test_a_mixture(pdssm: Command, tmp_path: Path) -> None:
    given = ("tune", "-N", 2, "-K", 2, "-B", 2, "-T", 40, "-H", 3, "--device", "cpu")
    given += ("--map-source", "token")
    listed = pdssm(*given, "--direction", "all", "--effort", "none")
    for way in ("forward", "backward", "dense", "step", "mixture", "mixture_gradient"):
        assert f"general token complex64 {way} take" in listed.out
    assert "complex64 active" not in listed.out
    ways = ("--direction", "mixture", "--direction", "mixture_gradient")
    done = pdssm(*given, *ways, "--ship", "shipped")
    assert done.status == 0, done.err
    assert len(logs(tmp_path / "shipped")) == 2
    leaves = [torch.rand(3, 2, 2, 2), torch.rand(2, 40, 3, 2)]
    leaves += [torch.rand(2, 40, 3, 2).to(torch.complex64) for _ in range(2)]
    leaves = [each.requires_grad_() for each in leaves]
    states, _ = mixture_pd_scan(*leaves)
    states.abs().sum().backward()
    tuned = [kernel.reason.startswith("tuned on this machine, for ") for kernel in explain()[-4:]]
    assert tuned == [True, False, False, True]


def test_a_narrow_terminal_shows_every_number(
    pdssm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = pdssm(*SMALL, "--effort", "none")
    assert done.status == 0
    table = [line for line in done.out.splitlines() if line[:1] in "┏┃│└"]
    assert max(map(len, table)) == 80
    words = " ".join(done.out.replace("│", " ").replace("┃", " ").split())
    for heading in ("heuristic ms", "winner ms", "faster", "noise", "of roof"):
        for word in heading.split():
            assert f" {word} " in words
    assert "…" not in done.out
    assert "calls of B=2 T=40 H=3: N=6 K=3 general dictionary complex64 forward take " in done.out


def test_a_budget_is_kept(pdssm: Command) -> None:
    done = pdssm(*SMALL, "--budget", 0)
    assert done.status == 0
    assert "the budget ended the search: run the same command again to go on" in done.out
    assert "nothing measured yet on " in done.out
    told = "of 2 of 2 programs nothing was measured, for the budget of 0 s, a few of"
    assert told in done.out
    for way in ("forward", "backward"):
        name = f"B=2 T=40 H=3: N=6 K=3 general dictionary complex64 {way}"
        assert f"not measured: {name}" in done.out.splitlines()
    assert "plot:" not in done.out


def test_what_is_begun_within_a_budget_has_the_heuristics_row(
    pdssm: Command, tmp_path: Path
) -> None:
    """However long it takes to start and to compile."""
    done = pdssm(*SMALL, "--direction", "forward", "--budget", 1)
    assert done.status == 0
    assert "the budget ended the search" in done.out
    assert "nothing was measured" not in done.out
    (log,) = logs(tmp_path / "cache")
    rows = read_log(log)[0]
    assert {(row.status, row.heuristic) for row in rows} == {("ok", True)}
    assert rows[-1].again_ms is not None
    # What was measured by then is measured.
    again = pdssm(*SMALL, "--direction", "forward", "--budget", 0)
    assert "│ 1 ok" in again.out
    assert "nothing was measured" not in again.out


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_leaves_a_good_log(
    tmp_path: Path, sent: signal.Signals, status: int
) -> None:
    command = [sys.executable, "-m", "pdssm_compiler", *map(str, SMALL), "--effort", "full"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    kept = tmp_path / "cache" / "autotune_logs"
    # Folders that are being written come and go beside.
    while not any(len(read_log(path)[0]) >= 2 for path in kept.glob("*/*.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # As a terminal and ``timeout`` do: to the whole group.
    os.killpg(process.pid, sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert "run the same command again to go on" in err
    # Which were measured, and which were not.
    name = "B=2 T=40 H=3: N=6 K=3 general dictionary complex64"
    assert f"tuning {name} forward" in err.splitlines()
    assert f"candidates measured of {name} forward: " in err
    assert "something was measured of 1 of 2 programs" in err.splitlines()
    assert f"not measured: {name} backward" in err.splitlines()
    assert "Traceback" not in out + err
    (log,) = logs(tmp_path / "cache")
    rows, wrong = read_log(log)
    assert wrong == []
    assert len(rows) >= 2


def test_what_must_be_named(pdssm: Command, tmp_path: Path) -> None:
    told = "name one of --state-size, --spec-file and --suite"
    assert error_line(pdssm("tune")) == told
    assert error_line(pdssm("tune", "--suite", "-N", 3)) == told
    assert error_line(pdssm("tune", "--suite", "--plot", "there/p.png")).startswith(
        "there is no folder there"
    )
    assert error_line(pdssm("tune", "--suite", "--device", "cuda:99")).startswith(
        "torch sees no device"
    )
    file = tmp_path / "specs.toml"
    file.write_text("[[workload]]\nstate_size = 3\n")
    line = error_line(pdssm("tune", "--spec-file", file))
    assert line == f"{file}, workload 1: the field 'batch' is missing"


def test_every_file_of_specifications_is_read(pdssm: Command, tmp_path: Path) -> None:
    files = []
    for size in (3, 4):
        files += ["--spec-file", tmp_path / f"{size}.toml"]
        sizes = f"state_size = {size}\nbatch = 1\nlength = 8\nheads = 1\n"
        files[-1].write_text(f'[[workload]]\nmap_source = "none"\n{sizes}')
    done = pdssm("tune", *files, "--direction", "forward", "--effort", "none")
    assert done.status == 0, done.err
    for size in (3, 4):
        assert f"calls of B=1 T=8 H=1: N={size} complex64 forward take cpu-rows" in done.out


def test_a_gpu_that_is_not_here(pdssm: Command, tmp_path: Path) -> None:
    """It is described, and predicted for; nothing is compiled for that."""
    gpu = tmp_path / "gpu.toml"
    assert pdssm("describe", "h200", "--output", gpu).status == 0
    gpu.write_text(gpu.read_text().replace("NVIDIA H200", "My GPU"))
    sizes = ("-N", 32, "-K", 32, "-B", 1, "-T", 32768, "-H", 32)
    done = pdssm("tune", "--target", "gpu.toml", *sizes, "--direction", "forward")
    assert done.status == 0, done.err
    told = " ".join(done.out.replace("│", " ").split())
    assert "expected on My GPU, nothing measured" in told
    assert "cost model, from" in told
    (log,) = logs(tmp_path / "cache")
    assert f"predicted: {log}" in told
    assert log.name.endswith(".predicted.jsonl")
    assert log.parent.name == "my-gpu"
    rows, wrong = read_log(log)
    assert wrong == []
    assert {row.status for row in rows} == {"predicted"}
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"autotune_logs"}


def test_where_nothing_like_it_was_measured(pdssm: Command, tmp_path: Path) -> None:
    done = pdssm("tune", "--target", "gfx942", *SMALL[1:-2], "--direction", "forward")
    assert done.status == 0, done.err
    told = " ".join(done.out.replace("│", " ").split())
    assert "chose nothing: no measured row of a GPU of the kind hip is known" in told
    assert logs(tmp_path / "cache") == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--device", "cpu"), "--device is for what is measured, and --target measures nothing"),
        (("--budget", 3), "--budget is for what is measured"),
        (("--effort", "none"), "--effort is for what is measured"),
        (("--plot", "p.png"), "--plot is for what is measured"),
        (("--ship", "here"), "--ship is for what is measured"),
        (("--target", "cpu"), "the target 'cpu' is a device of this machine: measure on it"),
        (("--target", "rtx"), "unknown target 'rtx'; known targets: cpu"),
    ],
)
def test_what_does_not_go_with_a_target(
    pdssm: Command, options: tuple[object, ...], told: str
) -> None:
    assert error_line(pdssm("tune", "-N", 6, "--target", "h100", *options)).startswith(told)


TOML = """
[[workload]]
name = "mine"
state_size = 8
dictionary_size = 4
dtype = "complex128"
batch = 2
length = 100
heads = 3
directions = ["step", "active"]

[[workload]]
state_size = 5
map_source = "none"
batch = 1
length = 9
heads = 1
"""
LINES = [
    {"state_size": 8, "dictionary_size": 4, "payload_dtype": "bfloat16"},
    {"state_size": 5, "map_source": "token", "initial_state": True, "final_state": True},
]


def test_files_of_specifications(tmp_path: Path) -> None:
    toml = tmp_path / "w.toml"
    toml.write_text(TOML)
    mine, other = read_workloads(toml, ("forward",))
    assert mine == Workload(
        ScanSpec(8, 4, dtype=torch.complex128), 2, 100, 3, "mine", directions=("step", "active")
    )
    assert other == Workload(ScanSpec(5, map_source="none"), 1, 9, 1, directions=("forward",))
    assert [str(p) for p in mine.problems(CPU)] == [
        "mine: N=8 K=4 general dictionary complex128 step",
        "mine: N=8 K=4 general dictionary complex128 active",
    ]
    assert [p.sizes for p in mine.problems(CPU)] == [Sizes(2, 1, 3), Sizes(2, 100, 3)]
    # As some editors write it.
    toml.write_bytes(b"\xef\xbb\xbf" + TOML.replace("\n", "\r\n").replace("mine", "mïne").encode())
    assert [each.name for each in read_workloads(toml, ("forward",))] == ["mïne", ""]
    lines = tmp_path / "w.jsonl"
    sizes = {"batch": 1, "length": 2, "heads": 3}
    lines.write_text("\n".join(json.dumps(line | sizes) for line in LINES))
    first, second = read_workloads(lines, ("backward",))
    assert first.spec == ScanSpec(8, 4, payload_dtype=torch.bfloat16)
    assert (second.initial_state, second.final_state) == (True, True)
    assert "grad_initial_state" in next(second.problems(CPU)).text


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "has no workload"),
        ("{", "is neither TOML"),
        ("3", "workload 1: a workload is a table of fields, not 3"),
        ('{"n": 3}', "workload 1: unknown field 'n'; there are batch,"),
        (
            '{"state_size": 3, "map_source": "none", "batch": "2", "length": 1, "heads": 1}',
            "workload 1: batch must be an int of at least 1, got '2'",
        ),
        (
            '{"state_size": 0, "map_source": "none", "batch": 2, "length": 1, "heads": 1}',
            "workload 1: state_size must be a whole number of at least 1, got 0",
        ),
        (
            '{"state_size": 2, "map_source": "none", "batch": 2, "length": 1, "heads": 1, '
            '"dtype": "float32"}',
            "workload 1: dtype must be one of 'complex64'",
        ),
        (
            '{"state_size": 2, "map_source": "none", "batch": 2, "length": 1, "heads": 1, '
            '"directions": ["up"]}',
            "workload 1: direction must be one of 'forward'",
        ),
        (
            '{"state_size": 2, "map_source": "none", "batch": 2, "length": 1, "heads": 1, '
            '"initial_state": "no"}',
            "workload 1: initial_state must be true or false, got 'no'",
        ),
        (
            '{"state_size": 2, "map_source": "none", "batch": 2, "length": 1, "heads": 1, '
            '"directions": []}',
            "workload 1: directions are some of forward, backward, active, dense, step, mixture, "
            "mixture_gradient, got ()",
        ),
        ("[" * 100_000, "is neither TOML"),
        (
            '{"state_size": 2, "map_source": "none", "batch": 2, "length": 9223372036854775808, '
            '"heads": 1}',
            "workload 1: batch=2 length=9223372036854775808 heads=1 are more numbers a tensor",
        ),
        (
            '{"state_size": 2, "map_source": "none", "batch": 2, "length": 1, "heads": 1, '
            '"name": "a\\u001b[2J"}',
            "workload 1: name must be printable text, got 'a\\x1b[2J'",
        ),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text(content)
    with pytest.raises(SpecFileError) as error:
        read_workloads(path, ("forward",))
    assert told in str(error.value)
    with pytest.raises(SpecFileError, match="cannot be read"):
        read_workloads(tmp_path / "gone.toml", ("forward",))


def test_the_suite() -> None:
    names = [str(p) for w in suite(CPU, ("forward", "step")) for p in w.problems(CPU)]
    assert names == [
        "N32: N=32 K=32 permutation dictionary complex64 forward",
        "N32: N=32 K=32 general dictionary complex64 forward",
        "N128: N=128 K=8 permutation dictionary complex64 forward",
        "N128: N=128 K=8 general dictionary complex64 forward",
        "STEP: N=32 K=32 permutation dictionary complex64 step",
        "STEP: N=32 K=32 general dictionary complex64 step",
    ]
    gpu = suite(torch.device("cuda"), ("backward", "active"))
    assert [w.name for w in gpu[::2]] == ["LM-32", "LM-64", "LONG", "FSA", "UEA"]


def test_the_programs_are_those_that_calls_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is tuned under a direction is what a call of it looks up."""
    ran: list[str] = []
    real = plan.plan_for

    def noted(text: str, *rest: Any) -> Any:
        ran.append(text)
        return real(text, *rest)

    monkeypatch.setattr(plan, "plan_for", noted)
    workload = those_there_are(Workload(ScanSpec(6, 3), 2, 5, 3, directions=DIRECTIONS))
    assert workload.directions == ("forward", "backward", "active", "dense", "step")
    forward, backward, active, dense, scores, step = workload.problems(CPU)
    diagonal, drive = (
        torch.rand(2, 5, 3, 6).to(torch.complex64).requires_grad_() for _ in range(2)
    )
    maps = {
        "dictionary": torch.zeros(3, 3, 6, dtype=torch.int32),
        "selection": torch.zeros(2, 5, 3, dtype=torch.int32),
    }
    states, _ = pd_scan(diagonal, drive, **maps)
    states.abs().sum().backward()
    assert ran == [forward.text, backward.text]
    maps["selection"] = maps["selection"][:, :1]
    one = drive[:, :1].detach()
    pd_scan(one, one, **maps, initial_state=one[:, 0], output_final_state=True)
    assert ran[2:] == [step.text]
    logits = (torch.rand(3, 3, 6, 6), torch.rand(2, 5, 3, 3))
    states, _ = flash_pd_scan(*(t.requires_grad_() for t in logits), diagonal, drive)
    states.abs().sum().backward()
    assert ran[3:] == [forward.text, active.text]
    states, _ = flash_pd_scan(*logits, diagonal, drive, surrogate="dense")
    states.abs().sum().backward()
    assert ran[5:] == [forward.text, dense.text, scores.text]
    # Ten tokens do not fill a row of 16.
    assert scores.sizes == Sizes(10, 1, 3)


def test_sizes_of_a_specification() -> None:
    with pytest.raises(ArgumentError, match="needs the sizes of a specification"):
        tune(ScanSpec(6, 3), batch=2)
    with pytest.raises(ArgumentError, match="workloads have sizes of their own"):
        tune(Workload(ScanSpec(6, 3), 1, 1, 1), heads=3)
    with pytest.raises(ArgumentError, match="'active' is of flash_pd_scan"):
        tune(ScanSpec(6, map_source="none"), batch=1, length=1, heads=1, directions=["active"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("workload = 3", "workload is to be a table each: [[workload]]"),
        ("[workload]\nstate_size = 3", "workload is to be a table each: [[workload]]"),
        ("[[workloads]]\nstate_size = 3", "it has 'workloads', and only [[workload]] is read"),
    ],
)
def test_toml_without_tables_of_workloads(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "w.toml"
    path.write_text(content)
    with pytest.raises(SpecFileError) as error:
        read_workloads(path, ("forward",))
    assert told in str(error.value)


@pytest.mark.parametrize("option", [("-B", 2), ("--map-class", "permutation"), ("--final-state",)])
def test_options_of_a_specification_that_is_not_told(
    option: tuple[Any, ...], pdssm: Command
) -> None:
    message = error_line(pdssm("tune", "--suite", "--device", "cpu", *option))
    assert "tells of one specification: give --state-size as well, or leave it out" in message


def test_what_tune_cannot_do_is_said_before_it_begins(pdssm: Command, tmp_path: Path) -> None:
    most = os.cpu_count() or 1
    message = error_line(pdssm(*SMALL, "--threads", most + 1))
    assert message == f"--threads is at most {most}, the processors here, not {most + 1}"
    if Path("/proc/self").exists():
        message = error_line(pdssm(*SMALL, "--plot", "/proc/self/p.png"))
        assert message.startswith("cannot write to /proc/self: ")
    (tmp_path / "file").touch()
    message = error_line(pdssm(*SMALL, "--ship", "file/logs"))
    assert message == "cannot write to file/logs; choose --ship"
    assert logs(tmp_path / "cache") == []
    spec, sizes = ScanSpec(4, 3), {"batch": 1, "length": 3, "heads": 1}
    for budget in (-1, float("nan"), float("inf")):
        with pytest.raises(ArgumentError, match="budget must be seconds, at least 0, or None"):
            tune(spec, **sizes, budget=budget)
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"budget": "60"}, "budget must be seconds, at least 0, or None, got '60'"),
        ({"device": "cuda:77"}, "torch sees no device 'cuda:77'"),
        ({"device": "meta"}, "scans run on devices of cpu, cuda, mps, xpu, got 'meta'; name one"),
        ({"device": "tpu"}, "scans run on devices of cpu, cuda, mps, xpu, got 'tpu'; name one"),
        ({"workers": "2"}, "workers must be a whole number of at least 0, or None, got '2'"),
        ({"workers": -1}, "workers must be a whole number of at least 0, or None, got -1"),
        ({"directions": "forward"}, r"directions are several, got 'forward'; pass \('forward',\)"),
    )
    for options, told in wrong:
        with pytest.raises(ArgumentError, match=told):
            tune(spec, **sizes, **options)
    for workloads in (3, "abc", [spec]):
        with pytest.raises(ArgumentError, match="workloads must be a list of Workload, got"):
            tune(workloads)
