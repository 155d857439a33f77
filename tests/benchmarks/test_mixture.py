"""The layer of the benchmarks: what is timed is a step of training, and what it is held to."""

from typing import Any

import torch

from benchmarks.layer_sizes import LAYERS
from benchmarks.mixture import IdentityLayer, mixture_programs, step_call
from benchmarks.tables import show
from benchmarks.targets import MIXTURE_MS, MIXTURE_RATIO
from pdssm_compiler.cli.consoles import results
from pdssm_compiler.nn import PDSSM
from pdssm_compiler.runtime.plan import plans
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


def test_what_a_step_runs_is_compiled_before() -> None:
    texts = {text for text, _ in mixture_programs(LAYER)}
    before = {plan.program.text for plan in plans()}
    for kind in (PDSSM, IdentityLayer):
        step_call(LAYER, CPU, kind)()
    ran = {plan.program.text for plan in plans() if plan.program.state_size == LAYER.state_size}
    assert len(texts) == 6
    assert texts <= ran
    # Beside those of tests before this one in the process.
    assert ran - texts <= before


def test_rows(record: dict[str, Any], capsys: Any) -> None:
    identity, mixed, choice = record["mixture"]
    assert [row["maps"] for row in record["mixture"]] == ["identity", "mixed", "choice alone"]
    assert mixed["of_identity"] == mixed["ms"] / identity["ms"]
    assert choice["tera_fma_per_s"] > 0
    assert identity["sizes"] == {"B": 2, "T": 5, "D": 8, "N": 6, "K": 3}
    show(record, results())
    assert "PD-SSM layer, forward and backward" in capsys.readouterr().out
