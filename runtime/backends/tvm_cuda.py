"""TVM for NVIDIA GPUs: TVMScript to CUDA, CUDA to a cubin, the cubin to the driver.

TVM writes the CUDA text; nvcc, or NVRTC where only its library is installed, compiles it; neither
needs a GPU. Loading and launching take the driver alone, so a cached kernel runs where TVM and the
CUDA toolkit are missing.
"""

import json
import re
import struct
from collections.abc import Callable, Sequence

import torch

from pdssm_compiler.runtime.backends.base import Backend, Kernel, Sizes
from pdssm_compiler.runtime.backends.cubin import cubin_resources
from pdssm_compiler.runtime.backends.cuda_compilers import compile_cuda, missing_compiler
from pdssm_compiler.runtime.backends.cuda_driver import DriverKernel
from pdssm_compiler.runtime.backends.tvm_cpu import import_tvm, missing_package
from pdssm_compiler.runtime.errors import BackendUnavailableError
from pdssm_compiler.schedules.emit.tvm_lanes import LANE_FUNCTIONS
from pdssm_compiler.schedules.source import KernelSource
from pdssm_compiler.schedules.templates.cuda_rows import THREADS

_SOURCE = "source.py"
_CUDA = "kernel.cu"
_CUBIN = "kernel.cubin"
_CALL = "call.json"
_ENTRY = "scan_kernel"


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

    def load(self, source: KernelSource, alignment: int, files: dict[str, bytes]) -> Kernel:
        return TvmCudaKernel(files[_CUBIN], json.loads(files[_CALL]), source)


def cuda_text(source: KernelSource) -> str:
    """The CUDA C++ of a kernel."""
    tvm = import_tvm()
    from tvm.script import ir as module_script
    from tvm.script import tirx as tir_script

    names = {"T": tir_script, "I": module_script, "LANE_FUNCTIONS": LANE_FUNCTIONS}
    module = tvm.script.from_source(source.text, names)
    # The host part is CUDA as well: with an LLVM host, TVM would load a driver to compile.
    target = tvm.target.Target(
        {"kind": "cuda", "arch": source.target.arch}, host={"kind": "cuda_host"}
    )
    executable = tvm.compile(module, target=target, tir_pipeline="tirx")
    (device,) = executable.mod.imports
    return device.inspect_source()


def parameters_of(text: str) -> list[tuple[str, str]]:
    """Name and C type of each parameter of the kernel, in the order TVM chose."""
    (declared,) = set(re.findall(rf"{_ENTRY}\(([^)]*)\)", text))
    found = []
    for parameter in declared.split(","):
        type_, name = parameter.replace("__restrict__", "").rsplit(None, 1)
        found.append((name, "pointer" if "*" in type_ else type_.strip()))
    return found


_FORMATS = {"pointer": "Q", "int64_t": "q", "int": "i"}


class TvmCudaKernel(Kernel):
    """A cubin, given to the driver at its first launch."""

    def __init__(
        self, cubin: bytes, parameters: list[tuple[str, str]], source: KernelSource
    ) -> None:
        self._cubin = cubin
        self._signature = source.signature
        self._pack = struct.Struct("@" + "".join(_FORMATS[type_] for _, type_ in parameters)).pack
        self._values = [self._reader(name) for name, _ in parameters]
        self._widths = [
            torch.empty(0, dtype=getattr(torch, a.dtype)).element_size()
            for a in self._signature.arguments
        ]
        self._loaded: DriverKernel | None = None

    def _reader(self, name: str) -> Callable[[Sequence[torch.Tensor], Sizes, bool], int]:
        """How a parameter is found from a call."""
        sizes = {"L": 1, "H": 2}
        if name in sizes:
            at = sizes[name]
            return lambda tensors, call, aligned: call[at]
        if name == "rows":
            return lambda tensors, call, aligned: call.batch * call.heads
        if name == "aligned":
            return lambda tensors, call, aligned: int(aligned)
        names = [argument.name for argument in self._signature.arguments] + ["error"]
        if name.endswith("_ptr"):
            number = names.index(name.removesuffix("_ptr"))
            return lambda tensors, call, aligned: tensors[number].data_ptr()
        tensor, _, axis = name.rpartition("_s")
        number = names.index(tensor)
        position = self._signature.arguments[number].leading.index(axis)
        return lambda tensors, call, aligned: tensors[number].stride(position)

    def launch(self, tensors: Sequence[torch.Tensor], error: torch.Tensor, sizes: Sizes) -> None:
        rows = sizes.batch * sizes.heads
        if rows == 0:
            return
        if self._loaded is None:
            self._loaded = DriverKernel(self._cubin, _ENTRY)
        aligned = all(
            tensor.data_ptr() % 16 == 0
            and all(
                stride * width % 16 == 0 for stride in tensor.stride()[: len(argument.leading)]
            )
            for tensor, argument, width in zip(
                tensors, self._signature.arguments, self._widths, strict=True
            )
            if argument.role in ("token", "lagged")
            and not argument.written
            and argument.own_shape(2)
        )
        given = [*tensors, error]
        packed = self._pack(*(read(given, sizes, aligned) for read in self._values))
        stream = torch.cuda.current_stream().cuda_stream
        self._loaded.launch(rows, THREADS, packed, stream)

    def resources(self) -> dict[str, int]:
        """Registers, spilled and shared bytes, from the cubin's own notes: no device is needed."""
        return cubin_resources(self._cubin)
