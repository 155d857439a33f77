"""How parameters start, and why.

What a scan remembers is set by its diagonal and its maps, so both start where a long memory is
possible and can be unlearnt:

- **magnitudes**: the memory of a component, ``1 / (1 - |D|)`` tokens, starts log-uniform between
  ten and a thousand, so that every time scale has its components from the beginning;
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


def log_uniform_(tensor: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Fill with numbers whose logarithm is uniform between those of two bounds."""
    with torch.no_grad():
        return tensor.uniform_(math.log(low), math.log(high)).exp_()


def inverse_softplus(value: torch.Tensor) -> torch.Tensor:
    """``x`` with ``softplus(x) = value``, for positive values."""
    return value + torch.log(-torch.expm1(-value))


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
        # Sorted on the CPU, so that "meta" tensors need no answer and a seed means one thing.
        order = torch.rand(logits.shape[:-1]).argsort(-1)  # [..., K, N]
        order[..., 0, :] = torch.arange(size)
        ones = nn.functional.one_hot(order, size).to(logits.device, logits.dtype)
        return logits.add_(ones, alpha=margin)
