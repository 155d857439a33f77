"""Triton for GPUs: source text to a cubin or code object, with or without a GPU."""

import hashlib
import importlib.util
import json
import linecache
import re
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pdssm_compiler.ir.types import Table
from pdssm_compiler.runtime.backends.base import Backend, Kernel, Sizes
from pdssm_compiler.runtime.backends.cubin import cubin_resources, disassembled
from pdssm_compiler.runtime.backends.triton_files import checked_libraries, fresh_folder
from pdssm_compiler.runtime.backends.triton_matrices import MatrixLauncher
from pdssm_compiler.runtime.errors import BackendUnavailableError
from pdssm_compiler.runtime.staging import private_folder
from pdssm_compiler.schedules.emit.triton_kernel import size_names
from pdssm_compiler.schedules.signature import Argument
from pdssm_compiler.schedules.source import KernelSource, Phase
from pdssm_compiler.schedules.target import Target

_SOURCE = "source.py"
_GROUP = "files.json"
_STAGES = ("ttir", "ttgir", "llir", "ptx", "amdgcn")
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

        files: dict[str, bytes] = {}
        records = []
        with fresh_folder():
            for phase in source.launches:
                compiled = triton.compile(
                    ast_source(source, phase, alignment),
                    target=_gpu_target(source.target),
                    options=source.options,
                )
                # Named by the function they were made from.
                group = {n: Path(p).read_bytes() for n, p in compiled.metadata_group.items()}
                records.append({"hash": compiled.hash, "names": sorted(group)})
                files |= group
        return files | {_SOURCE: source.text.encode(), _GROUP: json.dumps(records).encode()}

    def needs(self, files: dict[str, bytes]) -> str:
        return "triton, a C compiler and the GPU's driver"

    def stages(
        self, source: KernelSource, files: dict[str, bytes]
    ) -> dict[str, Callable[[], str]]:
        """Triton's own, of the function that runs the tokens last."""
        last = source.entry
        stages: dict[str, Callable[[], str]] = {}
        for name in _STAGES:
            text = files.get(f"{last}.{name}")
            if text is not None:
                stages[name] = text.decode
        cubin = files.get(f"{last}.cubin")
        if cubin is not None:
            stages["sass"] = lambda: disassembled(cubin)
        return stages

    def load(self, source: KernelSource, alignment: int, files: dict[str, bytes]) -> Kernel:
        from triton.compiler import CompiledKernel

        functions = []
        for phase, record in zip(source.launches, json.loads(files[_GROUP]), strict=True):
            with private_folder() as folder:
                paths = {}
                for name in record["names"]:
                    paths[name] = str(folder / name)
                    (folder / name).write_bytes(files[name])
                made_from = ast_source(source, phase, alignment)
                functions.append(CompiledKernel(made_from, paths, record["hash"]))
        return TritonKernel(functions, source)


class TritonKernel(Kernel):
    """Compiled functions, loaded onto the current device at their first launch."""

    def __init__(self, functions: Sequence[Any], source: KernelSource) -> None:
        self._functions = functions
        self._entries = [phase.entry for phase in source.launches]
        self._launcher = launcher_of(functions, source)
        self._loaded = False

    def launch(self, tensors: Sequence[torch.Tensor], error: torch.Tensor, sizes: Sizes) -> None:
        if not self._loaded:
            self._load()
        self._launcher(tensors, error, sizes)

    def _load(self) -> None:
        """Load the functions, and the library that Triton launches them with."""
        with checked_libraries():
            for function in self._functions:
                # Made when it is first asked for.
                function.run  # noqa: B018
        self._loaded = True

    def resources(self) -> dict[str, int]:
        """Registers and spilled bytes a thread, shared bytes and barriers: of each function, as
        ``fold.registers``, where there are several, and the most that any takes.

        Read from the assembly's own notes, so no device is needed.
        """
        found = [assembly_resources(function) for function in self._functions]
        most = {name: max(each[name] for each in found) for name in found[0]}
        if len(found) == 1:
            return most
        named = zip(self._entries, found, strict=True)
        return most | {f"{e}.{name}": value for e, each in named for name, value in each.items()}


