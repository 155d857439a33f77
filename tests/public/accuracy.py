"""What "equal" means: within ``c·ε·s`` of the plain loop in complex128 on the rounded inputs.

``s`` is the same scan over absolute values: an entry cannot be known better than the terms that
were added up to it. The constants are fixed once for an op and hold for every
N, T and map in these tests.
"""

from collections.abc import Mapping
from typing import Any

import torch

from pdssm_compiler import reference
from tests.public.scans import Tensors

# c, once per op.
FORWARD = 16
GRADIENT = 32

DIFFERENTIABLE = ("diagonal", "drive", "initial_state")


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """In double precision, maps as they are."""
    if tensor.is_complex():
        return tensor.detach().to(torch.complex128)
    return tensor.detach().double() if tensor.is_floating_point() else tensor


def magnitudes(tensor: torch.Tensor) -> torch.Tensor:
    """Absolute values of numbers, maps as they are."""
    return wide(tensor).abs().to(torch.complex128) if tensor.is_complex() else tensor


def epsilon(dtype: torch.dtype) -> float:
    """The spacing of a dtype's numbers at 1."""
    return torch.finfo(dtype).eps


def assert_within(
    got: torch.Tensor, want: torch.Tensor, scale: torch.Tensor, constant: float, name: str
) -> None:
    """``|got - want| <= c·ε·s``, with nothing left unwritten."""
    assert got.shape == want.shape, name
    assert not got.isnan().any(), f"{name} has NaN"
    error = (wide(got) - want).abs()
    # Below the smallest normal number spacing is absolute; the kernels flush nothing.
    bound = constant * (epsilon(got.dtype) * scale.abs() + torch.finfo(got.dtype).tiny)
    worst = (error / bound).max().item() if error.numel() else 0.0
    assert (error <= bound).all(), f"{name} is off by {worst * constant:.1f} ε·s"


def expected(
    tensors: Tensors, options: Mapping[str, Any], magnitude: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """States and final state in complex128, of the inputs or of their absolute values."""
    change = magnitudes if magnitude else wide
    states, final = reference.pd_scan(
        **{name: change(tensor) for name, tensor in tensors.items()},
        **options,
        output_final_state=True,
    )
    assert final is not None
    return states, final


def expected_gradients(
    tensors: Tensors,
    options: Mapping[str, Any],
    cotangents: tuple[torch.Tensor | None, torch.Tensor | None],
    magnitude: bool = False,
) -> Tensors:
    """Autograd's gradients through the plain loop; likewise."""
    change = magnitudes if magnitude else wide
    leaves = {name: change(tensor).clone() for name, tensor in tensors.items()}
    names = [name for name in DIFFERENTIABLE if name in leaves]
    for name in names:
        leaves[name].requires_grad_()
    outputs = reference.pd_scan(**leaves, **options, output_final_state=True)
    reached = [
        (output, change(cotangent))
        for output, cotangent in zip(outputs, cotangents, strict=True)
        if output is not None and cotangent is not None and output.requires_grad
    ]
    found = torch.autograd.grad(
        [output for output, _ in reached],
        [leaves[name] for name in names],
        [cotangent for _, cotangent in reached],
        allow_unused=True,
        materialize_grads=True,
    )
    return {name: grad.detach().resolve_conj() for name, grad in zip(names, found, strict=True)}
