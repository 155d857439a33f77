"""Run a program's Triton kernel on CPU tensors, by Triton's interpreter."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from pdssm_compiler.ir import Program
from pdssm_compiler.ir.passes import specialise
from pdssm_compiler.runtime.backends import Sizes as KernelSizes
from pdssm_compiler.runtime.backends.triton_gpu import launcher_of, module_of
from pdssm_compiler.runtime.binding import Slot, bind
from pdssm_compiler.schedules.registry import TEMPLATES
from pdssm_compiler.schedules.signature import Argument, Signature
from pdssm_compiler.schedules.source import KernelSource
from pdssm_compiler.schedules.target import named_target
from pdssm_compiler.schedules.templates.triton_chunks import TritonChunksConfig
from pdssm_compiler.schedules.templates.triton_lookback import TritonLookbackConfig
from pdssm_compiler.schedules.templates.triton_rows import TritonRowsConfig
from tests.kernels import poison, poisoned
from tests.strategies import Sizes

_splat = interpreter.InterpreterBuilder.create_splat


def _splat_bool(self: Any, type_: Any, scalar: Any) -> Any:
    # A comparison of scalars keeps its operands' dtype in Triton 3.9's interpreter, and spread
    # over a block it would become integers, which loads refuse as a mask.
    if scalar.data.dtype == np.bool_:
        return interpreter.TensorHandle(np.full(type_.shape, scalar.data), tl.int1)
    return _splat(self, type_, scalar)


interpreter.InterpreterBuilder.create_splat = _splat_bool


def _sort(x: Any, dim: int = -1, descending: bool = False) -> Any:
    # Triton's own is a network of reshapes, most of what the interpreter would do.
    assert not descending
    handle = interpreter.TensorHandle(np.sort(x.handle.data, axis=dim), x.handle.dtype)
    return tl.tensor(handle, x.type)


tl.sort = _sort

CONFIGS = (
    TritonRowsConfig(rows=1, num_warps=1, unroll=1),
    TritonRowsConfig(rows=2, num_warps=1, unroll=2),
    TritonRowsConfig(rows=4, num_warps=1, unroll=3),
    TritonRowsConfig(rows=1, num_warps=1, unroll=4),
)
# Chunks of one token, of two, of three and the rest, and one chunk of all.
CHUNKS = (
    TritonChunksConfig(rows=1, num_warps=1, unroll=1, programs=10**6, least_chunk=1),
    TritonChunksConfig(rows=2, num_warps=1, unroll=2, programs=10**6, least_chunk=2),
    TritonChunksConfig(rows=4, num_warps=1, unroll=1, programs=10**6, least_chunk=3),
    TritonChunksConfig(rows=1, num_warps=1, unroll=3, programs=1, least_chunk=1),
)
# Windows of one chunk and of several, chunks of one token and of several, a window that never
# ends, and more summaries than are read together.
LOOKBACK = (
    TritonLookbackConfig(rows=1, num_warps=1, tokens=1, window=6),
    TritonLookbackConfig(rows=2, num_warps=1, tokens=2, window=2),
    TritonLookbackConfig(rows=4, num_warps=1, tokens=3, window=1),
    TritonLookbackConfig(rows=1, num_warps=1, tokens=1, window=30),
)
Config = TritonRowsConfig | TritonChunksConfig | TritonLookbackConfig


class Interpreted:
    """A program's kernel.

    Args:
        program: any program; it is specialised first.
        config: its template's config.
        without: lines that wait, left out of the source where they hold this.
    """

    def __init__(self, program: Program, config: Config, without: str = "") -> None:
        # Not by way of the heuristic or of what is feasible: those spare a real compiler.
        template = next(t for t in TEMPLATES.values() if t.accepts(config))
        lowered = specialise(program)
        self.source: KernelSource = template.lower(lowered, named_target("sm_90"), config)
        self.program = program
        if without:
            text = re.sub(rf"wait_for\(.*{re.escape(without)}.*", "pass", self.source.text)
            self.source = replace(self.source, text=text)
        self.module = module_of(self.source)
        functions = [getattr(self.module, phase.entry) for phase in self.source.launches]
        self.launch = launcher_of(functions, self.source, _poisoned_scratch)
        self.error = torch.zeros(1, dtype=torch.int64)

    def run(self, tensors: list[torch.Tensor], sizes: Sizes) -> list[torch.Tensor]:
        """Outputs for the caller's inputs; what a check reports is left in ``error``."""
        n = self.program.state_size
        given = [input_ for input_ in self.program.inputs if input_.inverse_of is None]
        slots = [Slot.of(Argument(i.name, i.type, i.storage, i.role), n) for i in given]
        bound, kernel_sizes = bind(slots, tensors)
        assert kernel_sizes == KernelSizes(*sizes)
        by_name = {i.name: tensor for i, tensor in zip(given, bound, strict=True)}
        signature = Signature(specialise(self.program))
        for input_ in signature.program.inputs:
            if input_.inverse_of is not None:
                table = by_name[input_.inverse_of]
                by_name[input_.name] = table.argsort(dim=-1).to(table.dtype)
        arguments = [by_name[argument.name] for argument in signature.inputs]
        written = signature.outputs
        output_slots = [Slot.of(argument, n) for argument in written]
        outputs = [poisoned(slot, kernel_sizes) for slot in output_slots]
        arguments += [s.kernel_view(o) for s, o in zip(output_slots, outputs, strict=True)]
        self.error.zero_()
        self.launch(arguments, self.error, kernel_sizes)
        return outputs


def _poisoned_scratch(shape: tuple[int, ...], **options: Any) -> torch.Tensor:
    return poison(torch.empty(shape, **options))
