"""What is possible on this machine: each way to compile or run kernels, and what keeps it."""

import shutil
from typing import NamedTuple

import torch

from pdssm_compiler.runtime.backends import BACKENDS
from pdssm_compiler.runtime.backends import cuda_compilers as cuda
from pdssm_compiler.runtime.backends.cuda_driver import driver
from pdssm_compiler.runtime.backends.tvm_cpu import C_COMPILERS, LIBRARY, missing_package
from pdssm_compiler.runtime.errors import BackendUnavailableError


class Capability(NamedTuple):
    """One way.

    Attributes:
        way: what it is.
        does: what it is for.
        missing: None if it is possible, otherwise what is missing and the remedy.
    """

    way: str
    does: str
    missing: str | None


def capabilities() -> list[Capability]:
    """Every way there is. Compilers of CUDA are tried, on a small text."""
    no_tvm = missing_package("tvm", "tvm_ffi")
    no_triton = BACKENDS["triton"].unavailable()
    no_c = _without_c_compiler()
    return [
        Capability("TVM with LLVM", "compiles for CPUs", BACKENDS["tvm"].unavailable()),
        Capability("TVM with NVRTC", "compiles for NVIDIA GPUs", no_tvm or cuda.why_not("NVRTC")),
        Capability("TVM with nvcc", "compiles for NVIDIA GPUs", no_tvm or cuda.why_not("nvcc")),
        Capability("Triton", "compiles for NVIDIA and AMD GPUs", no_triton),
        Capability(
            "TVM-FFI alone",
            "runs CPU kernels compiled ahead of time",
            BACKENDS["tvm"].cannot_load({LIBRARY: b""}),
        ),
        Capability(
            "NVIDIA driver alone",
            "runs TVM's GPU kernels, compiled here or ahead of time",
            _without_driver(),
        ),
        Capability(
            "launcher of Triton",
            "runs Triton's kernels, compiled here or ahead of time",
            no_triton or _without_gpu() or no_c,
        ),
        Capability("C compiler", "links CPU kernels that need TVM-FFI alone", no_c),
        Capability("plain PyTorch", "runs anywhere, slowly, where the others are missing", None),
    ]


def _without_driver() -> str | None:
    try:
        driver()
    except BackendUnavailableError as error:
        return str(error)
    return None


def _without_gpu() -> str | None:
    if torch.cuda.is_available():
        return None
    return "torch sees no GPU: it needs one, its driver, and a torch built for it"


def _without_c_compiler() -> str | None:
    if any(map(shutil.which, C_COMPILERS)):
        return None
    return f"none of {', '.join(C_COMPILERS)} is on PATH: install one, such as gcc"
