"""Whether Triton kernels that are written by hand run on a device: :func:`triton_runs`.

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


@constant
def _launches() -> bool:
    return _found()


@cache
def _found() -> bool:
    there = importlib.util.find_spec("triton") is not None
    return there and any(map(shutil.which, ("gcc", "clang")))
