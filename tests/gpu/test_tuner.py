"""The tuner on a GPU: what a candidate does to the device is a row, and the next one does not meet
it.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.tuning import resolve
from pdssm_compiler.runtime.tuning.effort import Effort
from pdssm_compiler.runtime.tuning.tuner import Limits, tune_problems
from pdssm_compiler.schedules.registry import TEMPLATES
from pdssm_compiler.schedules.templates.cuda_rows import CudaRows, CudaRowsConfig
from tests.runtime.tuning.planted import Does, Planted, PlantedConfig, PlantedProblem, plant

# In this order, so that a right one follows what was bad.
BAD = {
    Does.breaks_the_device: ("crash", "device-side assert"),
    Does.hangs: ("hang", "no answer after 15 s"),
    Does.takes_too_much: ("out-of-resource", "out of memory"),
    Does.wrong_values: ("wrong", "states["),
}


@pytest.fixture(autouse=True)
def _planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Two right kernels of one template, and the bad ones."""
    monkeypatch.setenv(settings.CACHE_DIR, str(tmp_path))
    for name in set(TEMPLATES) - {"cuda-rows"}:
        monkeypatch.delitem(TEMPLATES, name)
    monkeypatch.setattr(CudaRows, "space", lambda *_: iter([CudaRowsConfig(8, 4)]))
    plant(monkeypatch.setitem)
    does = (Does.right, *BAD, Does.right_after_all)
    monkeypatch.setattr(Planted, "space", lambda *_: map(PlantedConfig, map(int, does)))
    resolve.forget()
    yield
    resolve.forget()


@pytest.mark.timeout(300)
def test_what_a_candidate_does_to_the_device_is_a_row(device: torch.device) -> None:
    program = pd_scan(PdScan(32, 3))
    problem = PlantedProblem(program.text, "planted", "forward", Sizes(2, 50, 3), str(device))
    limits = Limits(measure_seconds=15)
    (result,) = tune_problems([problem], Effort(100, 3, 0.05, 1e9, 9), limits=limits)
    assert result.complete
    planted = {Does(r.config["does"]): r for r in result.rows if r.template == "planted"}
    found = {does: (planted[does].status, planted[does].error) for does in BAD}
    for does, (status, told) in BAD.items():
        assert found[does][0] == status, found
        assert told in (found[does][1] or ""), found
    assert (planted[Does.right].status, planted[Does.right_after_all].status) == ("ok", "ok")
    assert result.winner is not None
    assert result.winner.template == "cuda-rows"
    # This process has not met any of it.
    assert torch.ones(3, device=device).sum().item() == 3
