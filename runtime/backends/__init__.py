"""Backends: how generated source becomes a kernel that runs."""

from pdssm_compiler.runtime.backends.base import Backend, Kernel, Sizes
from pdssm_compiler.runtime.backends.pytorch import Pytorch
from pdssm_compiler.runtime.backends.triton_gpu import TritonGpu
from pdssm_compiler.runtime.backends.tvm_cpu import TvmCpu
from pdssm_compiler.runtime.backends.tvm_cuda import TvmCuda

BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (TvmCpu(), TvmCuda(), TritonGpu(), Pytorch())
}

__all__ = ["BACKENDS", "Backend", "Kernel", "Sizes"]
