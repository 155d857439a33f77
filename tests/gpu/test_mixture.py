"""``mixture_pd_scan`` on a GPU: the maps of the definition, the gradients of float64."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pdssm_compiler import (
    NanLogitError,
    ScanSpec,
    Workload,
    check,
    explain,
    mixture_pd_scan,
    tune,
)
from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.mixture import mixed_map
from pdssm_compiler.runtime.tuning import resolve
from pdssm_compiler.runtime.tuning.effort import Effort
from tests.public.test_mixture_pd_scan import Tensors, in_float64, results, tensors


def on_gpu(given: Tensors) -> Tensors:
    return {name: each.cuda() for name, each in given.items()}


@pytest.mark.parametrize("orientation", ["column", "row"])
@pytest.mark.parametrize(
    ("length", "n", "entries"),
    [
        (500, 128, 8),
        (300, 64, 6),
        (77, 100, 3),
        (40, 33, 20),
        (16, 128, 32),
        (64, 256, 33),
        (70, 1024, 6),
        (9, 2816, 6),
    ],
)
def test_maps_are_the_definition_s(length: int, n: int, entries: int, orientation: str) -> None:
    given = tensors(1, length, 1, n, entries, torch.float32)
    sources = (given["mixture_weights"], given["dictionary_logits"])
    got = mixed_map(*(each.cuda() for each in sources), [], orientation)
    used = [each for each in explain() if "argmax" in each.program and "cuda" in each.device]
    assert {each.template for each in used} == {"triton-matrices"}
    assert torch.equal(got.cpu(), mixed_map(*sources, [], orientation))


@pytest.mark.parametrize("orientation", ["column", "row"])
@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize(("n", "entries"), [(64, 6), (37, 19)])
def test_values_and_gradients(n: int, entries: int, noise: float, orientation: str) -> None:
    given = tensors(2, 50, 2, n, entries, torch.float64)
    options: dict[str, Any] = {"orientation": orientation, "noise": noise, "seed": 1}
    want = results(mixture_pd_scan, given, **options)
    got = results(mixture_pd_scan, on_gpu(given), **options)
    for name, value in want.items():
        torch.testing.assert_close(got[name].cpu(), value, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("orientation", ["column", "row"])
@pytest.mark.parametrize(("n", "entries"), [(128, 8), (64, 6)])
def test_float32(n: int, entries: int, orientation: str) -> None:
    """Of the published sizes, given its maps, which are those of float64 here."""
    given = tensors(2, 70, 1, n, entries, torch.float32)
    got = results(mixture_pd_scan, on_gpu(given), orientation=orientation)
    wide = in_float64(given, orientation)
    want = results(mixture_pd_scan, wide, orientation=orientation)
    for name, value in want.items():
        off = (got[name].cpu().to(value.dtype) - value).abs().max()
        assert off <= 1e-5 * value.abs().max(), name


@pytest.mark.timeout(600)
def test_it_is_tuned_like_every_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(settings.CACHE_DIR, str(tmp_path))
    resolve.forget()
    spec = ScanSpec(16, 3, map_source="token")
    work = Workload(spec, 2, 40, 1, directions=("mixture", "mixture_gradient"))
    found = tune([work], device="cuda", effort=Effort(6, 3, 8.0, 1e9, 1), budget=300)
    resolve.forget()
    for result in found:
        assert result.winner is not None
        timed = [row.template for row in result.rows if row.status == "ok"]
        assert timed.count("triton-matrices") > 1
        assert {row.status for row in result.rows} <= {"ok", "out-of-resource"}
    results(mixture_pd_scan, on_gpu(tensors(2, 40, 1, 16, 3, torch.float32)))
    mine = [each for each in explain() if "dictionary_logits" in each.program][-2:]
    assert all(each.reason.startswith("tuned on this machine") for each in mine)


def test_the_same_bits_again() -> None:
    given = on_gpu(tensors(4, 300, 1, 64, 8, torch.float32))
    first, second = (results(mixture_pd_scan, given) for _ in range(2))
    assert all(torch.equal(first[name], value) for name, value in second.items())


def test_nothing_waits_for_the_device() -> None:
    given = on_gpu(tensors(2, 50, 1, 32, 4, torch.float32))
    results(mixture_pd_scan, given, noise=1.0)
    leaves = {name: each.clone().requires_grad_() for name, each in given.items()}
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        states, _ = mixture_pd_scan(**leaves, noise=1.0)
        states.abs().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(each.grad is not None for each in leaves.values())


def test_a_nan_is_told_as_that() -> None:
    given = on_gpu(tensors(1, 5, 1, 8, 2, torch.float32))
    given["mixture_weights"][0, 3] = float("nan")
    for grad in (False, True):
        leaves = {name: each.clone().requires_grad_(grad) for name, each in given.items()}
        mixture_pd_scan(**leaves)
        with pytest.raises(NanLogitError, match="destination"):
            check()
