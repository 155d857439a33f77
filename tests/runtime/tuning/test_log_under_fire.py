"""Logs under fire: many processes tune the same, are killed at any moment, meet damaged lines and
full disks. What is measured is measured once, what is damaged is told, and nobody waits for ever.
"""

import json
import random
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from pdssm_compiler.runtime.tuning.log import read_log
from tests.runtime.forked import CONTEXT
from tests.runtime.killing import kill_at_random
from tests.runtime.tuning import under_fire as fire


def started(act: Any, *arguments: Any) -> BaseProcess:
    process = CONTEXT.Process(target=act, args=arguments)
    process.start()
    return process


def ended(process: BaseProcess) -> int | None:
    process.join(fire.PATIENCE)
    if process.exitcode is None:
        process.kill()
        raise AssertionError("it hangs")
    return process.exitcode


def logs(root: Path) -> list[Path]:
    return sorted(root.glob("autotune_logs/*/*.jsonl"))


def tuned(root: Path, seed: int, told: Path) -> dict[str, Any]:
    """What a process finds that tunes everything and is left alone."""
    assert ended(started(fire.tune_all, root, seed, told)) == fire.GOOD
    return json.loads(told.read_text())


def test_sixteen_processes_tune_the_same_once(tmp_path: Path) -> None:
    told = [tmp_path / f"{number}.json" for number in range(16)]
    running = [
        started(fire.tune_all, tmp_path / "cache", number, path)
        for number, path in enumerate(told)
    ]
    assert [ended(process) for process in running] == [fire.GOOD] * 16
    found = [json.loads(path.read_text()) for path in told]
    assert all(each["complete"] for each in found)
    assert [each["said"] for each in found] == [[]] * 16
    # All candidates of each bucket, and at the end again the best and the heuristic, once for all
    # processes.
    measured = len(fire.LENGTHS) * (len(fire.CANDIDATES) + 2)
    assert sum(each["asked"] for each in found) == measured
    assert len({json.dumps(each["rows"], sort_keys=True) for each in found}) == 1
    assert {json.dumps(each["taken"]) for each in found} == {
        json.dumps({str(n): str(fire.BEST) for n in fire.LENGTHS})
    }
    (log,) = logs(tmp_path / "cache")
    assert read_log(log)[1] == []


@pytest.mark.parametrize(
    ("kills", "spoilers"),
    [
        pytest.param(8, 1, id="short"),
        pytest.param(200, 0, id="killed", marks=pytest.mark.stress),
        pytest.param(200, 2, id="killed and spoilt", marks=pytest.mark.stress),
    ],
)
@pytest.mark.timeout(600)
def test_killed_at_random(kills: int, spoilers: int, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    chance = random.Random(kills + spoilers)
    spoiling = [started(fire.spoil_forever, root, seed) for seed in range(spoilers)]
    kill_at_random(
        partial(started, fire.tune_forever, root),
        ended,
        spoiling,
        kills=kills,
        pause=0.4,
        chance=chance,
    )
    # Who comes next is told what is damaged, goes on, and finds what there is to find. (A flipped
    # bit may make one time another.)
    last = tuned(root, 0, tmp_path / "told.json")
    assert last["complete"]
    assert all(message.startswith("tuning log: ") for message in last["said"])
    if not spoilers:
        assert set(last["taken"].values()) == {str(fire.BEST)}
        (log,) = logs(root)
        # Whole lines but for those of the killed.
        assert len(read_log(log)[1]) <= kills


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    assert ended(started(fire.tune_in_little_room, root, 3000)) == fire.GOOD
    (log,) = logs(root)
    rows, wrong = read_log(log)
    assert 0 < len(rows) < len(fire.CANDIDATES)
    assert len(wrong) == 1
    # With room it goes on, and the torn line is told.
    found = tuned(root, 0, tmp_path / "told.json")
    assert found["complete"]
    assert any(f"{log}:{len(rows) + 1} is passed over: no JSON" in each for each in found["said"])
    assert set(found["taken"].values()) == {str(fire.BEST)}
