"""Tuning logs: what is written is read again, and what is no row is told."""

import json
import multiprocessing
import os
import re
from contextlib import nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pdssm_compiler.runtime.errors import TuningWarning
from pdssm_compiler.runtime.tuning.log import (
    append_rows,
    file_name,
    folder_name,
    keep_program,
    program_of_log,
    read_log,
    warned_rows,
)
from pdssm_compiler.runtime.tuning.rows import FIGURES, STATUSES, Row, RowError, read_row
from pdssm_compiler.runtime.tuning.shipping import best_rows
from pdssm_compiler.runtime.tuning.winners import winners
from pdssm_compiler.schedules.templates.base import Problem
from pdssm_compiler.schedules.templates.torch_chunks import TorchChunksConfig
from tests.runtime.tuning.made_rows import PROGRAM, predicted, row


@given(
    st.sampled_from(sorted(STATUSES)),
    st.floats(1e-6, 1e6),
    st.integers(1, 1 << 20),
    st.text(max_size=20),
)
def test_a_row_is_read_as_it_was_written(status: str, ms: float, length: int, error: str) -> None:
    made = row(status=status, ms=ms if status == "ok" else None, length=length, error=error)
    if status == "predicted":
        made = predicted(ms, length=length)
    assert made.line().endswith("\n")
    assert made.line().count("\n") == 1
    assert read_row(made.line()) == made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predicted_ms": 0.0}, "predicted_ms is a time above 0, not 0.0"),
        ({"predicted_ms": None}, "a row has predicted_ms exactly if its status is predicted"),
        ({"basis": None}, "a row has basis exactly if its status is predicted"),
        ({"ms": 1.0}, "a row has a time exactly if its status is ok"),
        ({"figures": None}, "a predicted row has a spread, and the figures of its GPU"),
        ({"spread": None}, "a predicted row has a spread, and the figures of its GPU"),
    ],
)
def test_what_is_no_predicted_row(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError) as told:
        read_row(json.dumps(asdict(predicted()) | change))
    assert message in str(told.value)


def test_a_programs_text_stands_beside_its_logs(tmp_path: Path) -> None:
    log = tmp_path / "a-gpu" / file_name(PROGRAM)
    assert program_of_log(log, [tmp_path]) is None
    keep_program(tmp_path, PROGRAM)
    (kept,) = (tmp_path / "programs").iterdir()
    assert kept.read_text() == PROGRAM.text
    assert program_of_log(log, [tmp_path / "none", tmp_path]) == PROGRAM
    # What it is not is not taken for it.
    kept.write_text(PROGRAM.text.replace("scan N=6", "scan N=7"))
    assert program_of_log(log, [tmp_path]) is None
    kept.write_text("no program")
    assert program_of_log(log, [tmp_path]) is None


def test_a_config_stands_in_full() -> None:
    stored = json.loads(row(TorchChunksConfig(), "torch-chunks").line())
    assert stored["config"] == {"chunk_length": None, "split": False, "compiled": False}
    assert stored["schema"] == 1


def test_a_row_stands_for_the_sizes_of_its_bucket() -> None:
    assert row(batch=4, heads=2, length=100).bucket == Problem.bucket(8, 100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "the row has schema 2, and this version reads 1"),
        ({"surprise": 1}, "unknown field 'surprise'"),
        ({"heads": True}, "heads must be int, got True"),
        ({"ms": "fast"}, "ms must be float or NoneType, got 'fast'"),
        ({"ms": None}, "a row has a time exactly if its status is ok"),
        ({"ms": -1.0}, "ms is a time above 0, not -1.0"),
        ({"again_ms": 0.0}, "again_ms is a time above 0, not 0.0"),
        ({"floor_ms": -1.0}, "floor_ms is a time above 0, not -1.0"),
        ({"spread": float("nan")}, "spread is at least 0, not nan"),
        ({"changes": -5}, "changes is at least 0, not -5"),
        ({"status": "fine"}, "unknown status 'fine'; there are ok, wrong, crash"),
        ({"batch": 0}, "batch is at least 1, not 0"),
        ({"config": {"tile": "8"}}, "the config's tile must be an int, true, false or null"),
        ({"versions": {"torch": 2}}, "the version of torch must be text, got 2"),
        ({"predicted_ms": 1.0}, "a row has predicted_ms exactly if its status is predicted"),
        ({"status": "predicted", "ms": None}, "a row has predicted_ms exactly if its status"),
        ({"figures": []}, "figures must be dict or NoneType, got []"),
        ({"figures": {"bandwidth": 1}}, "figures are warp_size, processors, registers, shared"),
        ({"figures": dict.fromkeys(FIGURES, 0.5)}, "must be an int of at least 0, got 0.5"),
    ],
)
def test_what_is_no_row(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError) as told:
        read_row(json.dumps(asdict(row()) | change))
    assert message in str(told.value)


_JSON = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.just([]), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


