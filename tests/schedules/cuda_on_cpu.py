"""CUDA kernels on a CPU: their own text, compiled for it, with ``cuda_on_cpu.h`` in CUDA's place.

It finds what is wrong in a kernel's logic, and, by drawing the order in which threads come along,
barriers that are missing. What hardware does to memory order it does not know.
"""

import atexit
import ctypes
import hashlib
import re
import shutil
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from pdssm_compiler.ir import Program
from pdssm_compiler.ir.passes import specialise
from pdssm_compiler.runtime.backends import Sizes, tvm_cuda
from pdssm_compiler.runtime.backends.cuda_launch import FORMATS
from pdssm_compiler.runtime.binding import Slot, bind
from pdssm_compiler.schedules.emit.lane_functions import LANE_FUNCTIONS
from pdssm_compiler.schedules.signature import Argument, Signature
from pdssm_compiler.schedules.source import KernelSource
from pdssm_compiler.schedules.templates.base import Config, Problem, Template
from tests.kernels import poisoned
from tests.schedules.cuda import H100

HERE = Path(__file__).parent
# Written in assembly for a GPU; the header has them in C++.
ASSEMBLY = (
    "lane_wait_for_others",
    "lane_bfloat16",
    "lane_float16",
    "lane_of_float16",
    "lane_reciprocal",
    "lane_shared",
    "lane_copy16",
    "lane_copy8",
    "lane_copy4",
    "lane_copies_done",
    "lane_copies_group",
    "lane_copies_but_last",
    "lane_barrier_init",
    "lane_arrive",
    "lane_arrive_with_copies",
    "lane_wait",
    "lane_publish",
    "lane_await",
    "lane_post_word",
    "lane_take_word",
    "lane_post_near_word",
    "lane_post_across_word",
    "lane_cluster_sync",
    "lane_take_near_word",
    "lane_team_sync",
    "lane_team_any",
)


def without_assembly(text: str) -> str:
    """The device functions without those that the header has."""
    for name in ASSEMBLY:
        pattern = rf"^__device__ __forceinline__ [\w ]+ {name}\(.*?^}}\n"
        text, count = re.subn(pattern, "", text, flags=re.MULTILINE | re.DOTALL)
        assert count == 1, name
    assert "asm" not in text
    return text


HEADER = "cuda_on_cpu.h"
MACHINE = "cuda_on_cpu.cpp"


