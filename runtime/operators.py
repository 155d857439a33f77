"""What all torch operators of this package are registered with."""

from collections.abc import Callable
from typing import Any

import torch

from pdssm_compiler.runtime.devices import DEVICE_TYPES
from pdssm_compiler.runtime.errors import ArgumentError


def on_every_device(library: torch.library.Library, name: str, kernel: Callable[..., Any]) -> None:
    """Have one function compute an operator on all devices."""
    for type_ in DEVICE_TYPES:
        library.impl(name, kernel, type_.upper())


def refuse_vmap(library: torch.library.Library, *names: str) -> None:
    """Have ``vmap`` of these operators raise :class:`ArgumentError`; the batch is an axis already,
    so it could add nothing.
    """
    for name in names:
        # The second is of the older vmap, which torch.autograd still uses.
        for key in ("FuncTorchBatched", "Batched"):
            library.impl(name, _refuse_batched, key)


def _refuse_batched(*_: Any) -> list[torch.Tensor]:
    raise ArgumentError(
        "a scan cannot be mapped by vmap (nor its gradient by is_grads_batched or vectorize): "
        "batch is an axis of its tensors already; reshape the mapped axis into B"
    )


__all__ = ["on_every_device", "refuse_vmap"]
