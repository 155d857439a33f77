"""Outputs that show what was not written, and what was written beside them."""

from typing import NamedTuple

import torch

from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.binding import Slot, shape_of

# Bytes before and after an output. A multiple of any vector's width, so its pointer is aligned.
_MARGIN = 4096
_MARK = 0xA5


class Guarded(NamedTuple):
    """An output within a margin.

    Attributes:
        tensor: the output, poisoned: NaN, or -1 (255 where there is no sign).
        memory: it and its margins, as bytes.
    """

    tensor: torch.Tensor
    memory: torch.Tensor

    def is_intact(self) -> bool:
        """Whether the margins are as they were."""
        margins = (self.memory[:_MARGIN], self.memory[-_MARGIN:])
        return all(bool((margin == _MARK).all()) for margin in margins)


def guarded(slot: Slot, sizes: Sizes, device: torch.device) -> Guarded:
    """An output of a slot, poisoned, between two margins."""
    shape = shape_of(slot, sizes)
    count = 1
    for size in shape:
        count *= size
    size = count * slot.dtype.itemsize
    # The margin behind it begins at a whole number.
    memory = torch.full((size + 2 * _MARGIN,), _MARK, dtype=torch.uint8, device=device)
    tensor = memory[_MARGIN : _MARGIN + size].view(slot.dtype).view(shape)
    if slot.dtype.is_floating_point or slot.dtype.is_complex:
        tensor.fill_(float("nan"))
    else:
        tensor.fill_(255 if slot.dtype is torch.uint8 else -1)
    return Guarded(tensor, memory)
