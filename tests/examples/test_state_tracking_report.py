"""What several commands gave, in one file and one table."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.state_tracking.machines import machine, transitions
from examples.state_tracking.report import HEAD, gather, markdown, rows
from tests.examples.test_state_tracking import command

ABOUT = {
    "device": "NVIDIA H200", "threads": 2, "versions": {"torch": "2.11.0"},
    "commit": "b786560", "matrix_products": "high",
}  # fmt: skip


def a_run(task: str, seed: int, *measured: tuple[int, float, float]) -> dict[str, Any]:
    names = ("step", "accuracy", "seconds")
    return {
        "settings": {"task": task, "model": "pdssm", "seed": seed, "enough": 0.9995},
        "done": True,
        "best": max(accuracy for _, accuracy, _ in measured),
        "log": [dict(zip(names, line, strict=True)) | {"loss": 0.5} for line in measured],
    }


def stored(folder: Path, name: str, content: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def folders(tmp_path: Path) -> list[Path]:
    """Two tables, trained five and three at once, and what was measured of two of their runs."""
    parity = [
        a_run("parity", 0, (100, 0.5, 1.2), (200, 1.0, 2.4)),
        a_run("parity", 1, (100, 1, 1)),
    ]
    group = [a_run("S5-32", 0, (100, 0.25, 3.1))]
    table2 = stored(
        tmp_path / "2", "results", ABOUT | {"together": 5, "date": "a", "runs": parity}
    )
    table3 = stored(tmp_path / "3", "results", ABOUT | {"together": 3, "date": "b", "runs": group})
    states = {"read": 7, "as small as can be": 2, "true": 2}
    automata = [
        {"run": "parity-pdssm-0", "states": states, "difference": None},
        {"run": "parity-pdssm-1", "states": states, "difference": [1, 2]},
        {"run": "S5-32-pdssm-0", "states": states, "difference": [3, 1, 2]},
    ]
    lengths = [
        {"run": "parity-pdssm-0", "length": 40, "accuracy": 1.0, "sequences": 9},
        {"run": "parity-pdssm-0", "length": 256, "accuracy": 1.0, "sequences": 9},
        {"run": "parity-pdssm-1", "length": 40, "accuracy": 1.0, "sequences": 9},
        {"run": "parity-pdssm-1", "length": 256, "accuracy": 0.9, "sequences": 9},
    ]
    measured = stored(tmp_path / "m", "automata", {"device": "CPU", "automata": automata})
    stored(measured, "lengths", {"device": "CPU", "lengths": lengths})
    return [table2, table3, measured]


def test_what_was_gathered(tmp_path: Path) -> None:
    found = gather(folders(tmp_path), "beside a tuner")
    assert {name: found[name] for name in ABOUT} == ABOUT
    assert found["note"] == "beside a tuner"
    assert [(run["together"], run["date"]) for run in found["runs"]] == [(5, "a")] * 2 + [(3, "b")]
    assert found["automata"]["device"] == found["lengths"]["device"] == "CPU"
    parity, group = (dict(zip(HEAD, row, strict=True)) for row in rows(found))
    assert parity == {
        "task": "parity", "model": "pdssm", "seeds": "2", "accuracy, %": "100.0",
        "published": "99.9", "steps": "100 to 200", "seconds": "1 to 2", "beside": "4",
        "states read, least, true": "7, 2, 2; 7, 2, 2", "the task's": "1 of 2",
        "all right up to": "40 (2)",
    }  # fmt: skip
    assert (group["accuracy, %"], group["published"]) == ("25.0", "1.07")
    assert (group["steps"], group["seconds"], group["beside"]) == ("100", "3", "2")
    assert (group["the task's"], group["all right up to"]) == ("not after 3 1 2", "")
    assert markdown(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_the_command(tmp_path: Path) -> None:
    """Its file is what was gathered; pictures are beside it."""
    out = tmp_path / "new" / "all.json"
    places = folders(tmp_path)
    code, said = command("report", *map(str, places), "--out", str(out), "--note", "[noted]")
    assert code == 0, said
    assert "| S5-32 | pdssm | 1 | 25.0 | 1.07 | 100 | 3 | 2 |" in said
    assert json.loads(out.read_text()) == gather(places, "[noted]")
    drawn = {path.name for path in out.parent.glob("*.png")}
    assert drawn == {"all-pdssm.png", "all-times.png", "all-lengths.png"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"commit": "116a54c"}, "3 was trained elsewhere, or by another commit, than the folders"),
        ({"device": "CPU"}, "3 was trained elsewhere, or by another commit, than the folders"),
        (None, "3 has no results.json, automata.json or lengths.json"),
    ],
)
def test_what_does_not_belong_together(
    tmp_path: Path, changed: dict[str, str] | None, message: str
) -> None:
    places = folders(tmp_path)
    path = places[1] / "results.json"
    if changed is None:
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    out = tmp_path / "all.json"
    code, said = command("report", *map(str, places), "--out", str(out))
    assert code == 2
    assert message in " ".join(said.replace("│", " ").split())
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results", "{", "results.json is not what a command stores (JSONDecodeError"),
        ("results", "[]", "results.json is not what a command stores (TypeError"),
        (
            "results",
            '{"runs": []}',
            "results.json is not what a command stores (KeyError: 'device",
        ),
        (
            "results",
            '{"runs": [{}]}',
            "results.json is not what a command stores (KeyError: 'sett",
        ),
        ("automata", '{"automata": [{}]}', "automata.json is not what a command stores (KeyError"),
        ("lengths", '{"lengths": 3}', "lengths.json is not what a command stores (TypeError"),
    ],
)
def test_what_is_damaged_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / f"{name}.json").write_text(content)
    code, said = command("report", str(tmp_path), "--out", str(tmp_path / "all.json"))
    assert code == 2
    assert message in " ".join(said.replace("│", " ").split())
    assert not (tmp_path / "all.json").exists()


def test_a_run_that_has_no_measurement_or_is_there_twice(tmp_path: Path) -> None:
    places = folders(tmp_path)
    with pytest.raises(ValueError, match=r"3 has S5-32-pdssm-0 as a folder before it; gather one"):
        gather([*places, places[1]], "")
    path = places[1] / "results.json"
    found = json.loads(path.read_text())
    found["runs"][0]["log"] = []
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"no measurement of S5-32-pdssm-0 yet; go on with its"):
        gather(places, "")


def test_measured_twice_or_nothing_trained(tmp_path: Path) -> None:
    places = folders(tmp_path)
    with pytest.raises(ValueError, match=r"m is the second with automata\.json; gather one"):
        gather([*places, places[2]], "")
    with pytest.raises(ValueError, match=r"no folder has a results\.json"):
        gather(places[2:], "")


def test_the_tables_of_the_page_are_those_of_the_stored_runs() -> None:
    root = Path(__file__).resolve().parents[2]
    found = root / "examples/state_tracking/results/nvidia-h200-steady.json"
    page = (root / "docs/state-tracking.md").read_text().splitlines()
    head, _, *lines = markdown(HEAD, rows(json.loads(found.read_text()))).splitlines()
    assert page.count(head) == 2
    assert [line for line in page if line in lines] == lines


@given(st.data())
def test_machines_that_are_alike_are_told_alike(data: st.DataObject) -> None:
    """Whatever their states are called, and in whatever order they were made."""
    count, letters = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    states = st.integers(0, count - 1)
    leads = data.draw(st.lists(st.lists(states, min_size=letters, max_size=letters),
                               min_size=count, max_size=count))  # fmt: skip
    names = data.draw(st.permutations(range(count)))
    back = {name: state for state, name in enumerate(names)}
    one = machine(0, letters, lambda s, n: leads[s][n - 1], lambda s: 1 + s)
    other = machine(
        names[0], letters, lambda s, n: names[leads[back[s]][n - 1]], lambda s: 1 + back[s]
    )
    other.states.reverse()

    def numbered(told: dict[str, tuple[int | None, dict[int, str]]]) -> list[Any]:
        number = {name: place for place, name in enumerate(told)}
        return [(answer, {n: number[to] for n, to in to.items()}) for answer, to in told.values()]

    first, second = transitions(one), transitions(other)
    assert len(first) == len(one.states)
    assert numbered(dict(first)) == numbered(dict(second))
