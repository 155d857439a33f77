"""The layers' section: its rows, what is timed, the layers of other packages as stand-ins."""

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import layers
from benchmarks.cases import GPU
from benchmarks.command import narrowed
from benchmarks.layers import (
    COMPILED,
    DECODE,
    EAGER,
    FORWARD,
    PARTS,
    PRODUCTS,
    STEP,
    decode_rows,
    layer_jobs,
    layer_rows,
)
from benchmarks.measure import Bench
from benchmarks.peers import NotInstalledError, mamba2, mamba2_with_our_convolution
from benchmarks.plots import plot
from benchmarks.tables import show
from pdssm_compiler.cli.consoles import results
from pdssm_compiler.runtime import segmented
from pdssm_compiler.runtime.devices import target_of
from pdssm_compiler.runtime.plan import run
from pdssm_compiler.runtime.tuning import timing
from pdssm_compiler.runtime.tuning.timing import Clock
from tests.benchmarks.conftest import AGENDA, CPU
from tests.benchmarks.test_peers import plant

SIZES = AGENDA.layers
BENCH = Bench(CPU, Clock.of(CPU), 1e9, 2, {})
OURS = (COMPILED, EAGER, PARTS)


class StubMamba(torch.nn.Linear):
    """The published arguments; nothing else is taken."""

    def __init__(self, *, d_model: int, d_state: int, d_conv: int, expand: int) -> None:
        assert (d_state, d_conv, expand) == (128, 4, 2)
        super().__init__(d_model, d_model)


