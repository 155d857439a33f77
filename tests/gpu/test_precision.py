"""Long memories, autocast, and the same bits again, on a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pdssm_compiler import pd_scan
from pdssm_compiler.nn import PDSSM, FlashPDSSM
from tests.public.accuracy import FORWARD, GRADIENT, assert_within
from tests.public.test_long_memory import NAMES, known
from tests.public.test_repeatable import RUNNING, assert_repeats

__all__ = ["known"]


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_a_hundred_thousand_tokens(known: Any, device: torch.device) -> None:
    given, arriving, want, scale = known
    leaves = {n: x.to(device).requires_grad_(n in NAMES) for n, x in given.items()}
    states, final = pd_scan(**leaves, output_final_state=True)
    found = torch.autograd.grad(
        [states, final], [leaves[n] for n in NAMES], [x.to(device) for x in arriving]
    )
    assert_within(states.detach().cpu(), want["states"], scale["states"], FORWARD, "states")
    assert_within(final.detach().cpu(), want["final"], scale["final"], FORWARD, "final state")
    for name, gradient in zip(NAMES, found, strict=True):
        assert_within(gradient.cpu(), want[name], scale[name], GRADIENT, f"gradient of {name}")


def test_autocast_widens(known: Any, device: torch.device) -> None:
    given = {name: tensor.to(device) for name, tensor in known[0].items()}
    low = {name: torch.view_as_real(given[name]).bfloat16() for name in NAMES}
    maps = {name: given[name] for name in ("dictionary", "selection")}
    with torch.autocast("cuda", torch.bfloat16):
        got = pd_scan(**low, **maps, output_final_state=True)
    wide = {n: x if n == "drive" else x.float() for n, x in low.items()}
    want = pd_scan(**wide, **maps, output_final_state=True)
    assert (got[0].dtype, got[1].dtype) == (torch.bfloat16, torch.float32)
    for mine, right in zip(got, want, strict=True):
        assert torch.equal(mine, right)


@pytest.mark.parametrize("name", RUNNING)
def test_the_same_bits_again(name: str, deterministic: None, device: torch.device) -> None:
    """Calls, packed sequences and layers."""
    with torch.device(device):
        assert_repeats(RUNNING[name])


@pytest.mark.parametrize("kind", [FlashPDSSM, PDSSM])
def test_packed_layers_too(kind: type, deterministic: None, device: torch.device) -> None:
    torch.manual_seed(0)
    layer, x = kind(16).to(device), torch.randn(1, 500, 16, device=device)
    offsets = torch.tensor([0, 20, 20, 311, 500], device=device)

    def run() -> list[torch.Tensor]:
        leaf = x.clone().requires_grad_()
        out = layer(leaf, cu_seqlens=offsets)
        return [out.detach(), *torch.autograd.grad(out.sin().sum(), [leaf, *layer.parameters()])]

    assert_repeats(run)
