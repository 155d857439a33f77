"""The fused core of the benchmarks: what is timed is right."""

import torch

from benchmarks.fused import diagonal, forward_call, readout, step_call, tensors_of
from pdssm_compiler import reference
from pdssm_compiler.suite import Shape

TINY = Shape("tiny", 2, 9, 3, 8, 4)
CPU = torch.device("cpu")
NUMBERS = ("magnitude", "phase", "drive", "c")


def exact(seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The numbers of the tensors that a seed gives, in float64, and their read-out."""
    torch.manual_seed(seed)
    tensors = tensors_of(TINY, CPU)
    wide = (torch.complex128 if tensors[name].is_complex() else torch.float64 for name in NUMBERS)
    numbers = {
        name: tensors[name].to(dtype).requires_grad_()
        for name, dtype in zip(NUMBERS, wide, strict=True)
    }
    states, _ = reference.pd_scan(
        diagonal(numbers["magnitude"], numbers["phase"]),
        torch.view_as_complex(numbers["drive"]),
        dictionary=tensors["dictionary"],
        selection=tensors["selection"],
    )
    return numbers, readout(states, numbers["c"])


def test_the_read_out() -> None:
    _, want = exact(5)
    torch.manual_seed(5)
    found = forward_call(TINY, CPU)()
    assert found.dtype == torch.bfloat16
    # What is stored has eight bits.
    assert torch.allclose(found.double(), want, rtol=2**-8, atol=2**-16)


def test_gradients() -> None:
    numbers, y = exact(6)
    grad = torch.randn(y.shape).to(torch.bfloat16)
    torch.manual_seed(6)
    found = step_call(TINY, CPU, grad)()
    want = torch.autograd.grad(y, list(numbers.values()), grad.double())
    for name, mine, its in zip(numbers, found, want, strict=True):
        assert mine.shape == its.shape
        assert (mine.to(its.dtype) - its).abs().max() <= 2**-8 * its.abs().max(), name