class Launcher:
    """Runs a source's functions one after the other, on one stream.

    Scratch comes from torch's allocator at each call: it is the stream's own, and a CUDA graph
    that captures the call keeps it. Signals are cleared at each call, and at each replay.

    Args:
        functions: what each phase launches, ``function[grid](*arguments)``.
        source: what they were made from.
        empty: makes scratch, as :func:`torch.empty` does.
    """

    def __init__(
        self, functions: Sequence[Any], source: KernelSource, empty: Any = torch.empty
    ) -> None:
        self._empty = empty
        self._rows: int = source.config["rows"]
        self._chunking = source.chunking
        self._scratch = [
            (
                argument.role,
                argument.own_shape(source.program.state_size),
                getattr(torch, argument.dtype),
            )
            for argument in source.scratch
        ]
        names = [argument.name for argument in (*source.signature.arguments, *source.scratch)]
        self._phases = [
            (function, phase, _places(phase, names))
            for function, phase in zip(functions, source.launches, strict=True)
        ]

    def __call__(self, tensors: Sequence[torch.Tensor], error: torch.Tensor, sizes: Sizes) -> None:
        """Launch; see :meth:`Kernel.launch`."""
        batch, length, heads = sizes
        rows = batch * heads
        if rows == 0:
            return
        blocks = -(-rows // self._rows)
        span, chunks = length, 1
        if self._chunking is not None:
            span = self._chunking.length(blocks, length)
            chunks = self._chunking.chunks(span, length)
        if self._scratch:
            leading: dict[str, tuple[int, ...]] = {
                "chunk": (batch, chunks, heads),
                "head": (heads,),
            }
            if self._chunking is not None:
                leading["signal"] = (self._chunking.signals(blocks, chunks),)
            device = tensors[0].device
            tensors = list(tensors)
            for role, own, dtype in self._scratch:
                empty = torch.zeros if role == "signal" else self._empty
                tensors.append(empty((*leading[role], *own), dtype=dtype, device=device))
        for function, phase, places in self._phases:
            values: list[Any] = []
            for argument, place in zip(phase.arguments, places, strict=True):
                tensor = tensors[place]
                values.append(tensor)
                values += leading_strides(argument, tensor)
            of_chunks = phase.runs in ("summaries", "groups")
            values += (error, rows, chunks if of_chunks else length, heads)
            grid = (blocks, 1, 1)
            if phase.runs == "chunk":
                values.append(span)
                grid = (blocks, chunks, 1)
            elif phase.runs == "next chunk":
                values += (blocks, chunks)
                grid = (blocks * chunks, 1, 1)
            elif phase.runs == "map":
                table = phase.arguments[0].type
                assert isinstance(table, Table)
                grid = (table.size, -(-heads // self._rows), 1)
            elif phase.runs == "groups":
                grid = ((phase.arguments[0].groups or 1) * blocks, 1, 1)
            function[grid](*values)


def launcher_of(
    functions: Sequence[Any], source: KernelSource, empty: Any = torch.empty
) -> Launcher | MatrixLauncher:
    """What runs a source's functions."""
    of_matrices = source.program.over_matrices
    return (MatrixLauncher if of_matrices else Launcher)(functions, source, empty)


def _places(phase: Phase, names: Sequence[str]) -> list[int]:
    """Where a phase's arguments stand among all tensors."""
    return [names.index(argument.name) for argument in phase.arguments]


def leading_strides(argument: Argument, tensor: torch.Tensor) -> list[int]:
    """Strides of the axes before the type's own; a complex number counts as one element."""
    strides = tensor.stride()[: len(argument.leading)]
    return [stride // 2 for stride in strides] if argument.complex else list(strides)


def ast_source(source: KernelSource, phase: Phase, alignment: int) -> Any:
    """What Triton compiles: a phase's function and its signature.

    Sizes and strides are int64 and never specialised on, so no length compiles twice.
    """
    from triton.compiler import ASTSource

    signature: dict[str, str] = {}
    for argument in phase.arguments:
        signature[argument.name] = _POINTERS[argument.dtype]
        signature.update({f"{argument.name}_s{axis}": "i64" for axis in argument.leading})
    signature["error"] = "*i64"
    signature.update(dict.fromkeys(size_names(phase.runs), "i64"))
    attributes = {}
    if alignment:
        attributes = {
            (position,): [["tt.divisibility", alignment]]
            for position, (name, type_) in enumerate(signature.items())
            if type_.startswith("*") and name != "error"
        }
    return ASTSource(getattr(module_of(source), phase.entry), signature, {}, attributes)


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
