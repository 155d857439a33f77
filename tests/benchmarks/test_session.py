"""A whole run on the CPU: its rows, what holds over them, and what becomes of failures."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import measure, session
from benchmarks.calls import BOTH
from benchmarks.measure import Bench
from benchmarks.problems import SWEEPS
from benchmarks.session import benchmark
from benchmarks.tables import show
from pdssm_compiler.cli.consoles import results
from pdssm_compiler.runtime.tuning import precompile, timing
from pdssm_compiler.runtime.tuning.timing import Clock
from pdssm_compiler.suite import SUITE
from tests.benchmarks.conftest import AGENDA, CPU, TINY

Record = dict[str, Any]


def rows_of(record: Record, section: str, **fields: object) -> list[dict[str, Any]]:
    return [
        row
        for row in record["rows"]
        if row["section"] == section and all(row[key] == fields[key] for key in fields)
    ]


def test_where_it_comes_from_is_told(record: Record) -> None:
    assert record["commit"] == "abc123"
    assert record["versions"]["torch"] == torch.__version__
    assert record["versions"]["mamba-ssm"] == "absent"
    assert record["date"].endswith("+00:00")
    assert record["device"]
    assert record["roof_gb_per_s"] > 0
    assert record["left_out"] == []
    assert json.loads(json.dumps(record)) == record


def test_every_case_has_its_rows(record: Record) -> None:
    problems = {
        "suite": ["tiny", "wide"],
        "worst": ["tiny", "wide"],
        "scaling": [
            "T=8",
            "T=16",
            "T=32",
            "N=5",
            "N=8",
            "N=12",
            "N=16",
            "B=1",
            "B=2",
        ],
        "step": ["STEP"],
        "peers": ["tiny"],
    }
    for section, shapes in problems.items():
        assert list(dict.fromkeys(r["shape"] for r in rows_of(record, section))) == shapes
    directions = [row["direction"] for row in rows_of(record, "suite", shape="tiny")]
    assert directions == ["forward", "backward", "backward, active", BOTH] * 2
    assert {row["payload"] for row in rows_of(record, "peers")} == {"float32", "bfloat16"}
    assert {row["maps"] for row in rows_of(record, "worst")} == {"random", "one row"}


def test_state_sizes_are_not_only_powers_of_two() -> None:
    """And as many numbers of each, but for what does not come out even."""
    shapes = SWEEPS["N"]
    sizes = [shape.state_size for shape in shapes]
    assert (sizes[0], sizes[-1]) == (5, 256)
    assert sum(n & (n - 1) > 0 for n in sizes) >= 6
    assert any(n % 2 for n in sizes if n > 32)
    assert all(0.95 < shape.elements / SUITE[0].elements <= 1 for shape in shapes)


def test_a_row_holds_together(record: Record) -> None:
    for row in record["rows"]:
        assert row["least_ms"] <= row["ms"] <= row["most_ms"]
        assert row["spread"] == pytest.approx((row["most_ms"] - row["least_ms"]) / row["ms"])
        assert row["gb_per_s"] == pytest.approx(row["floor_bytes"] / row["ms"] / 1e6)
        assert row["of_roof"] == pytest.approx(row["floor_ms"] / row["ms"])
        assert row["runs"] == 3
        assert row["copies"] == 1
        assert row["template"] == "cpu-rows"
        assert row["chosen"]


def test_results_repeat_bit_by_bit(record: Record) -> None:
    assert all(row["same_bits"] is True for row in record["rows"])
    assert record["verdicts"]["same_bits"] == {"kernels": len(record["rows"]), "other": []}


def test_the_sum_moves_what_its_parts_move(record: Record) -> None:
    for shape in ("tiny", "wide"):
        found = {r["direction"]: r["floor_bytes"] for r in rows_of(record, "suite", shape=shape)}
        assert found[BOTH] == found["forward"] + found["backward, active"]
    elements = TINY.elements
    forward, both = (
        rows_of(record, "peers", payload="bfloat16", direction=direction)[0]["floor_bytes"]
        for direction in ("forward", BOTH)
    )
    assert (forward, both) == (16 * elements, (16 + 28) * elements)


def test_kernels_were_compiled_beforehand(record: Record) -> None:
    assert record["compiling"]["kernels"] >= 10
    assert record["compiling"]["failed"] == []
    single = [row for row in record["rows"] if row["direction"] != BOTH]
    assert {row["origin"] for row in single} == {"disk"}


def test_what_holds_over_rows(record: Record) -> None:
    found = record["verdicts"]
    worst = {(w["shape"], w["direction"]): w["of_random"] for w in found["worst_maps"]}
    assert len(worst) == 4
    for (shape, direction), ratio in worst.items():
        rows = rows_of(record, "worst", shape=shape, direction=direction)
        ms = {row["maps"]: row["ms"] for row in rows}
        assert ratio == pytest.approx(ms["one row"] / ms["random"])
    times = [row["ms"] for row in rows_of(record, "scaling", sweep="T")]
    assert found["lengths"] == pytest.approx(max(times) / min(times) - 1)


def test_the_loop_agrees_and_is_scaled_to_all_tokens(record: Record) -> None:
    assert [row["direction"] for row in record["loop"]] == ["forward", "backward"] * 2
    for row in record["loop"]:
        assert row["tokens"] == 4
        assert row["largest_error"] < 1e-5
        assert row["ratio"] == pytest.approx(row["loop"]["ms"] / row["scan"]["ms"])


def test_operators_that_are_not_there_are_said_to_be(record: Record) -> None:
    assert {row["peer"]: row["error"] for row in record["peers"]} == {
        "Mamba-2 SSD": "not installed: mamba-ssm",
        "gated delta rule": "not installed: flash-linear-attention",
    }


def test_the_tables(record: Record, capsys: pytest.CaptureFixture[str]) -> None:
    show(record, results())
    text = capsys.readouterr().out
    for piece in (
        "commit abc123", "copy roof", "cpu-rows *", "same bits",
        "not measured: peers, Mamba-2 SSD: not installed: mamba-ssm\n",
        "worst maps, tiny forward: ", "a constant number of tokens", "ps an element",
        "forward + backward, active", "wanted: at most 15%",
    ):  # fmt: skip
        assert piece in text


def test_a_kernel_that_cannot_be_compiled_is_a_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    obtain = precompile.obtain

    def fails_backward(source: Any, *arguments: Any) -> Any:
        if "forward" not in source.program.text.splitlines()[0]:
            raise ValueError("no such [instruction]\nand a long story")
        return obtain(source, *arguments)

    monkeypatch.setattr(precompile, "obtain", fails_backward)
    agenda = replace(AGENDA, sections=("suite",), shapes=(TINY,))
    record = benchmark(agenda, CPU, Clock.of(CPU), workers=0)
    told = "RuntimeError: not compiled: ValueError: no such [instruction]\nand a long story"
    errors = {(r["maps"], r["direction"]): r.get("error") for r in record["rows"]}
    assert errors == {
        (maps, direction): None if direction == "forward" else told
        for maps in ("permutation", "random")
        for direction in ("forward", "backward", "backward, active", BOTH)
    }
    assert len(record["compiling"]["failed"]) == 4
    show(record, results())
    text = capsys.readouterr().out
    line = "RuntimeError: not compiled: ValueError: no such [instruction]"
    assert f"not measured: suite, tiny, random, float32, backward, cpu-rows: {line}\n" in text
    assert "a long story" not in text


def test_a_kernel_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Bench, parts: Any) -> Any:
        raise RuntimeError("an illegal instruction was encountered")

    monkeypatch.setattr(Bench, "_timed", fails)
    agenda = replace(AGENDA, sections=("step", "scaling"))
    record = benchmark(agenda, CPU, Clock.of(CPU), workers=0)
    assert len(record["rows"]) == 2 + 9
    assert {row["error"] for row in record["rows"]} == {
        "RuntimeError: an illegal instruction was encountered"
    }
    assert record["verdicts"] == {}


def test_inputs_that_do_not_fit_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    calls_of = measure.calls_of

    def out_of_memory(shape: Any, *arguments: Any) -> Any:
        if shape.batch > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return calls_of(shape, *arguments)

    monkeypatch.setattr(measure, "calls_of", out_of_memory)
    agenda = replace(AGENDA, sections=("scaling",))
    record = benchmark(agenda, CPU, Clock.of(CPU), workers=0)
    errors = {row["shape"]: row.get("error") for row in record["rows"]}
    full = "CUDA out of memory"
    assert errors == {
        "T=8": full, "T=16": full, "T=32": None, "N=5": full, "N=8": full, "N=12": full,
        "N=16": full, "B=1": None, "B=2": full,
    }  # fmt: skip


def test_results_that_differ_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    run = measure.Call.__call__
    runs = iter(range(1000))

    def drifts(self: measure.Call) -> list[torch.Tensor]:
        return [output * (1 + 1e-3 * next(runs)) for output in run(self)]

    monkeypatch.setattr(measure.Call, "__call__", drifts)
    record = benchmark(replace(AGENDA, sections=("step",)), CPU, Clock.of(CPU), workers=0)
    assert record["verdicts"]["same_bits"] == {
        "kernels": 2,
        "other": [f"STEP {maps} forward cpu-rows" for maps in ("permutation", "random")],
    }


def test_a_run_that_is_cut_short_keeps_what_it_has() -> None:
    kept: list[int] = []
    agenda = replace(AGENDA, sections=("step", "scaling"))
    record = benchmark(
        agenda,
        CPU,
        Clock.of(CPU),
        workers=0,
        seconds=0,
        keep=lambda so_far: kept.append(len(so_far["rows"])),
    )
    assert record["rows"] == []
    assert record["left_out"][0] == "step STEP permutation"
    assert len(record["left_out"]) == 11
    benchmark(
        replace(AGENDA, sections=("step",)),
        CPU,
        Clock.of(CPU),
        workers=0,
        keep=lambda so_far: kept.append(len(so_far["rows"])),
    )
    assert kept == [0, 1, 2, 2]


def test_the_way_a_gpu_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the launches: graphs and events are the host's clock here."""
    asked: list[int] = []

    def replays(functions: Any, runs: int, least_calls: int) -> timing.Times:
        asked.append(len(functions))
        return timing.host_times(timing.in_turn(functions), runs)

    monkeypatch.setattr(timing, "graph_times", replays)
    monkeypatch.setattr(timing, "device_times", timing.host_times)
    kept = []
    same = Bench._timed

    def timed(self: Bench, parts: Any) -> Any:
        kept.append(same(self, parts))
        return kept[-1]

    monkeypatch.setattr(Bench, "_timed", timed)
    clock = Clock(on_gpu=True, cache_bytes=1 << 12)
    record = benchmark(replace(AGENDA, sections=("suite", "step")), CPU, clock, workers=0)
    assert [row["copies"] for row in record["rows"]] == asked
    for row in record["rows"]:
        assert row["copies"] == -(-4 * 4096 // row["floor_bytes"])
        assert row["same_bits"]
    # A step: states in and out beside a token's own.
    assert {row["floor_bytes"] for row in rows_of(record, "step")} == {40 * AGENDA.step.elements}
    assert session.copy_roof(CPU, clock) > 0