@cache
def _compiler() -> tuple[Path, list[str]]:
    """A folder with the header and the machine, compiled ahead, and the command that compiles
    there. Kernels run for milliseconds: they are not optimised, the machine is.
    """
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler here")
    folder = Path(tempfile.mkdtemp(prefix="pdssm-cuda-on-cpu-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "lanes.h").write_text(without_assembly(LANE_FUNCTIONS))
    command = [compiler, "-std=c++17", "-fPIC", "-w", f"-I{folder}", f"-I{HERE}"]
    machine = ["-O1", "-c", str(HERE / MACHINE), "-o", str(folder / "machine.o")]
    # g++ takes it in the header's place; clang++ leaves it.
    header = ["-O0", "-x", "c++-header", str(HERE / HEADER), "-o", str(folder / f"{HEADER}.gch")]
    for ahead in (machine, header):
        subprocess.run([*command, *ahead], check=True, timeout=120)
    return folder, [*command, "-O0"]


@cache
def compiled(text: str) -> ctypes.CDLL:
    """A library of C++ text that includes the header."""
    folder, command = _compiler()
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    source, library = folder / f"{name}.cpp", folder / f"{name}.so"
    source.write_text(text)
    made_of = [str(source), str(folder / "machine.o")]
    subprocess.run([*command, "-shared", *made_of, "-o", str(library)], check=True, timeout=120)
    return ctypes.CDLL(str(library))


_cuda_texts: dict[str, str] = {}


def _cuda_text(source: KernelSource) -> str:
    """The CUDA text of a source for one target, made once."""
    if source.text not in _cuda_texts:
        _cuda_texts[source.text] = tvm_cuda.cuda_text(source)
    return _cuda_texts[source.text]


def _kernel_text(cuda: str) -> str:
    """The kernel alone, and a function that runs it on a grid."""
    kernel = cuda[cuda.rindex('extern "C" __global__') :]
    kernel = re.sub(
        r"extern __shared__ .*?(\w+)\[\];", r"unsigned char* \1 = shared_memory();", kernel
    )
    (declared,) = re.findall(rf"{tvm_cuda.ENTRY}\(([^)]*)\)", kernel)
    types = [p.replace("__restrict__", "").rsplit(None, 1)[0] for p in declared.split(",")]
    given = ", ".join(f"*static_cast<{type_}*>(at[{i}])" for i, type_ in enumerate(types))
    return f"""#include "{HEADER}"
{kernel}
extern "C" int launch(int blocks, int cluster, int threads, int shared, int seed, void** at) {{
  return run_threads(
      blocks, cluster, threads, shared, seed,
      [](void* with) {{
        void** at = static_cast<void**>(with);
        {tvm_cuda.ENTRY}({given});
      }},
      at);
}}
"""


class _Driver:
    """Launches on the CPU, in a grid that has ``most`` blocks at once."""

    def __init__(self, source: KernelSource, cuda: str, most: int, seed: int) -> None:
        self._launch = compiled(_kernel_text(cuda)).launch
        self._parameters = tvm_cuda.parameters_of(cuda)
        self._shared = int(source.options["shared_bytes"])
        self._most, self._seed = most, seed

    def blocks_at_once(self, threads: int) -> int:
        return self._most

    def clusters_at_once(self, size: int, threads: int) -> int:
        return self._most // size

    def launch(
        self, blocks: int, threads: int, packed: bytes, stream: int, cluster: int = 1
    ) -> None:
        layout = struct.Struct("@" + "".join(FORMATS[type_] for _, type_ in self._parameters))
        numbers = [
            (ctypes.c_int32 if type_ == "int" else ctypes.c_int64)(value)
            for (_, type_), value in zip(self._parameters, layout.unpack(packed), strict=True)
        ]
        places = (ctypes.c_void_p * len(numbers))(*map(ctypes.addressof, numbers))
        shared, seed = self._shared, self._seed
        assert self._launch(blocks, cluster, threads, shared, seed, places) == 1

    def launch_together(
        self, blocks: int, threads: int, packed: bytes, offsets: list[int], stream: int
    ) -> None:
        self.launch(blocks, threads, packed, stream)

    launch_early = launch_together

    def launch_in_clusters(
        self,
        size: int,
        blocks: int,
        threads: int,
        packed: bytes,
        offsets: list[int],
        stream: int,
    ) -> None:
        self.launch(blocks, threads, packed, stream, size)


def run(
    template: Template[Any],
    program: Program,
    tensors: list[torch.Tensor],
    sizes: Sizes,
    *,
    config: Config | None = None,
    most_blocks: int = 3,
    seed: int = 0,
) -> tuple[list[torch.Tensor], int]:
    """What a template's kernel writes, and its error word.

    Args:
        template: of the TVM CUDA backend.
        program: any; specialised here.
        tensors: its inputs, in order, but for inverses.
        sizes: of the tensors.
        config: None for the heuristic's.
        most_blocks: blocks that run at the same time.
        seed: of the order in which threads come along.
    """
    asked, program = program, specialise(program)
    config = config or template.heuristic(program, H100, Problem())
    assert template.feasible(program, H100, config) is None
    source = template.lower(program, H100, config)
    cuda = _cuda_text(source)
    kernel = tvm_cuda.kernel_type(source)(
        b"", tvm_cuda.ENTRY, tvm_cuda.parameters_of(cuda), source
    )
    driver = _Driver(source, cuda, most_blocks, seed)
    kernel._driver = lambda: driver  # type: ignore[method-assign]
    kernel._stream = lambda: 0  # type: ignore[method-assign]
    n = program.state_size
    given = [input_ for input_ in asked.inputs if input_.inverse_of is None]
    slots = [Slot.of(Argument(i.name, i.type, i.storage, i.role), n) for i in given]
    bound, _ = bind(slots, tensors)
    named = {i.name: tensor for i, tensor in zip(given, bound, strict=True)}
    for input_ in program.inputs:
        if input_.inverse_of is not None:
            table = named[input_.inverse_of]
            if not source.inverts:
                table = table.argsort(dim=-1).to(table.dtype)
            named[input_.name] = table
    handed = [named[argument.name] for argument in Signature(program).inputs]
    written = [Slot.of(argument, n) for argument in source.signature.outputs]
    outputs = [poisoned(slot, sizes) for slot in written]
    views = [s.kernel_view(o) for s, o in zip(written, outputs, strict=True)]
    error = torch.zeros(1, dtype=torch.int64)
    kernel.launch([*handed, *views], error, sizes)
    return outputs, int(error)
