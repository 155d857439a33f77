"""TVM for NVIDIA GPUs: TVMScript to CUDA, CUDA to a cubin, the cubin to the driver.

TVM writes the CUDA text; NVRTC, or nvcc where its library is not installed, compiles it; neither
needs a GPU. Loading and launching take the driver alone.
"""

import json
import re
from collections.abc import Callable

from pdssm_compiler.runtime.backends.base import Backend, Kernel
from pdssm_compiler.runtime.backends.cubin import disassembled
from pdssm_compiler.runtime.backends.cuda_chunked import ClusteredCudaKernel, WindowedCudaKernel
from pdssm_compiler.runtime.backends.cuda_compilers import compile_cuda, missing_compiler
from pdssm_compiler.runtime.backends.cuda_launch import CudaKernel
from pdssm_compiler.runtime.backends.tvm_cpu import missing_package
from pdssm_compiler.runtime.backends.tvm_script import import_tvm, parsed
from pdssm_compiler.runtime.errors import BackendUnavailableError
from pdssm_compiler.schedules.emit.lane_functions import LANE_FUNCTIONS
from pdssm_compiler.schedules.source import KernelSource

_SOURCE = "source.py"
_CUDA = "kernel.cu"
_CUBIN = "kernel.cubin"
_CALL = "call.json"
ENTRY = "scan_kernel"
# How a kernel is launched, by an option of its source: the first that it has.
_KINDS = {"clusters": ClusteredCudaKernel, "chunk_tokens": WindowedCudaKernel}


class TvmCuda(Backend):
    """The backend; see the module's text."""

    name = "tvm-cuda"

    def unavailable(self) -> str | None:
        return missing_package("tvm", "tvm_ffi") or missing_compiler()

    def compile(self, source: KernelSource, alignment: int) -> dict[str, bytes]:
        missing = self.unavailable()
        if missing:
            raise BackendUnavailableError(f"cannot compile for {source.target}: {missing}")
        text = cuda_text(source)
        return {
            _SOURCE: source.text.encode(),
            _CUDA: text.encode(),
            _CUBIN: compile_cuda(text, source.target.arch),
            _CALL: json.dumps(parameters_of(text)).encode(),
        }

    def cannot_load(self, files: dict[str, bytes]) -> str | None:
        return None

    def needs(self, files: dict[str, bytes]) -> str:
        return "an NVIDIA driver"

    def stages(
        self, source: KernelSource, files: dict[str, bytes]
    ) -> dict[str, Callable[[], str]]:
        text = files[_CUDA].decode()
        return {
            "cuda": lambda: text,
            "ptx": lambda: compile_cuda(text, source.target.arch, "ptx").decode(),
            "sass": lambda: disassembled(files[_CUBIN]),
        }

    def load(self, source: KernelSource, alignment: int, files: dict[str, bytes]) -> Kernel:
        return kernel_type(source)(files[_CUBIN], ENTRY, json.loads(files[_CALL]), source)


def kernel_type(source: KernelSource) -> type[CudaKernel]:
    """How a source's kernel is launched."""
    return next((k for name, k in _KINDS.items() if name in source.options), CudaKernel)


def cuda_text(source: KernelSource) -> str:
    """The CUDA C++ of a kernel."""
    tvm = import_tvm()
    module = parsed(source.text, {"LANE_FUNCTIONS": LANE_FUNCTIONS})
    # The host part is CUDA as well: with an LLVM host, TVM would load a driver to compile.
    target = tvm.target.Target(
        {"kind": "cuda", "arch": source.target.arch}, host={"kind": "cuda_host"}
    )
    executable = tvm.compile(module, target=target, tir_pipeline="tirx")
    (device,) = executable.mod.imports
    return device.inspect_source()


def parameters_of(text: str) -> list[tuple[str, str]]:
    """Name and C type of each parameter of the kernel, in the order TVM chose."""
    (declared,) = set(re.findall(rf"{ENTRY}\(([^)]*)\)", text))
    found = []
    for parameter in declared.split(","):
        type_, name = parameter.replace("__restrict__", "").rsplit(None, 1)
        found.append((name, "pointer" if "*" in type_ else type_.strip()))
    return found
