"""Torch devices to targets."""

from functools import cache
from typing import Any

import torch

from pdssm_compiler.ir.errors import shown
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.schedules.target import (
    NAMED_TARGETS,
    Target,
    UnknownTargetError,
    cpu_target,
    gpu_target,
    named_target,
)

# The types of torch devices that scans run on, by torch's names.
DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")


def find_target(named: str | torch.device | Target | None) -> Target:
    """The target that a user names: a torch device, an architecture, or None for this machine's
    GPU if it has one and its CPU otherwise.

    Raises:
        ArgumentError: neither text nor a device, or a GPU that is not here.
        UnknownTargetError: an architecture or a type of device that is not known.
    """
    if isinstance(named, Target):
        return named
    if named is None:
        named = "cuda" if torch.cuda.is_available() else "cpu"
    if not isinstance(named, str | torch.device):
        raise ArgumentError(
            f"target must be a torch device or an architecture such as 'sm_90', got "
            f"{shown(named)}; pass a str or a torch.device"
        )
    if named in NAMED_TARGETS:
        return named_target(str(named))
    device = _device(named)
    if device is None or device.type not in DEVICE_TYPES:
        known = ", ".join([*DEVICE_TYPES, *NAMED_TARGETS])
        raise UnknownTargetError(f"unknown target {shown(str(named))}; known targets: {known}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ArgumentError(
            f"target {str(named)!r} needs a GPU that torch can see, and it sees "
            f"{_gpus()}; name an architecture such as 'sm_90' to compile for one that is absent"
        )
    return target_of(device)


def _device(named: str | torch.device) -> torch.device | None:
    try:
        return torch.device(named)
    except RuntimeError:
        return None


def _gpus() -> str:
    return ", ".join(f"cuda:{i}" for i in range(torch.cuda.device_count())) or "none"


@cache
def target_of(device: torch.device) -> Target:
    """The target of a torch device; one that only torch knows is of the kind ``other``."""
    if device.type == "cpu":
        return cpu_target()
    if device.type != "cuda":
        return Target("other", device.type)
    # Torch's stub does not know every property.
    properties: Any = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        arch, kind = properties.gcnArchName.split(":")[0], "hip"
    else:
        arch, kind = f"sm_{properties.major}{properties.minor}", "cuda"
    return gpu_target(
        kind,  # type: ignore[arg-type]
        arch,
        properties.warp_size,
        properties.multi_processor_count,
        properties.shared_memory_per_block_optin,
        properties.name,
    )
