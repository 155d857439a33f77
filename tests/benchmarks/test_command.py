"""``python -m benchmarks``: options, files, plots, and a line for each thing wrong."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks import cpu, session
from benchmarks.app import app
from benchmarks.cases import CPU, GPU
from benchmarks.command import narrowed
from benchmarks.gpu import gpu
from benchmarks.host import call_overhead, first_result_seconds, import_seconds
from benchmarks.plots import plot
from benchmarks.provenance import OutputError, load, store
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.tuning.effort import EFFORTS
from tests.benchmarks.conftest import AGENDA

ROOT = Path(__file__).resolve().parents[2]
STORED = sorted((ROOT / "benchmarks" / "results").glob("nvidia-*.json"))
PNG = b"\x89PNG"


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_it_measures_prints_stores_and_draws(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cpu, "CPU", AGENDA)
    out = tmp_path / "a" / "b"
    options = ("--sections", "suite,scaling", "--shapes", "tiny", "--runs", 2, "--out", out)
    done = run("cpu", *options, "--workers", 0, "--commit", "abc123")
    assert done.exit_code == 0, done.output
    assert "cpu-rows *" in done.stdout
    assert sorted(path.name for path in out.iterdir()) == [
        "cpu-roofline.png", "cpu-scaling.png", "cpu.json",
    ]  # fmt: skip
    assert all(path.read_bytes().startswith(PNG) for path in out.glob("*.png"))
    record = json.loads((out / "cpu.json").read_text())
    assert record["commit"] == "abc123"
    assert record["sections"] == ["suite", "scaling"]
    assert {row["runs"] for row in record["rows"]} == {2}
    assert {row["shape"] for row in record["rows"] if row["section"] == "suite"} == {"tiny"}

    again = tmp_path / "again"
    shown = run("show", out / "cpu.json")
    assert shown.stdout == done.stdout[: done.stdout.index("stored: ")]
    assert run("plot", out / "cpu.json", "--out", again).exit_code == 0
    for path in out.glob("*.png"):
        assert (again / path.name).read_bytes() == path.read_bytes()


def test_the_hosts_own_costs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cpu, "CPU", AGENDA)
    monkeypatch.setattr(session, "call_overhead", partial(call_overhead, calls=200, blocks=3))
    monkeypatch.setattr(session, "import_seconds", partial(import_seconds, runs=1))
    first = partial(first_result_seconds, runs=1)
    monkeypatch.setattr(session, "first_result_seconds", first)
    done = run("cpu", "--sections", "host", "--out", tmp_path, "--workers", 0)
    assert done.exit_code == 0, done.output
    host = load(tmp_path / "cpu.json")["host"]
    for call in (host["call"], host["call_with_permutations"]):
        assert call["kernel_us"] > 0
        assert call["call_us"] > 0
    assert 0 < host["first_result"]["median_s"] < 60
    assert 0 < host["import"]["median_s"] <= host["import"]["most_s"]
    for told in ("a warm call adds", "a warm call with permutations adds", "its first result"):
        assert told in done.stdout
    assert "no plot: there are no kernels" in done.stderr


def test_options_narrow_what_is_measured() -> None:
    whole = narrowed(GPU)
    assert whole == GPU
    quick = narrowed(GPU, quick=True)
    assert (quick.runs, quick.most) == (5, 1)
    assert [shape.length for shape in quick.sweeps["T"]] == [1 << 14, 1 << 17, 1 << 20]
    assert narrowed(GPU, quick=True, runs=9).runs == 9
    few = narrowed(GPU, sections="peers, suite", shapes="UEA,LM-32", most=2)
    assert few.sections == ("suite", "peers")
    assert [shape.name for shape in few.shapes] == ["LM-32", "UEA"]
    assert {case.most for case in few.cases() if case.section == "suite"} == {2}
    # Left out on a CPU, unless it is asked for.
    assert "peers" not in narrowed(CPU).sections
    assert narrowed(CPU, sections="peers").sections == ("peers",)


def test_figures_that_are_asked_for_have_their_sizes() -> None:
    lengths = GPU.sweeps["T"]
    assert (lengths[0].length, lengths[-1].length) == (1 << 14, 1 << 20)
    assert {shape.batch * shape.length for shape in lengths} == {1 << 20}
    step = GPU.step
    assert (step.batch, step.length, step.heads, step.state_size) == (64, 1, 32, 32)
    assert (GPU.peers.heads * GPU.peers.state_size, GPU.peers.length) == (1024, 4096)
    for size, shapes in {**GPU.sweeps, **CPU.sweeps}.items():
        assert len({shape.sizes[size] for shape in shapes}) == len(shapes) > 2


@pytest.mark.parametrize("options", [{"sections": "suit"}, {"shapes": "LM-33"}])
def test_a_name_that_is_not_there(options: dict[str, str]) -> None:
    (name,) = options.values()
    with pytest.raises(ArgumentError, match=rf"unknown \w+ '{name}'; name some of .*"):
        narrowed(GPU, **options)  # type: ignore[arg-type]


def test_a_machine_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ArgumentError, match="torch sees no device 'cuda'"):
        gpu(out=tmp_path)
    with pytest.raises(ArgumentError, match="--device cpu is no GPU"):
        gpu(device="cpu", out=tmp_path)


def test_commands_of_old_take_the_same_options() -> None:
    for name in ("gpu", "cpu"):
        of_app = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
        assert {"sections", "shapes", "runs", "most", "quick", "out", "commit"} <= {
            parameter.name for parameter in of_app.params
        }
        help_ = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "--sections" in help_.stdout


def test_an_error_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "plot", str(tmp_path / "none.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("benchmarks: cannot read ")


@pytest.mark.parametrize("stored", STORED, ids=lambda path: path.stem)
def test_stored_results_can_be_drawn(stored: Path, tmp_path: Path) -> None:
    first, *_ = plot(load(stored), tmp_path / stored.stem)
    assert first.name == f"{stored.stem}-roofline.png"
    assert first.read_bytes().startswith(PNG)


@pytest.mark.parametrize("stored", STORED, ids=lambda path: path.stem)
def test_stored_results_are_repeatable_and_no_map_is_slow(stored: Path) -> None:
    """What documents say of them: no kernel that left other bits, no map three times as slow."""
    record = load(stored)
    assert {"device", "roof_gb_per_s", "versions", "commit", "date"} <= set(record)
    verdicts = record["verdicts"]
    assert verdicts.get("same_bits", {"other": []})["other"] == []
    assert all(worst["of_random"] <= 3 for worst in verdicts.get("worst_maps", ()))
    measured = {row["section"] for row in record["rows"] if "ms" in row}
    assert ("worst" in measured) is ("worst_maps" in verdicts)


def test_the_cost_model_is_judged(tmp_path: Path) -> None:
    out = tmp_path / "judged.json"
    done = run("model", "--out", out, "--commit", "abc")
    assert done.exit_code == 0, done.output
    for told in ("each shape left out", "model's choice", "median", "worst"):
        assert told in done.stdout
    made = json.loads(out.read_text())
    assert len(made["verdicts"]) >= 20
    assert all(verdict["chosen"] >= 1.0 for verdict in made["verdicts"])
    assert made["provenance"]["commit"] == "abc"
    assert made["provenance"]["versions"]["torch"] == torch.__version__
    assert made["provenance"]["date"] > "2026"
    for verdict in made["verdicts"]:
        of = made["measured"][verdict["device"]]
        assert of["rows"] >= 2
        assert all(len(commit.removesuffix("-modified")) == 40 for commit in of["commits"])
        assert of["dates"][0] <= of["dates"][1]
    h100 = "nvidia-h100-80gb-hbm3"
    # As from one GPU to another: here the same, so all of it is known.
    again = run("model", "--fit", h100, "--on", h100, "--logs", ROOT / "autotune_logs")
    assert "held to other rows" in again.stdout
    wrong = run("model", "--fit", "nvidia-x")
    assert isinstance(wrong.exception, ArgumentError)
    assert f"no rows of 'nvidia-x' can be used; there are those of {h100}" in str(wrong.exception)
    assert isinstance(run("model", "--out", tmp_path).exception, OutputError)


def test_searches_of_completed_spaces(tmp_path: Path) -> None:
    """One race, of which 32 of some hundred candidates were measured."""
    races, few = ROOT / "benchmarks" / "results" / "races", tmp_path / "logs"
    for path in races.glob("*/n80-forward-a04a*.jsonl"):
        (few / path.parent.name).mkdir(parents=True)
        (few / path.parent.name / path.name).write_bytes(path.read_bytes())
    done = run("search", "--logs", few, "--seeds", 2, "--out", tmp_path, "--commit", "abc")
    assert done.exit_code == 0, done.output
    assert "completed spaces, what was not measured off by 4%" in done.stdout
    assert "quick over full: median" in done.stdout
    made = json.loads((tmp_path / "search.json").read_text())
    assert made["commit"] == "abc"
    assert [row["seed"] for row in made["rows"]] == [0, 1]
    for row in made["rows"]:
        assert 8 < row["quick_measured"] <= EFFORTS["quick"].candidates
        assert row["quick_measured"] < row["full_measured"] <= row["candidates"]
        assert 1.0 <= row["full"] <= row["heuristic"]
        assert 1.0 <= row["quick"] <= row["heuristic"]
        assert row["quick_over_full"] == row["quick"] / row["full"]
    assert made["summary"]["quick"]["worst"] == max(row["quick"] for row in made["rows"])
    nothing = run("search", "--logs", ROOT / "autotune_logs", "--out", tmp_path)
    assert isinstance(nothing.exception, ArgumentError)
    assert "8 rows of one problem" in str(nothing.exception)


def test_what_cannot_be_drawn_or_read_or_written(tmp_path: Path) -> None:
    store("old", {"device": "x", "rows": []}, tmp_path)
    assert "of an earlier version; measure again" in str(
        run("show", tmp_path / "old.json").exception
    )
    with pytest.raises(OutputError, match="measure the sections suite, scaling or layers"):
        plot({"device": "x", "roof_gb_per_s": 1, "rows": []}, tmp_path / "x")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(OutputError, match=r"list\.json holds no results of a run"):
        load(tmp_path / "list.json")
    with pytest.raises(OutputError, match="choose --out"):
        store("name", {}, tmp_path / "absent")
    done = run("cpu", "--sections", "step", "--out", tmp_path / "list.json" / "below")
    assert isinstance(done.exception, OutputError)
    assert "choose --out" in str(done.exception)
