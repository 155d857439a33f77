"""What diagonals, states and convolutions are computed in."""

import torch


def wide(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything narrower.

    A magnitude just below 1 is not representable in bfloat16 (``exp(-5e-4)`` rounds to 1), so what
    is carried from token to token is never narrower than float32.
    """
    return torch.float64 if dtype is torch.float64 else torch.float32
