"""Launches of triton-matrices: matrices laid out, functions one after the other, sums added up."""

from collections.abc import Sequence
from typing import Any

import torch

from pdssm_compiler.ir.types import Coefficients
from pdssm_compiler.runtime.backends.base import Sizes
from pdssm_compiler.runtime.backends.matrices import laid_out, put_back
from pdssm_compiler.schedules.emit.matrices import grid, split, tables_of
from pdssm_compiler.schedules.source import KernelSource
from pdssm_compiler.schedules.templates.triton_matrices import shape_of


class MatrixLauncher:
    """Runs a source's functions one after the other, on one stream.

    Args:
        functions: what each phase launches, ``function[grid](*arguments)``.
        source: what they were made from.
        empty: makes scratch, as :func:`torch.empty` does.
    """

    def __init__(
        self, functions: Sequence[Any], source: KernelSource, empty: Any = torch.empty
    ) -> None:
        self._empty = empty
        program = source.program
        self._shape = shape_of(program, source.config)
        self._wanted = source.config["programs"] * max(1, source.target.processors)
        names = [argument.name for argument in source.signature.arguments]
        self._names = names
        (table,) = tables_of(program)
        self._table = table.name
        self._dtype = torch.float32 if table.storage == "f32" else torch.float64
        self._tokens = next(
            names.index(a.name) for a in source.signature.inputs if a.role == "token"
        )
        self._phases = list(zip(functions, source.launches, strict=True))
        self._scratch = {argument.name: argument.type for argument in source.scratch}
        self._inner = [o.name for o in program.token_outputs if o.value.op == "inner"]
        self._sums = [o.name for o in program.sum_outputs]

    def __call__(self, tensors: Sequence[torch.Tensor], error: torch.Tensor, sizes: Sizes) -> None:
        """Launch; see :meth:`Kernel.launch`."""
        batch, length, heads = sizes
        named = dict(zip(self._names, tensors, strict=True))
        if batch * length * heads == 0:
            for name in self._sums:
                named[name].zero_()
            return
        shape, device = self._shape, tensors[0].device
        parts, span = split(shape, self._wanted, batch * heads, length)
        table = laid_out(named[self._table], shape, self._empty)
        named[f"table_{self._table}"] = table
        of_tokens = (batch, length, heads)
        for name, type_ in self._scratch.items():
            if name in named:
                continue
            size: tuple[int, ...] = of_tokens
            if isinstance(type_, Coefficients):
                size = (*of_tokens, type_.size, shape.padded)
            elif name.removeprefix("partial_") in self._inner:
                size = (*of_tokens, shape.columns, shape.entries)
            elif name.removeprefix("partial_") in self._sums:
                size = (parts, batch, heads, *table.shape[1:])
            named[name] = self._empty(size, dtype=self._dtype, device=device)
        for function, phase in self._phases:
            values: list[Any] = []
            for argument in phase.arguments:
                tensor = named[argument.name]
                values.append(tensor)
                strides = tensor.stride()[: len(argument.leading)]
                values += [s // 2 for s in strides] if argument.complex else strides
            values += (error, batch * heads, length, heads, span)
            function[grid(shape, phase.entry, sizes, parts)](*values)
        for name in self._inner:
            torch.sum(named[f"partial_{name}"], 3, out=named[name])
        for name in self._sums:
            put_back(named[f"partial_{name}"], shape, named[name])
