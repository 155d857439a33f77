"""Activation checkpointing: what is computed again gives the same bits."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pdssm_compiler.nn import PDSSM, FlashPDSSM
from tests.nn.layers import made, tokens


def gradients(
    run: Callable[[torch.Tensor], torch.Tensor], layer: nn.Module, x: torch.Tensor
) -> list[torch.Tensor]:
    leaves = [x, *layer.parameters()]
    torch.manual_seed(3)
    return list(torch.autograd.grad(run(x).sin().sum(), leaves))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    ("kind", "name", "option"),
    [
        (FlashPDSSM, "odd", ("fused", True)),
        (FlashPDSSM, "dense", ("fused", True)),
        (FlashPDSSM, "odd", ("fused", False)),
        (PDSSM, "linear", ("noise", 0.0)),
        # Drawn again alike, as dropout's.
        (PDSSM, "linear", ("noise", 0.5)),
    ],
)
def test_layers(kind: type, name: str, option: tuple[str, float], reentrant: bool) -> None:
    layer = made(kind, name, 0, torch.float32)
    setattr(layer, *option)
    x = tokens(layer, 2, 9).requires_grad_()
    if reentrant:
        # It asks for the gradients of all that is reached by itself, so they are looked at there.
        found = []
        for run in (partial(checkpoint, layer, use_reentrant=True), layer):
            torch.manual_seed(3)
            layer.zero_grad()
            x.grad = None
            run(x).sin().sum().backward()
            found.append([x.grad, *(parameter.grad for parameter in layer.parameters())])
    else:
        again = partial(checkpoint, layer, use_reentrant=False)
        found = [gradients(run, layer, x) for run in (again, layer)]
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine, theirs)


def test_under_torch_compile() -> None:
    torch._dynamo.reset()
    layer = made(FlashPDSSM, "odd", 0, torch.float32)
    x = tokens(layer, 2, 9).requires_grad_()
    again = partial(checkpoint, layer, use_reentrant=False)
    compiled = torch.compile(again, fullgraph=True, backend="aot_eager")
    for mine, theirs in zip(
        gradients(compiled, layer, x), gradients(layer, layer, x), strict=True
    ):
        torch.testing.assert_close(mine, theirs)
