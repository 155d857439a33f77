"""The logs that come with the package: every row is one, and names what is there."""

from pathlib import Path

import pytest

from pdssm_compiler.runtime.tuning.log import (
    folder_name,
    logs_below,
    program_of_log,
    read_log,
    shipped_logs,
)
from pdssm_compiler.schedules.registry import TEMPLATES

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


def test_nothing_predicted_is_shipped() -> None:
    assert len(LOGS) >= 22
    assert sorted(shipped_logs().glob("*/*.jsonl")) == LOGS
