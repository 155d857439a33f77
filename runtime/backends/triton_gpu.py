"""Triton for GPUs: source text to a cubin or code object, with or without a GPU."""

import hashlib
import importlib.util
import json
import linecache
import re
import tempfile
import threading
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pdssm_compiler.runtime.backends.base import Backend, Kernel, Sizes
from pdssm_compiler.runtime.backends.cubin import cubin_resources
from pdssm_compiler.runtime.errors import BackendUnavailableError
from pdssm_compiler.schedules.signature import Argument, Signature
from pdssm_compiler.schedules.source import KernelSource
from pdssm_compiler.schedules.target import Target

_SOURCE = "source.py"
_GROUP = "files.json"
_POINTERS = {
    "float16": "*fp16",
    "bfloat16": "*bf16",
    "float32": "*fp32",
    "float64": "*fp64",
    "uint8": "*u8",
    "int16": "*i16",
    "int32": "*i32",
    "int64": "*i64",
}

# Triton's cache folder is a process-wide setting.
_compile_lock = threading.Lock()


class TritonGpu(Backend):
    """The backend; see the module's text."""

    name = "triton"

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return "the Python package triton is missing: pip install triton (Linux only)"
        return None

    def compile(self, source: KernelSource, alignment: int) -> dict[str, bytes]:
        missing = self.unavailable()
        if missing:
            raise BackendUnavailableError(f"cannot compile for {source.target}: {missing}")
        import triton

        with tempfile.TemporaryDirectory() as folder, _compile_lock:
            before = triton.knobs.cache.dir
            triton.knobs.cache.dir = folder
            try:
                compiled = triton.compile(
                    ast_source(source, alignment),
                    target=_gpu_target(source.target),
                    options=source.options,
                )
            finally:
                triton.knobs.cache.dir = before
            group = {n: Path(p).read_bytes() for n, p in compiled.metadata_group.items()}
        record = {"hash": compiled.hash, "names": sorted(group)}
        return {
            **group,
            _SOURCE: source.text.encode(),
            _GROUP: json.dumps(record).encode(),
        }

    def load(self, source: KernelSource, alignment: int, files: dict[str, bytes]) -> Kernel:
        from triton.compiler import CompiledKernel

        record = json.loads(files[_GROUP])
        with tempfile.TemporaryDirectory() as folder:
            paths = {}
            for name in record["names"]:
                paths[name] = str(Path(folder) / name)
                Path(paths[name]).write_bytes(files[name])
            compiled = CompiledKernel(ast_source(source, alignment), paths, record["hash"])
        return TritonKernel(compiled, source)


class TritonKernel(Kernel):
    """A compiled kernel, loaded onto the current device at its first launch."""

    def __init__(self, compiled: Any, source: KernelSource) -> None:
        self._compiled = compiled
        self._signature = source.signature
        self._rows = source.config["rows"]

    def launch(self, tensors: Sequence[torch.Tensor], error: torch.Tensor, sizes: Sizes) -> None:
        rows = sizes.batch * sizes.heads
        if rows == 0:
            return
        arguments = kernel_arguments(self._signature, tensors, error, sizes)
        self._compiled[(-(-rows // self._rows), 1, 1)](*arguments)

    def resources(self) -> dict[str, int]:
        """Registers and spilled bytes a thread, shared bytes and barriers of the kernel.

        Read from the assembly's own notes, so no device is needed.
        """
        return assembly_resources(self._compiled)


def kernel_arguments(
    signature: Signature, tensors: Sequence[torch.Tensor], error: torch.Tensor, sizes: Sizes
) -> list[Any]:
    """The arguments of a generated function: pointers with leading strides, then sizes."""
    arguments: list[Any] = []
    for argument, tensor in zip(signature.arguments, tensors, strict=True):
        arguments.append(tensor)
        arguments += leading_strides(argument, tensor)
    rows = sizes.batch * sizes.heads
    return [*arguments, error, rows, sizes.length, sizes.heads]


def leading_strides(argument: Argument, tensor: torch.Tensor) -> list[int]:
    """Strides of the axes before the type's own; a complex number counts as one element."""
    strides = tensor.stride()[: len(argument.leading)]
    return [stride // 2 for stride in strides] if argument.complex else list(strides)


def ast_source(source: KernelSource, alignment: int) -> Any:
    """What Triton compiles: the function and its signature.

    Sizes and strides are int64 and never specialised on, so no length compiles twice.
    """
    from triton.compiler import ASTSource

    signature: dict[str, str] = {}
    for argument in source.signature.arguments:
        signature[argument.name] = _POINTERS[argument.dtype]
        signature.update({f"{argument.name}_s{axis}": "i64" for axis in argument.leading})
    signature.update({"error": "*i64", "rows": "i64", "L": "i64", "H": "i64"})
    attributes = {}
    if alignment:
        attributes = {
            (position,): [["tt.divisibility", alignment]]
            for position, (name, type_) in enumerate(signature.items())
            if type_.startswith("*") and name != "error"
        }
    return ASTSource(module_of(source).scan, signature, {}, attributes)


def module_of(source: KernelSource) -> types.ModuleType:
    """Run generated source as a module.

    Triton reads a function's source lines; they are given through :mod:`linecache`, so no file
    has to exist.
    """
    name = f"pdssm_kernel_{hashlib.sha256(source.text.encode()).hexdigest()[:16]}"
    filename = f"<{name}>"
    lines = source.text.splitlines(keepends=True)
    linecache.cache[filename] = (len(source.text), None, lines, filename)
    module = types.ModuleType(name)
    module.__file__ = filename
    module.__loader__ = None
    exec(compile(source.text, filename, "exec"), module.__dict__)
    return module


def _gpu_target(target: Target) -> Any:
    from triton.backends.compiler import GPUTarget

    arch = int(target.arch.removeprefix("sm_")) if target.kind == "cuda" else target.arch
    return GPUTarget(target.kind, arch, target.warp_size)


def assembly_resources(compiled: Any) -> dict[str, int]:
    """Registers, spills, shared memory and barriers of a compiled Triton kernel."""
    found = {"shared_bytes": int(compiled.metadata.shared)}
    if "ptx" in compiled.asm:
        found["barriers"] = len(
            re.findall(r"\bbar\.sync\b|\bbarrier\.sync\b", compiled.asm["ptx"])
        )
        found |= cubin_resources(compiled.asm["cubin"])
    else:
        text = compiled.asm["amdgcn"]
        found["barriers"] = len(re.findall(r"\bs_barrier\b", text))
        for name, label in (("registers", "vgpr_count"), ("spilled", "vgpr_spill_count")):
            match = re.search(rf"\.{label}:\s+(\d+)", text)
            found[name] = int(match[1]) if match else 0
    return found
