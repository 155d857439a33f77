"""``mixture_pd_scan`` on a GPU: the maps of the definition, the gradients of float64."""

from typing import Any

import pytest
import torch

from pdssm_compiler import NanLogitError, check, explain, mixture_pd_scan
from pdssm_compiler.runtime.mixture import mixed_map
from tests.public.test_mixture_pd_scan import Tensors, results, tensors


def on_gpu(given: Tensors) -> Tensors:
    return {name: each.cuda() for name, each in given.items()}


@pytest.mark.parametrize("orientation", ["column", "row"])
@pytest.mark.parametrize(
    ("length", "n", "entries"), [(500, 128, 8), (300, 64, 6), (77, 100, 3), (40, 33, 20)]
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
