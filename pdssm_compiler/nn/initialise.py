"""How parameters start, and why.

What a scan remembers is set by its diagonal and its maps, so both start where a long memory is
possible and can be unlearnt:

- **magnitudes**: the memory of a component, ``1 / (1 - |D|)`` tokens, starts spread over the
  scales up to a thousand, so that every time scale has its components from the beginning:
  ``PDSSM``'s log-uniform from ten, ``FlashPDSSM``'s from one, a log-uniform step times a uniform
  rate as in Mamba;
- **phases** start small. A phase that the input moves at random adds up like a random walk, and
  what was written would cancel by itself; a small one stays coherent over that memory;
- **maps** start as permutations, chosen at random, the first of them the identity. Random maps of
  ``[N]`` would merge all components into one after about ``2 N`` tokens; permutations merge none,
  and training finds the collisions it needs;
- **drives** start small enough that the state, a sum over that memory, has a variance of the order
  of the inputs'.
"""

import math

import torch
from torch import nn

from pdssm_compiler.runtime.binding import is_distributed


def log_uniform_(tensor: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Fill with numbers whose logarithm is uniform between those of two bounds."""
    with torch.no_grad():
        return tensor.uniform_(math.log(low), math.log(high)).exp_()


def inverse_softplus(value: torch.Tensor) -> torch.Tensor:
    """``x`` with ``softplus(x) = value``, for positive values."""
    return value + torch.log(-torch.expm1(-value))


def placed(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Values for a parameter, where it is: of a ``DTensor`` each process gets its part of them,
    the first process's values. So what ``fully_shard`` has sharded can start anew.
    """
    values = values.to(like.device, like.dtype)
    if not is_distributed(like):
        return values
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(values, like.device_mesh, like.placements)


def whole(values: torch.Tensor) -> torch.Tensor:
    """What all processes hold of a ``DTensor`` together, in each of them; others as they are."""
    if not is_distributed(values):
        return values
    from torch.distributed.tensor import DTensor

    assert isinstance(values, DTensor)
    return values.full_tensor()


def scale_rows_(weight: torch.Tensor, factors: list[tuple[int, float | torch.Tensor]]) -> None:
    """Multiply the rows of a weight, a block after the other.

    Not by views of it: those of a ``DTensor`` are copies, and what is written to them is lost.

    Args:
        weight: ``[rows, columns]``.
        factors: how many rows each block has, and its factor; together all of them.
    """
    with torch.no_grad():
        rows = [
            torch.as_tensor(factor, dtype=torch.float32, device=weight.device).expand(count)
            for count, factor in factors
        ]
        weight.mul_(placed(torch.cat(rows)[:, None].expand(weight.shape), weight))


def permutation_logits_(logits: torch.Tensor, margin: float, noise: float) -> torch.Tensor:
    """Fill dictionary logits ``[..., K, N, N]`` so that each map is a permutation.

    The chosen entry of each column (and so of each row) stands ``margin`` above the others; what
    else there is is normal noise, which decides what comes second. The first map is the identity.

    Args:
        logits: to be filled.
        margin: by how much the chosen entry is larger.
        noise: the standard deviation, small beside the margin.
    """
    size = logits.shape[-1]
    with torch.no_grad():
        logits.normal_(0, noise)
        # Sorted on the CPU, so that "meta" tensors need no answer and a seed means one thing,
        # whatever torch's default device.
        order = torch.rand(logits.shape[:-1], device="cpu").argsort(-1)  # [..., K, N]
        order[..., 0, :] = torch.arange(size, device="cpu")
        return logits.add_(placed(nn.functional.one_hot(order, size), logits), alpha=margin)
