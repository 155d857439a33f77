"""Devices by name."""

import torch

from pdssm_compiler.runtime.errors import ArgumentError


def device_of(name: str | None) -> torch.device:
    """The device called ``name``; None for this machine's GPU, or its CPU if it has none.

    Raises:
        ArgumentError: torch does not know it, or cannot see it.
    """
    if name is None:
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ArgumentError(f"unknown device {name!r}; use {_known()}") from None
    if device.type not in ("cpu", "cuda"):
        raise ArgumentError(f"no backend for the device {name!r}; use {_known()}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ArgumentError(f"torch sees no device {name!r}; use {_known()}")
    if device.type == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", device.index or 0)


def _known() -> str:
    return " or ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
