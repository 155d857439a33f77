"""The logs that come with the package: every row is one, and names what is there."""

from dataclasses import fields
from pathlib import Path

import pytest

from pdssm_compiler.runtime.compile_service import choose
from pdssm_compiler.runtime.tuning.log import (
    folder_name,
    logs_below,
    program_of_log,
    read_log,
    shipped_logs,
)
from pdssm_compiler.runtime.tuning.rows import Row
from pdssm_compiler.runtime.tuning.winners import winner
from pdssm_compiler.schedules.registry import TEMPLATES
from pdssm_compiler.schedules.target import named_target

LOGS = logs_below(shipped_logs())


@pytest.mark.parametrize("path", LOGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_shipped_log_holds(path: Path) -> None:
    rows, wrong = read_log(path)
    assert wrong == []
    assert rows
    for row in rows:
        assert row.status == "ok"
        assert folder_name(row.device) == path.parent.name
        assert path.stem.endswith(row.program[:16])
        config = TEMPLATES[row.template].config_type(**row.config)
        assert TEMPLATES[row.template].accepts(config)
        assert len(row.commit.removesuffix("-modified")) == 40
        # So that a cost model knows what was measured.
        program = program_of_log(path, [shipped_logs()])
        assert program is not None
        assert program.fingerprint == row.program


GPUS = {"nvidia-h100-80gb-hbm3": ("h100", 15), "nvidia-h200": ("h200", 50)}
# What untuned calls may take, over the best that was measured.
UNTUNED = 1.15


@pytest.mark.parametrize("folder", GPUS)
def test_untuned_calls_are_near_the_best_that_was_measured(folder: str) -> None:
    """By today's heuristics, where the log has what they say: on every shape of the suite, and on
    those that were drawn at random.
    """
    name, least = GPUS[folder]
    target, ratios = named_target(name), {}
    for path in (path for path in LOGS if path.parent.name == folder):
        program = program_of_log(path, [shipped_logs()])
        assert program is not None
        races: dict[object, list[Row]] = {}
        for row in read_log(path)[0]:
            races.setdefault(row.race, []).append(row)
        for rows in races.values():
            best = winner(rows)
            assert best is not None
            assert best.ms is not None
            now = choose(program, target, None, best.bucket, logs=False)
            for row in rows:
                if row.template != now.template.name or row.ms is None:
                    continue
                config = now.template.config_type(**row.config)
                for name in {each.name for each in fields(config)} - set(row.config):
                    if getattr(config, name) != getattr(now.config, name):
                        config = config.renewed(name, getattr(now.config, name)) or config
                if config == now.config:
                    ratios[f"{row.label} {row.direction}"] = row.ms / best.ms
    assert {label: ratio for label, ratio in ratios.items() if ratio > UNTUNED} == {}
    assert len(ratios) >= least


def test_nothing_predicted_is_shipped() -> None:
    assert len(LOGS) >= 22
    assert sorted(shipped_logs().glob("*/*.jsonl")) == LOGS
