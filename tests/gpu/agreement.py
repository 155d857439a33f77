"""Scans on a GPU against the plain loop in complex128."""

from collections.abc import Callable
from typing import Any

import torch

from tests.public import accuracy
from tests.public.scans import Case, Draw, inputs


def assert_agrees(scan: Callable[..., Any], case: Case, draw: Draw, device: torch.device) -> None:
    """Values and gradients of a scan that takes the keywords of ``pd_scan``."""
    tensors = inputs(case, draw)
    here = {name: tensor.to(device) for name, tensor in tensors.items()}
    for name in accuracy.DIFFERENTIABLE:
        here[name].requires_grad_()
    states, final = scan(**here, **case.options, output_final_state=True)
    want = accuracy.expected(tensors, case.options)
    scale = accuracy.expected(tensors, case.options, magnitude=True)
    for name, got, true, size in zip(
        ("states", "final_state"), (states, final), want, scale, strict=True
    ):
        accuracy.assert_within(got.detach().cpu(), true, size, accuracy.FORWARD, name)
    random = torch.Generator().manual_seed(draw.seed)
    grads = tuple(torch.randn(t.shape, dtype=t.dtype, generator=random) for t in (states, final))
    leaves = [here[name] for name in accuracy.DIFFERENTIABLE]
    found = torch.autograd.grad([states, final], leaves, [g.to(device) for g in grads])
    true = accuracy.expected_gradients(tensors, case.options, grads)
    size = accuracy.expected_gradients(tensors, case.options, grads, magnitude=True)
    for name, got in zip(accuracy.DIFFERENTIABLE, found, strict=True):
        accuracy.assert_within(got.cpu(), true[name], size[name], accuracy.GRADIENT, name)
