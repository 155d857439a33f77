"""A run over tiny sizes on the CPU, which the tests look at from all sides."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.cases import Agenda
from benchmarks.layer_sizes import Layer
from benchmarks.problems import LayerSizes, sweeps
from benchmarks.session import benchmark
from pdssm_compiler.runtime.tuning.timing import Clock
from pdssm_compiler.suite import Shape

TINY = Shape("tiny", 2, 8, 2, 8, 4)
LAYER = Layer("layer", 8, 6, 3, 2, 5)
AGENDA = Agenda(
    shapes=(TINY, replace(TINY, name="wide", heads=3)),
    step=Shape("STEP", 4, 1, 2, 8, 4),
    sweeps=sweeps(TINY, tokens=32, shortest=8, batches=2),
    peers=TINY,
    fused=(TINY,),
    mixture=(LAYER,),
    layers=LayerSizes(16, 8, (4, 8), tokens=16, decoded=2, backend="eager"),
    loop_tokens=4,
    sections=("suite", "worst", "scaling", "step", "fused", "layers", "mixture", "loop", "peers"),
    runs=3,
)
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def record() -> dict[str, Any]:
    """The record of a whole run, but for the host's own costs; kernels compiled by other
    processes.
    """
    return benchmark(AGENDA, CPU, Clock.of(CPU), workers=2, commit="abc123")


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables as wide as they need to be, whatever the tests run in."""
    monkeypatch.delenv("COLUMNS", raising=False)
