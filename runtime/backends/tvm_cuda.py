"""TVM for NVIDIA GPUs: TVMScript to CUDA, CUDA to a cubin, the cubin to the driver.

TVM writes the CUDA text; NVRTC, or nvcc where its library is not installed, compiles it; neither
needs a GPU. Loading and launching take the driver alone. (The choice of a template does not know
of cached kernels yet, so where TVM or a compiler is missing another template is taken, unless this
one is asked for.)
"""

import json
import re
import struct
from collections.abc import Callable, Sequence
from operator import itemgetter

import torch

from pdssm_compiler.runtime.backends.base import Backend, Kernel, Sizes
from pdssm_compiler.runtime.backends.cubin import cubin_resources, disassembled
from pdssm_compiler.runtime.backends.cuda_compilers import compile_cuda, missing_compiler
from pdssm_compiler.runtime.backends.cuda_driver import DriverKernel
from pdssm_compiler.runtime.backends.tvm_cpu import import_tvm, missing_package
from pdssm_compiler.runtime.errors import BackendUnavailableError
from pdssm_compiler.schedules.emit.tvm_lanes import LANE_FUNCTIONS
from pdssm_compiler.schedules.signature import Argument
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


def _is_copied(argument: Argument) -> bool:
    """Whether a kernel copies the tensor in units that its layout must allow."""
    in_tokens = argument.role in ("token", "lagged") and not argument.written
    return in_tokens and bool(argument.own_shape(1))


def parameters_of(text: str) -> list[tuple[str, str]]:
    """Name and C type of each parameter of the kernel, in the order TVM chose."""
    (declared,) = set(re.findall(rf"{_ENTRY}\(([^)]*)\)", text))
    found = []
    for parameter in declared.split(","):
        type_, name = parameter.replace("__restrict__", "").rsplit(None, 1)
        found.append((name, "pointer" if "*" in type_ else type_.strip()))
    return found


FORMATS = {"pointer": "Q", "int64_t": "q", "int": "i"}


class TvmCudaKernel(Kernel):
    """A cubin, given to the driver at its first launch."""

    def __init__(
        self, cubin: bytes, parameters: list[tuple[str, str]], source: KernelSource
    ) -> None:
        self._cubin = cubin
        arguments = source.signature.arguments
        self._shared_bytes = int(source.options["shared_bytes"])
        self._pack = struct.Struct("@" + "".join(FORMATS[type_] for _, type_ in parameters)).pack
        # What a launch knows, by the names that generated text has for it.
        names: list[str] = []
        for argument in arguments:
            names += [f"{argument.name}_ptr", *(f"{argument.name}_s{a}" for a in argument.leading)]
        names += ["error_ptr", "rows", "L", "H", "aligned"]
        self._in_order = itemgetter(*(names.index(name) for name, _ in parameters))
        # Number of leading axes, and the bytes of an element where copies depend on alignment.
        self._layouts = [
            (
                len(argument.leading),
                getattr(torch, argument.dtype).itemsize if _is_copied(argument) else 0,
            )
            for argument in arguments
        ]
        self._loaded: DriverKernel | None = None

    def launch(self, tensors: Sequence[torch.Tensor], error: torch.Tensor, sizes: Sizes) -> None:
        batch, length, heads = sizes
        rows = batch * heads
        if rows == 0:
            return
        if self._loaded is None:
            self._loaded = DriverKernel(self._cubin, _ENTRY, self._shared_bytes)
        known: list[int] = []
        bits = 0
        for tensor, (leading, width) in zip(tensors, self._layouts, strict=True):
            pointer, strides = tensor.data_ptr(), tensor.stride()[:leading]
            known += (pointer, *strides)
            if width:
                bits |= pointer
                for stride in strides:
                    bits |= stride * width
        known += (error.data_ptr(), rows, length, heads, bits % 16 == 0)
        stream = torch.cuda.current_stream().cuda_stream
        self._loaded.launch(rows, THREADS, self._pack(*self._in_order(known)), stream)

    def resources(self) -> dict[str, int]:
        """Registers, spilled and shared bytes, from the cubin's own notes: no device is needed."""
        return cubin_resources(self._cubin) | {"shared_bytes": self._shared_bytes}
