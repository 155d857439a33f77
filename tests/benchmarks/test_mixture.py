"""The layer of the benchmarks: what is timed is a step of training, and what it is held to."""

from typing import Any

import torch

from benchmarks.layer_sizes import LAYERS
from benchmarks.mixture import IdentityLayer, step_call
from benchmarks.tables import show
from benchmarks.targets import MIXTURE_MS, MIXTURE_RATIO
from pdssm_compiler.cli.consoles import results
from tests.benchmarks.conftest import CPU, LAYER


def test_every_layer_has_a_target() -> None:
    assert {layer.name for layer in LAYERS} == {*MIXTURE_MS, *MIXTURE_RATIO}


def test_a_step_has_every_gradient() -> None:
    found = step_call(LAYER, CPU)()
    assert len(found) == 1 + len(list(IdentityLayer(8, state_size=6).parameters()))
    assert all(grad.isfinite().all() for grad in found)
    # All but the selector's and the dictionary's, and those before them are of other numbers.
    identity = step_call(LAYER, CPU, IdentityLayer)()
    assert len(identity) == len(found) - 2
    assert not torch.equal(found[0], identity[0])


def test_rows(record: dict[str, Any], capsys: Any) -> None:
    identity, mixed, choice = record["mixture"]
    assert [row["maps"] for row in record["mixture"]] == ["identity", "mixed", "choice alone"]
    assert mixed["of_identity"] == mixed["ms"] / identity["ms"]
    assert choice["tera_fma_per_s"] > 0
    assert identity["sizes"] == {"B": 2, "T": 5, "D": 8, "N": 6, "K": 3}
    show(record, results())
    assert "PD-SSM layer, forward and backward" in capsys.readouterr().out
