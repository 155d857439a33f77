"""Torch devices to targets."""

from functools import cache
from typing import Any

import torch

from pdssm_compiler.schedules.target import Target, cpu_target, gpu_target


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
    )
