"""Kernels of the TVM CUDA backend without a GPU: lowered, compiled, and launched on a driver that
only takes notes.
"""

import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pdssm_compiler.ir import Program
from pdssm_compiler.ir.passes import adjoint, specialise
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime.backends import BACKENDS, Sizes, cuda_launch
from pdssm_compiler.runtime.backends.cuda_launch import FORMATS
from pdssm_compiler.schedules.source import KernelSource
from pdssm_compiler.schedules.target import named_target
from pdssm_compiler.schedules.templates.base import Config, Problem, Template
from tests.kernels import under_stress

Record = Callable[[str, object], None]
# What a launch is handed, by the names of the kernel's parameters and of the launch's own.
Handed = dict[str, Any]

BACKEND = BACKENDS["tvm-cuda"]
H100 = named_target("sm_90")
# The newest and one before it each time, the others under stress.
ARCHS = ["sm_90", "sm_120", *under_stress("sm_80", "sm_100")]
WHICH = ("general", "permutation", "adjoint", "active adjoint")
# State size, size of the dictionary, element and orientation of scans whose adjoint has sums.
SUMS = ((5, 3, "c64", "column"), (33, 4, "c128", "column"), (128, 8, "c64", "row"))
# What was compiled, by target and source.
_files: dict[str, dict[str, bytes]] = {}


def scan_of(which: str) -> Program:
    """One of :data:`WHICH`, of 32 states."""
    map_class = "permutation" if which == "permutation" else "general"
    program = pd_scan(PdScan(32, 4, map_class=map_class, final_state=True))
    if "adjoint" not in which:
        return program
    return adjoint(program, surrogate="active" if "active" in which else None).program


def active_adjoint(state_size: int, size: int, element: str, orientation: str) -> Program:
    """A backward program with sums by an index."""
    spec = PdScan(state_size, size, element, orientation=orientation)
    return adjoint(pd_scan(spec), surrogate="active").program


def lowered(
    template: Template[Any], program: Program, arch: str = "sm_90", config: Config | None = None
) -> KernelSource:
    """The source of a program, by the heuristic where no config is given."""
    target, program = named_target(arch), specialise(program)
    config = config or template.heuristic(program, target, Problem())
    assert template.feasible(program, target, config) is None
    return template.lower(program, target, config)


def compiled(source: KernelSource) -> dict[str, bytes]:
    """A kernel's files, made once for a target."""
    key = source.target.arch + source.text
    if key not in _files:
        _files[key] = BACKEND.compile(source, 16)
    return _files[key]


def resources(source: KernelSource, record: Record) -> dict[str, int]:
    """What the compiled kernel takes, which the test's report tells as well."""
    files = compiled(source)
    assert files["source.py"].decode() == source.text
    found = BACKEND.load(source, 16, files).resources()
    for name, value in found.items():
        record(name, value)
    assert 0 < found["registers"] <= source.target.registers
    assert 0 < found["shared_bytes"] <= source.target.shared_memory
    return found


# Where checks are recorded.
_ERROR = torch.zeros(1, dtype=torch.int64)


def tensors_for(source: KernelSource, sizes: Sizes) -> list[torch.Tensor]:
    """Zeros for every argument of a kernel, dense."""
    extents = {"B": sizes.batch, "L": sizes.length, "H": sizes.heads}
    return [
        torch.zeros(
            *(extents[axis] for axis in argument.leading),
            *argument.own_shape(source.program.state_size),
            dtype=getattr(torch, argument.dtype),
        )
        for argument in source.signature.arguments
    ]


def launches(
    monkeypatch: pytest.MonkeyPatch,
    source: KernelSource,
    tensors: list[torch.Tensor],
    sizes: Sizes,
    at_once: int = 132,
    running: Callable[[Handed], None] = lambda handed: None,
    files: dict[str, bytes] | None = None,
    dense: bool = False,
) -> list[Handed]:
    """What the driver is handed when a kernel is launched.

    Args:
        monkeypatch: puts the note-taking driver in place of CUDA's.
        source: the kernel.
        tensors: its arguments.
        sizes: of the call.
        at_once: blocks that the device is said to run at the same time.
        running: what happens while the kernel would run.
        files: the kernel's; without them it is compiled.
        dense: whether it is told that the tensors are contiguous, complex ones as they are.
    """
    if files is None:
        files = compiled(source)
    parameters = json.loads(files["call.json"])
    layout = struct.Struct("@" + "".join(FORMATS[type_] for _, type_ in parameters))
    noted: list[Handed] = []

    class Recorder:
        _how = "launch"

        def __init__(self, cubin: bytes, name: str, shared_bytes: int, device: int) -> None:
            assert (cubin, name) == (files["kernel.cubin"], "scan_kernel")
            assert (shared_bytes, device) == (source.options["shared_bytes"], 3)

        def blocks_at_once(self, threads: int) -> int:
            assert threads == source.options["threads"]
            return at_once

        def clusters_at_once(self, size: int, threads: int) -> int:
            return self.blocks_at_once(threads) // size

        def launch(self, blocks: int, threads: int, packed: bytes, stream: int) -> None:
            names = [name for name, _ in parameters]
            handed = dict(zip(names, layout.unpack(packed), strict=True))
            handed |= {"grid": blocks, "threads": threads, "stream": stream, "how": self._how}
            noted.append(handed)
            running(handed)

        def launch_together(
            self, blocks: int, threads: int, packed: bytes, offsets: list[int], stream: int
        ) -> None:
            # Every parameter is found by its own offset.
            for value, (_, type_), at in zip(
                layout.unpack(packed), parameters, offsets, strict=True
            ):
                assert struct.unpack_from("@" + FORMATS[type_], packed, at) == (value,)
            self.launch(blocks, threads, packed, stream)

        def launch_early(
            self, blocks: int, threads: int, packed: bytes, offsets: list[int], stream: int
        ) -> None:
            self._how = "launch_early"
            self.launch_together(blocks, threads, packed, offsets, stream)

        def launch_in_clusters(
            self,
            size: int,
            blocks: int,
            threads: int,
            packed: bytes,
            offsets: list[int],
            stream: int,
        ) -> None:
            self._how = f"launch_in_clusters of {size}"
            self.launch_together(blocks, threads, packed, offsets, stream)

    monkeypatch.setattr(cuda_launch, "DriverKernel", Recorder)
    monkeypatch.setattr(cuda_launch.CudaKernel, "_device", staticmethod(lambda: 3))
    monkeypatch.setattr(cuda_launch.CudaKernel, "_stream", staticmethod(lambda: 7))
    kernel = BACKEND.load(source, 16, files)
    launch = kernel.launch
    if dense:
        launch = kernel.launch_dense
        tensors = [
            torch.view_as_complex(tensor) if argument.complex else tensor
            for tensor, argument in zip(tensors, source.signature.arguments, strict=True)
        ]
    launch(tensors, _ERROR, sizes)
    return noted