@given(st.dictionaries(st.sampled_from([f.name for f in fields(Row)]), _JSON, max_size=3))
def test_whatever_is_read_as_a_row_can_be_chosen_from(change: dict[str, Any]) -> None:
    """Who edits a log by hand, or finds it damaged, is told, and no call fails for it."""
    try:
        made = read_row(json.dumps(asdict(row()) | change))
    except RowError:
        return
    other = row(ms=2.0, heuristic=True, again_ms=1.5)
    for rows in ([made], [made, other], [other, made]):
        assert len(winners(rows)) <= 2
        assert set(map(Row.line, best_rows(rows))) <= {made.line(), other.line()}
    assert read_row(made.line()) == made


def test_a_field_that_is_missing_is_named() -> None:
    told = asdict(row())
    del told["template"]
    with pytest.raises(RowError, match="the field 'template' is missing"):
        read_row(json.dumps(told))
    with pytest.raises(RowError, match="no JSON"):
        read_row("{")
    with pytest.raises(RowError, match="a row is a JSON object"):
        read_row("[]")


def test_rows_are_added(tmp_path: Path) -> None:
    path = tmp_path / "gpu" / "program.jsonl"
    assert read_log(path) == ([], [])
    first, second, third = (row(ms=float(n)) for n in (1, 2, 3))
    append_rows(path, [first])
    append_rows(path, [])
    append_rows(path, [second, third])
    assert read_log(path) == ([first, second, third], [])


@pytest.mark.parametrize("torn", range(1, 40, 7))
def test_a_torn_last_line_is_told_and_stays_alone(tmp_path: Path, torn: int) -> None:
    path = tmp_path / "program.jsonl"
    append_rows(path, [row(ms=1.0), row(ms=2.0)])
    path.write_bytes(path.read_bytes()[:-torn])
    lost = torn > 1  # without its end of line alone, the row is whole
    with (
        pytest.warns(TuningWarning, match="program.jsonl:2 is passed over")
        if lost
        else nullcontext()
    ):
        kept = warned_rows(path)
    assert [r.ms for r in kept] == [1.0] if lost else [1.0, 2.0]
    append_rows(path, [row(ms=3.0)])
    rows, wrong = read_log(path)
    assert [r.ms for r in rows] == [*(r.ms for r in kept), 3.0]
    assert len(wrong) == int(lost)


def test_bytes_that_are_no_text_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "program.jsonl"
    path.write_bytes(b"\xff\xfe\x00\n" + row().line().encode())
    rows, wrong = read_log(path)
    assert rows == [row()]
    assert len(wrong) == 1


def _add(path: Path, writer: int) -> None:
    for number in range(20):
        append_rows(path, [row(batch=writer, length=number + 1) for _ in range(3)])


def test_processes_add_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "program.jsonl"
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_add, args=(path, n)) for n in (1, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    rows, wrong = read_log(path)
    assert wrong == []
    for writer in (1, 2):
        mine: list[Row] = [r for r in rows if r.batch == writer]
        assert [r.length for r in mine] == [n + 1 for n in range(20) for _ in range(3)]


def test_a_device_has_a_folder() -> None:
    assert folder_name("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert folder_name("Intel(R) Xeon(R) Processor") == "intel-r-xeon-r-processor"
    assert folder_name("NVIDIA A100-SXM4-80GB") == "nvidia-a100-sxm4-80gb"
    assert (
        folder_name("AMD Ryzen 9 7950X 16-Core Processor") == "amd-ryzen-9-7950x-16-core-processor"
    )
    assert folder_name("Intel(R) Xeon(R) CPU @ 2.20GHz") == "intel-r-xeon-r-cpu-2-20ghz"
    assert folder_name("cuda:sm_90") == "cuda-sm-90"


@given(st.text(), st.text())
@example("../..", "./.")
@example("", "..")
@example("显卡", "グラフィック")
@example("RTX 4090+", "RTX 4090")
@example("RTX 4090*", "RTX 4090+")
@example("x" * 300, "x" * 301)
@example("\ud800", "\ud801")
def test_a_folders_name_is_one_and_short(device: str, other: str) -> None:
    made = folder_name(device)
    assert re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", made)
    assert len(made) <= 120
    told = [re.sub(r"[ ()@.:_-]+", "-", name.lower()).strip("-") for name in (device, other)]
    if told[0] != told[1]:
        assert made != folder_name(other)


def test_pipes_and_deep_nesting_are_told(tmp_path: Path) -> None:
    pipe = tmp_path / "n6.jsonl"
    os.mkfifo(pipe)
    assert read_log(pipe) == ([], [f"{pipe} is no file"])
    deep = tmp_path / "deep.jsonl"
    deep.write_text("[" * 100_000 + "\n" + row().line())
    rows, (wrong,) = read_log(deep)
    assert rows == [row()]
    assert wrong.startswith(f"{deep}:1 is passed over: no JSON: ")
