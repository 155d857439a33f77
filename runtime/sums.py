"""Sums that are as exact as a device allows, and the same bit by bit every time."""

import torch

# The types of devices that have float64; others add float32 as torch is set to.
_WITH_FLOAT64 = ("cpu", "cuda")


def widest(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What to add up numbers of a real dtype in: float64, in which products of float32 are exact,
    whatever torch's settings allow them to be rounded to; on a device without it float32 at least.
    """
    wide = device.type in _WITH_FLOAT64
    return torch.float64 if wide else torch.promote_types(dtype, torch.float32)


def add_at(total: torch.Tensor, places: torch.Tensor, values: torch.Tensor) -> None:
    """Add rows to those of a total, in one order.

    Args:
        total: ``[R, …]``, which is written.
        places: int64 ``[G]``, in ``[0, R)``.
        values: ``[G, …]``.
    """
    if total.device.type == "cpu":
        total.index_add_(0, places, values)
    else:
        # It sorts by index; index_add_ on a GPU adds in any order.
        total.index_put_((places,), values, accumulate=True)
