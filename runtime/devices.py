"""Torch devices to targets."""

import re
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pdssm_compiler.ir.errors import shown
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.schedules.descriptions import SUFFIX
from pdssm_compiler.schedules.target import (
    Target,
    cpu_target,
    described_target,
    gpu_target,
    named_targets,
    unknown_target,
)

# The types of torch devices that scans run on, by torch's names.
DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")


def find_target(named: str | Path | torch.device | Target | None) -> Target:
    """The target that a user names: a torch device, an architecture or model of GPU, a file that
    describes one, or None for this machine's GPU if it has one and its CPU otherwise.

    Raises:
        ArgumentError: none of these, or a GPU that is not here.
        UnknownTargetError: a name or a type of device that is not known.
        DescriptionError: a file that cannot be read, or says what is not allowed.
    """
    if isinstance(named, Target):
        return named
    if named is None:
        named = "cuda" if torch.cuda.is_available() else "cpu"
    if not isinstance(named, str | Path | torch.device):
        raise ArgumentError(
            f"target must be a torch device, a GPU's name such as 'sm_90', or the path of a "
            f"description, got {shown(named)}; pass a str, a torch.device or a Path"
        )
    if isinstance(named, Path) or (isinstance(named, str) and named.endswith(SUFFIX)):
        return described_target(Path(named))
    if named in named_targets():
        return named_targets()[str(named)]
    device = _device(named)
    if device is None or device.type not in DEVICE_TYPES:
        raise unknown_target(str(named), [*DEVICE_TYPES, *named_targets()])
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ArgumentError(
            f"target {str(named)!r} needs a GPU that torch can see, and it sees "
            f"{_gpus()}; name an architecture such as 'sm_90', or a file that describes a GPU, to "
            f"compile for one that is absent"
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
        _bandwidth(properties),
    )


def as_current(device: torch.device) -> AbstractContextManager[object]:
    """What makes a GPU the current one meanwhile; nothing on a CPU, which has no such state."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def hardware_name(device: torch.device) -> str:
    """What tells a device of this machine from the others, whichever of them a process sees."""
    if device.type == "cpu":
        return "cpu"
    found: Any = device.index or 0
    if device.type == "cuda":
        found = getattr(torch.cuda.get_device_properties(device), "uuid", found)
    return f"{device.type}-{found}"


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated on a device without taking any from others; None where the
    system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    try:
        content = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    found = re.search(r"^MemAvailable: *(\d+) kB$", content, re.M)
    return 1024 * int(found[1]) if found else None


def _bandwidth(properties: Any) -> int:
    """Bytes a second, of a memory that moves data twice a clock; 0 if torch does not say."""
    kilohertz = getattr(properties, "memory_clock_rate", 0)
    bits = getattr(properties, "memory_bus_width", 0)
    return 2 * kilohertz * 1000 * bits // 8