class StubMambaInParts(torch.nn.Module):
    """As the package's layer runs where its fused path is off, but for the scan: the convolution's
    kernel is one of its module's names, of tokens behind channels.
    """

    def __init__(
        self, *, d_model: int, d_state: int, d_conv: int, expand: int, use_mem_eff_path: bool
    ) -> None:
        super().__init__()
        assert (d_state, d_conv, expand, use_mem_eff_path) == (128, 4, 2, False)
        self.in_proj = torch.nn.Linear(d_model, 3 * d_model, bias=False)
        self.conv1d = torch.nn.Conv1d(d_model, d_model, d_conv, groups=d_model, padding=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, convolved, _ = self.in_proj(x).chunk(3, -1)
        return (
            sys.modules["mamba_ssm.modules.mamba2"]
            .causal_conv1d_fn(  # type: ignore[attr-defined]
                convolved.transpose(1, 2),
                self.conv1d.weight.squeeze(1),
                bias=self.conv1d.bias,
                activation="silu",
                seq_idx=None,
            )
            .transpose(1, 2)
        )


class StubDelta(torch.nn.Linear):
    """Likewise."""

    def __init__(
        self, *, hidden_size: int, num_heads: int, head_dim: int, expand_v: float
    ) -> None:
        assert (num_heads, head_dim, expand_v) == (max(1, hidden_size // 256), 256, 2)
        super().__init__(hidden_size, hidden_size)

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x), None, None


def by_name(rows: list[dict[str, Any]], **fields: object) -> dict[tuple[str, str], dict[str, Any]]:
    same = (row for row in rows if all(row.get(key) == fields[key] for key in fields))
    return {(row["layer"], row.get("direction", "")): row for row in same}


def test_the_rows(record: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    rows = record["layers"]
    for length, batch in ((8, 2), (4, 4)):
        found = by_name(rows, sizes={"B": batch, "T": length, "d_model": 16})
        assert set(found) == {
            *((name, way) for name in (PRODUCTS, COMPILED, EAGER) for way in (FORWARD, STEP)),
            *((PARTS, way) for way in (FORWARD, STEP) if length == SIZES.length),
            ("Mamba-2", ""),
            ("Mamba-2 with our convolution", ""),
            ("gated delta net", ""),
        }
        assert found["Mamba-2", ""]["error"] == "not installed: mamba-ssm"
        for (_, way), row in found.items():
            if way:
                assert row["ms"] > 0
                assert row["peak_mib"] is None
                floor = found[PRODUCTS, way]["ms"]
                assert row["of_products"] == pytest.approx(row["ms"] / floor)
                assert row["over_us"] == pytest.approx((row["ms"] - floor) * 1e3)
    decoded = by_name(rows, direction=DECODE)
    assert [name for name, _ in decoded] == [
        PRODUCTS, COMPILED, EAGER,
    ]  # fmt: skip
    assert all(row["ms"] > 0 and row["copies"] == 1 for row in decoded.values())
    show(record, results())
    text = capsys.readouterr().out
    assert text.count("not measured: layers, Mamba-2: not installed: mamba-ssm") == 1
    assert "of products" in text


@pytest.mark.parametrize(("fused", "compiled"), [(True, True), (True, False), (False, True)])
def test_what_is_timed_is_the_layer(fused: bool, compiled: bool) -> None:
    x = torch.randn(2, 8, SIZES.d_model).to(torch.bfloat16).requires_grad_()
    subject = layers._ours(SIZES, x, fused, compiled)
    layer = layers._layer(SIZES, CPU, fused)
    assert layer.fused is fused
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want = layer(x)
    found = subject.forward()
    assert found.dtype == torch.bfloat16  # type: ignore[attr-defined]
    torch.testing.assert_close(found, want)
    subject.step()


@pytest.mark.parametrize("length", [8, 4])
def test_the_kernels_of_a_step_are_compiled_before(
    monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """As on a GPU, where tokens and gate have one gradient."""
    monkeypatch.setattr("pdssm_compiler.nn.convolution.has_kernel", lambda *_: True)
    ran: list[str] = []

    def recorded(text: str, *given: Any) -> Any:
        ran.append(text)
        return run(text, *given)

    monkeypatch.setattr(segmented, "run", recorded)
    x = torch.randn(2, length, SIZES.d_model).to(torch.bfloat16).requires_grad_()
    layers._ours(SIZES, x, True, True).step()
    jobs = layer_jobs(replace(SIZES, length=length, lengths=()), target_of(CPU), 0)
    assert {job.text for job in jobs} == set(ran)


def test_the_products_are_the_layers() -> None:
    x = torch.randn(2, 8, SIZES.d_model).to(torch.bfloat16).requires_grad_()
    products = layers._products(SIZES, x)
    outs = products.forward()
    d = SIZES.d_model
    assert [out.shape[-1] for out in outs] == [2 * d, 7 * d, d]  # type: ignore[attr-defined]
    grads = products.step()
    assert [g.dtype for g in grads] == [torch.bfloat16] * 6  # type: ignore[attr-defined]
    ours = layers._layer(SIZES, CPU)
    weights = (ours.in_proj.weight, ours.token_proj.weight, ours.out_proj.weight)
    assert [g.shape for g in grads[3:]] == [w.shape for w in weights]  # type: ignore[index]


def test_the_sizes_that_are_asked_for() -> None:
    sizes = GPU.layers
    assert sizes.measured[0] == 4096
    assert sorted(sizes.measured) == [1 << n for n in range(10, 18)]
    assert [sizes.batch(1 << n) for n in range(10, 18)] == [32, 16, 8, 4, 2, 1, 1, 1]
    wanted = layers._targets(sizes, 4096)
    assert wanted == {"target_ms": pytest.approx(5.74), "target_mib": 1450}
    assert layers._targets(sizes, 1024) == {}
    quick = narrowed(GPU, quick=True).layers
    assert quick.measured == (4096, 1 << 10, 1 << 14, 1 << 17)


def test_other_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "mamba_ssm.other")
    monkeypatch.setattr("mamba_ssm.Mamba2", StubMamba, raising=False)
    plant(monkeypatch, "fla.layers", GatedDeltaNet=StubDelta)
    plant(monkeypatch, "causal_conv1d")
    found = by_name(layer_rows(BENCH, replace(SIZES, backend="eager"), 8))
    for peer, package in (("Mamba-2", "mamba-ssm"), ("gated delta net", "flash-linear-attention")):
        for way in (FORWARD, STEP):
            row = found[peer, way]
            assert row["package"] == package
            best = min(found[name, way]["ms"] for name in OURS)
            assert row["of_ours"] == pytest.approx(row["ms"] / best)


def test_a_convolution_in_the_place_of_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """In that layer's calls alone, and none is missed: Mamba-2's is held to torch's own."""
    plant(monkeypatch, "mamba_ssm.modules.mamba2", causal_conv1d_fn=None)
    monkeypatch.setattr("mamba_ssm.Mamba2", StubMambaInParts, raising=False)
    torch.manual_seed(0)
    layer, x = mamba2_with_our_convolution(16), torch.randn(2, 7, 16).requires_grad_()
    inner = layer.layer
    token = inner.in_proj(x).chunk(3, -1)[1].transpose(1, 2)
    want = torch.nn.functional.silu(inner.conv1d(token)[..., :-3]).transpose(1, 2)
    got = layer(x)
    torch.testing.assert_close(got, want)
    leaves = [x, *layer.parameters()]
    torch.testing.assert_close(
        *(torch.autograd.grad(out.sin().sum(), leaves) for out in (got, want))
    )
    assert sys.modules["mamba_ssm.modules.mamba2"].causal_conv1d_fn is None  # type: ignore[attr-defined]


def test_a_convolution_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, "mamba_ssm.other")
    with pytest.raises(NotInstalledError) as caught:
        mamba2(16)
    assert str(caught.value) == "not installed: causal-conv1d, which mamba-ssm's layer needs"


def test_a_layer_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(layers, "_ours", fails)
    found = layer_rows(BENCH, SIZES, 8)
    errors = {row["layer"]: row.get("error") for row in found}
    assert {errors[name] for name in OURS} == {"OutOfMemoryError: CUDA out of memory"}
    assert errors[PRODUCTS] is None


def test_steps_of_several_layers_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, whose cache holds the weights of one."""
    asked: list[int] = []

    def replays(functions: Any, runs: int, least_calls: int) -> timing.Times:
        asked.append(len(functions))
        return timing.host_times(timing.in_turn(functions), max(runs, len(functions)))

    monkeypatch.setattr(timing, "graph_times", replays)
    monkeypatch.setattr(timing, "device_times", timing.host_times)
    # Ten products of 16 × 16 in bfloat16, 5120 bytes.
    clock = Clock(on_gpu=True, cache_bytes=12 * 1280)
    rows = decode_rows(replace(BENCH, clock=clock), SIZES)
    assert [row.get("error") for row in rows] == [None] * 3
    assert asked == [row["copies"] for row in rows] == [12] * 3


def test_the_plot(record: dict[str, Any], tmp_path: Path) -> None:
    kept = copy.deepcopy({**record, "rows": []})
    drawn = plot(kept, tmp_path / "here")
    assert [path.name for path in drawn] == ["here-layers.png"]
    for row in kept["layers"]:
        row["peak_mib"] = 7.0
    assert len(plot(kept, tmp_path / "counted")) == 1
