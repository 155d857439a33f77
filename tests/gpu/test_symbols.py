"""Mixtures that tokens share, and a layer of symbols, on a GPU: what a CPU gives in float64."""

from typing import Any

import pytest
import torch

from pdssm_compiler import IndexRangeError, NanLogitError, check, mixture_pd_scan
from pdssm_compiler.nn import PDSSM
from pdssm_compiler.runtime import symbols as module
from pdssm_compiler.runtime.symbols import of_symbols
from tests.gpu.test_mixture import on_gpu
from tests.public.test_mixture_pd_scan import results
from tests.public.test_mixture_selection import MIXTURES, tensors


@pytest.mark.parametrize("orientation", ["column", "row"])
def test_values_and_gradients(orientation: str) -> None:
    given, selection = tensors(2, 50, 2, 37)
    options: dict[str, Any] = {"orientation": orientation, "temperature": 0.7}
    want = results(mixture_pd_scan, given, selection=selection, **options)
    got = results(mixture_pd_scan, on_gpu(given), selection=selection.cuda(), **options)
    for name, value in want.items():
        torch.testing.assert_close(got[name].cpu(), value, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("few", [128, 1])
def test_sums_by_symbol(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever torch's products are rounded to, and the same bits again."""
    monkeypatch.setattr(module, "_FEW", few)
    table = torch.randn(13, 1, 64, 2, device="cuda", requires_grad=True)
    places = torch.randint(13, (64, 40), device="cuda")
    arriving = torch.randn(64, 40, 1, 64, 2, device="cuda")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        first, second = (
            torch.autograd.grad(of_symbols(table, places), table, arriving)[0] for _ in range(2)
        )
    finally:
        torch.set_float32_matmul_precision(before)
    want = torch.zeros(13, 1, 64, 2, dtype=torch.float64)
    want.index_add_(0, places.cpu().flatten(), arriving.cpu().double().flatten(0, 1))
    torch.testing.assert_close(first.cpu(), want.float())
    assert torch.equal(first, second)


def layer_and_symbols() -> tuple[PDSSM, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    layer = PDSSM(32, dictionary_size=4).cuda()
    return layer, torch.randn(5, 32).cuda().requires_grad_(), torch.randint(5, (8, 40)).cuda()


def gradients(layer: PDSSM, table: torch.Tensor, out: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(out.sin().sum(), [table, *layer.parameters()]))


def test_a_layer_of_symbols() -> None:
    """As of tokens, but for rounding; the same bits again; and nothing waits for the device."""
    layer, table, symbols = layer_and_symbols()
    want = gradients(layer, table, layer(table[symbols]))
    first = gradients(layer, table, layer(table, symbols=symbols))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = gradients(layer, table, layer(table, symbols=symbols))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(map(torch.equal, first, second))
    for mine, right in zip(first, want, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-3, atol=1e-3)


def test_compiled_and_captured() -> None:
    layer, table, symbols = layer_and_symbols()
    want = gradients(layer, table, layer(table, symbols=symbols))
    compiled = torch.compile(layer, fullgraph=True, dynamic=False)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            gradients(layer, table, compiled(table, symbols=symbols))
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = gradients(layer, table, compiled(table, symbols=symbols))
    graph.replay()
    for mine, right in zip(got, want, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("grad", [False, True])
def test_what_is_wrong_is_told_as_what_it_is(grad: bool) -> None:
    """A symbol that is not there, and a NaN in a mixture, by the same kernel."""
    layer, table, symbols = layer_and_symbols()
    wrong = symbols.clone()
    wrong[3, 7] = 5
    with torch.set_grad_enabled(grad):
        layer(table, symbols=wrong)
        with pytest.raises(IndexRangeError, match=r"selection\[b=3, t=7, h=0\].* in \[0, 5\)"):
            check()
        with torch.no_grad():
            layer.selector.weight[1, 2] = float("nan")
        layer(table, symbols=symbols)
        with pytest.raises(NanLogitError, match="dictionary"):
            check()


def test_selections_out_of_range() -> None:
    given, selection = tensors()
    selection[1, 3, 2] = MIXTURES
    mixture_pd_scan(**on_gpu(given), selection=selection.cuda())
    with pytest.raises(IndexRangeError, match=r"selection\[b=1, t=3, h=2\]"):
        check()
