"""What Triton kernels that are written by hand can count on: :func:`triton_runs`.

Scans are compiled by templates; a few operators around them, which are no scans, have a kernel in
a file of its own and a way in plain torch, which runs where this says no.
"""

import importlib.util
import shutil
from functools import cache

import torch

from pdssm_compiler.runtime.tracing import constant


def triton_runs(device: torch.device) -> bool:
    """Whether Triton compiles and launches there: its launcher needs a C compiler."""
    return device.type == "cuda" and _launches()


def may_overlap(device: torch.device) -> bool:
    """Whether a kernel may be launched there while the one before it runs: on NVIDIA's since
    Hopper.
    """
    return torch.version.hip is None and _capability(device.index or 0) >= (9, 0)


@cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


@constant
def _launches() -> bool:
    return _found()


@cache
def _found() -> bool:
    there = importlib.util.find_spec("triton") is not None
    return there and any(map(shutil.which, ("gcc", "clang")))
