"""Peers' operators, called as their packages publish them; the packages are stand-ins here."""

import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks.calls import BOTH
from benchmarks.peers import NotInstalledError, forward_and_backward, gated_delta_rule, ssd
from benchmarks.session import benchmark
from benchmarks.tables import show
from pdssm_compiler.cli.consoles import results
from pdssm_compiler.runtime.tuning.timing import Clock
from pdssm_compiler.suite import Shape
from tests.benchmarks.conftest import AGENDA, CPU

LM = Shape("LM", 2, 6, 16, 64, 4)  # d_model of 1024


def plant(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Callable[..., Any]) -> None:
    """A module of that name, and the packages above it."""
    parts = name.split(".")
    for end in range(1, len(parts)):
        package = ModuleType(".".join(parts[:end]))
        package.__path__ = []  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, package.__name__, package)
    module = ModuleType(name)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)


def stub_ssd(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_size: int,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    dt_bias: torch.Tensor | None = None,
    initial_states: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    cu_seqlens: torch.Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
) -> torch.Tensor:
    """The published signature; of the published shapes and dtypes nothing else is taken."""
    batch, length, heads, _ = x.shape
    assert dt.shape == (batch, length, heads)
    assert A.shape == (heads,)
    assert B.shape == C.shape == (batch, length, 1, 128)
    assert {t.dtype for t in (x, dt, B, C)} == {torch.bfloat16}
    assert (A < 0).all()
    assert (chunk_size, dt_softplus) == (256, True)
    mixed = (B * C).sum(-1, keepdim=True)
    step = torch.nn.functional.softplus(dt) * A.exp()
    return (x * step[..., None] * mixed).to(x.dtype)


def stub_delta(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    scale: float | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[torch.Tensor, None]:
    """Likewise."""
    assert q.shape == k.shape
    assert q.shape[:3] == v.shape[:3] == g.shape == beta.shape
    assert (k.shape[3], v.shape[3]) == (256, 512)
    assert {t.dtype for t in (q, k, v, beta)} == {torch.bfloat16}
    assert (g <= 0).all()
    assert torch.allclose(k.float().norm(dim=-1), torch.ones(()), atol=0.02)
    weight = (q * k).sum(-1) * beta * g.exp()
    return (v * weight[..., None]).to(v.dtype), None


SSD, DELTA = "mamba_ssm.ops.triton.ssd_combined", "fla.ops.gated_delta_rule"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, SSD, mamba_chunk_scan_combined=stub_ssd)
    plant(monkeypatch, DELTA, chunk_gated_delta_rule=stub_delta)


@pytest.mark.usefixtures("installed")
def test_the_ssd_of_a_layer_of_our_width() -> None:
    bound = ssd(LM, CPU)
    assert bound.forward().shape == (2, 6, 32, 64)
    assert bound.sizes == "32 heads of 64, state 128, chunks of 256"
    _every_gradient(bound, 5)


@pytest.mark.usefixtures("installed")
def test_the_delta_rule_of_our_width() -> None:
    bound = gated_delta_rule(LM, CPU)
    assert bound.forward().shape == (2, 6, 4, 512)
    assert bound.sizes == "4 heads, 256×512"
    _every_gradient(bound, 5)


def _every_gradient(bound: Any, count: int) -> None:
    grads = forward_and_backward(bound)()
    assert isinstance(grads, tuple)
    assert len(grads) == len(bound.leaves) == count
    for grad, leaf in zip(grads, bound.leaves, strict=True):
        assert grad.shape == leaf.shape
        assert grad.abs().max() > 0


@pytest.mark.usefixtures("installed")
def test_a_run_holds_ours_to_them(capsys: pytest.CaptureFixture[str]) -> None:
    agenda = replace(AGENDA, sections=("peers",), peers=LM)
    record = benchmark(agenda, CPU, Clock.of(CPU), workers=0)
    ours = {(r["payload"], r["direction"]): r["eager_ms"] for r in record["rows"]}
    assert [(r["peer"], r["direction"]) for r in record["peers"]] == [
        (peer, direction)
        for peer in ("Mamba-2 SSD", "gated delta rule")
        for direction in ("forward", "forward + backward")
    ]
    for row in record["peers"]:
        beside = "forward" if row["direction"] == "forward" else BOTH
        assert row["of_ours"] == {
            payload: pytest.approx(row["ms"] / ours[payload, beside])
            for payload in ("float32", "bfloat16")
        }
    show(record, results())
    text = capsys.readouterr().out
    assert "4 heads, 256×512" in text
    assert "of ours, bfloat16" in text


def test_one_that_fails_leaves_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ValueError("needs a GPU")

    plant(monkeypatch, SSD, mamba_chunk_scan_combined=fails)
    plant(monkeypatch, DELTA, chunk_gated_delta_rule=stub_delta)
    record = benchmark(
        replace(AGENDA, sections=("peers",), peers=LM), CPU, Clock.of(CPU), workers=0
    )
    errors = [row.get("error") for row in record["peers"]]
    assert errors == ["ValueError: needs a GPU"] * 2 + [None] * 2


def test_a_package_that_lacks_something_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "mamba_ssm.ops.triton.other")
    with pytest.raises(NotInstalledError, match=r"mamba-ssm cannot be imported: .*ssd_combined"):
        ssd(LM, CPU)
