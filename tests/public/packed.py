"""Packed sequences to test: tensors for lengths, and what each sequence alone would give."""

from itertools import accumulate
from typing import Any

import torch

from tests.public.accuracy import (
    FORWARD,
    GRADIENT,
    assert_within,
    expected,
    expected_gradients,
)
from tests.public.scans import Case, Draw, Tensors, inputs

Lengths = tuple[int, ...] | list[int]


def offsets(lengths: Lengths, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """``cu_seqlens`` of these lengths."""
    return torch.tensor([0, *accumulate(lengths)], dtype=dtype)


def packed_inputs(
    case: Case, lengths: Lengths, seed: int = 0, heads: int = 2, maps: str = "random"
) -> Tensors:
    """Every tensor of a call but the offsets, an initial state a sequence among them."""
    tensors = inputs(case, Draw(1, sum(lengths), heads, maps, "disk", seed))
    random = torch.Generator().manual_seed(seed)
    shape = (len(lengths), heads, case.state_size)
    tensors["initial_state"] = torch.randn(shape, dtype=case.dtype, generator=random)
    return tensors


def assert_packed_is_separate(
    scan: Any, tensors: Tensors, lengths: Lengths, **options: Any
) -> None:
    """Values, final states and gradients of a scan that takes the keywords of ``pd_scan``, against
    the plain loop over each sequence alone.
    """
    names = [name for name in ("diagonal", "drive", "initial_state") if name in tensors]
    leaves = {n: x.detach().clone().requires_grad_(n in names) for n, x in tensors.items()}
    options["cu_seqlens"] = offsets(lengths)
    outputs = scan(**leaves, **options, output_final_state=True)
    want, scale = expected(tensors, options), expected(tensors, options, magnitude=True)
    for name, got, true, size in zip(("states", "final"), outputs, want, scale, strict=True):
        assert_within(got.detach(), true, size, FORWARD, name)
    random = torch.Generator().manual_seed(1)
    arriving = tuple(torch.randn(x.shape, dtype=x.dtype, generator=random) for x in outputs)
    found = torch.autograd.grad(outputs, [leaves[name] for name in names], arriving)
    true = expected_gradients(tensors, options, arriving)
    size = expected_gradients(tensors, options, arriving, True)
    for name, gradient in zip(names, found, strict=True):
        assert_within(gradient, true[name], size[name], GRADIENT, f"gradient of {name}")
