"""Tensors whose elements lie further apart than 32 bits count, in memory that is only reserved.

A page of it is there once it is touched, so a tensor of a few numbers takes a few pages.
"""

import mmap
from types import ModuleType
from typing import Any

import pytest
import torch

from tests import kernels

# Of a tensor's elements, complex numbers being one each.
APART = 2**31 + 24
# In Python's module from 3.13 on; reserves addresses and no memory.
_NO_RESERVE = 0x4000


def far(tensor: torch.Tensor) -> torch.Tensor:
    """A copy whose first axis has a stride of more than 2³¹ elements."""
    first, *others = tensor.shape
    elements = (first - 1) * APART + tensor[0].numel()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    memory = mmap.mmap(-1, elements * tensor.itemsize, flags=flags)
    strides = torch.empty(others, device="meta").stride()
    whole = torch.frombuffer(memory, dtype=tensor.dtype)
    return whole.as_strided(tensor.shape, (APART, *strides)).copy_(tensor)


def far_outputs(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What kernels that a module runs write to, which it makes as :func:`far` does from now on."""
    written: list[torch.Tensor] = []

    def poisoned(slot: Any, sizes: Any) -> torch.Tensor:
        written.append(far(kernels.poisoned(slot, sizes)))
        return written[-1]

    monkeypatch.setattr(module, "poisoned", poisoned)
    return written
