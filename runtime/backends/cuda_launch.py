"""Launching cubins: what a kernel's parameters are in a call, and how many blocks run."""

import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, chain
from math import prod
from operator import itemgetter, mul
from typing import NamedTuple

import torch

from pdssm_compiler.runtime.backends.base import Kernel, Sizes
from pdssm_compiler.runtime.backends.cubin import cubin_resources
from pdssm_compiler.runtime.backends.cuda_driver import DriverKernel
from pdssm_compiler.schedules.signature import Argument, Signature
from pdssm_compiler.schedules.source import KernelSource

# Bytes that a thread copies at once, at most.
_WIDE = 16

FORMATS = {"pointer": "Q", "int64_t": "q", "int": "i"}


def _is_copied(argument: Argument) -> bool:
    """Whether a kernel copies the tensor in units that its layout must allow."""
    in_tokens = argument.role in ("token", "lagged") and not argument.written
    return in_tokens and bool(argument.own_shape(1))


class Strides(NamedTuple):
    """The strides of a call's tensors.

    Attributes:
        all: of their leading axes, one tensor after the other, in elements; of complex numbers in
            reals.
        bits: those in bytes, all of them together, of the tensors that are copied in wide units;
            each in as many times its bytes as its units go into the widest.
    """

    all: tuple[int, ...]
    bits: int


class CudaKernel(Kernel):
    """A cubin, given to the driver at its first launch; a block for each row or each few rows.

    Args:
        cubin: the compiled kernel.
        entry: its name.
        parameters: name and C type of each of its parameters, in order.
        source: what it was made from.
    """

    # Parameters beside the tensors: of every launch, and of this kind.
    size_names: tuple[str, ...] = ("rows", "L", "H", "aligned", "blocks")

    def __init__(
        self,
        cubin: bytes,
        entry: str,
        parameters: list[tuple[str, str]],
        source: KernelSource,
    ) -> None:
        self._cubin = cubin
        self._entry = entry
        self._shared_bytes = int(source.options["shared_bytes"])
        self._threads = int(source.options["threads"])
        self._rows = int(source.options.get("rows_together", 1))
        self._early = bool(source.options.get("early", False))
        layout = ["", *(FORMATS[type_] for _, type_ in parameters)]
        self._pack = struct.Struct("@" + "".join(layout)).pack
        # Where each parameter starts: what comes before it, and what its alignment adds.
        self._offsets = [
            struct.calcsize("@" + "".join(layout[: at + 1])) - struct.calcsize(layout[at])
            for at in range(1, len(layout))
        ]
        arguments = self.signature(source).arguments
        # What a launch knows, by the names that generated text has for it.
        every = (*arguments, *source.scratch)
        names = [f"{argument.name}_ptr" for argument in every]
        names += [f"{argument.name}_s{axis}" for argument in every for axis in argument.leading]
        names += ["error_ptr", *self.size_names]
        self._in_order = itemgetter(*(names.index(name) for name, _ in parameters))
        # Number of leading axes, and the bytes of an element where copies depend on alignment: to
        # a multiple of their own units, so that all are one multiple of the widest.
        n = source.program.state_size
        units = [_WIDE // a.copied_at_once(n) if _is_copied(a) else 0 for a in every]
        self._layouts = [
            (len(argument.leading), units_ * getattr(torch, argument.dtype).itemsize)
            for argument, units_ in zip(every, units, strict=True)
        ]
        self._copied = [(place, units_) for place, units_ in enumerate(units) if units_]
        self._own = [prod(argument.own_shape(source.program.state_size)) for argument in arguments]
        self._axes = [argument.leading for argument in arguments]
        # Lengths come and go.
        self._dense_strides = lru_cache(maxsize=256)(self._strides_of)
        self._loaded: DriverKernel | None = None
        self._prepare(source)

    def _prepare(self, source: KernelSource) -> None:
        """What a kind of launch keeps of the source."""

    @staticmethod
    def signature(source: KernelSource) -> Signature:
        """What the kernel is handed."""
        return source.signature

    def launch(self, tensors: Sequence[torch.Tensor], error: torch.Tensor, sizes: Sizes) -> None:
        if sizes.batch * sizes.heads:
            self._run(tensors, self._strides(tensors), error, sizes)

    def launch_dense(
        self, tensors: Sequence[torch.Tensor], error: torch.Tensor, sizes: Sizes
    ) -> None:
        if sizes.batch * sizes.heads:
            self._run(tensors, self._dense_strides(sizes), error, sizes)

    def _run(
        self,
        tensors: Sequence[torch.Tensor],
        strides: Strides,
        error: torch.Tensor,
        sizes: Sizes,
    ) -> None:
        batch, length, heads = sizes
        rows = batch * heads
        blocks = -(-rows // self._rows)
        pointers, aligned = self._pointers(tensors, strides)
        known = (*pointers, *strides.all, error.data_ptr(), rows, length, heads, aligned, blocks)
        packed = self._packed(known)
        if self._early:
            self._driver().launch_early(
                blocks, self._threads, packed, self._offsets, self._stream()
            )
        else:
            self._driver().launch(blocks, self._threads, packed, self._stream())

    def resources(self) -> dict[str, int]:
        """Registers, spilled and shared bytes, from the cubin's own notes: no device is needed."""
        return cubin_resources(self._cubin) | {"shared_bytes": self._shared_bytes}

    def _driver(self) -> DriverKernel:
        if self._loaded is None:
            shared = self._shared_bytes
            self._loaded = DriverKernel(self._cubin, self._entry, shared, self._device())
        return self._loaded

    def _strides(self, tensors: Sequence[torch.Tensor]) -> Strides:
        """Those of tensors whose complex numbers are pairs of reals."""
        found = [
            tensor.stride()[:leading]
            for tensor, (leading, _) in zip(tensors, self._layouts, strict=False)
        ]
        return self._as_strides(found)

    def _strides_of(self, sizes: Sizes) -> Strides:
        """Those of contiguous tensors."""
        extent = {"B": sizes.batch, "L": sizes.length, "H": sizes.heads}
        found = []
        for own, axes in zip(self._own, self._axes, strict=True):
            inner = (extent[axis] for axis in reversed(axes[1:]))
            steps = list(accumulate(inner, mul, initial=own)) if axes else []
            found.append(tuple(reversed(steps)))
        return self._as_strides(found)

    def _as_strides(self, found: Sequence[tuple[int, ...]]) -> Strides:
        bits = 0
        for strides, (_, width) in zip(found, self._layouts, strict=False):
            for stride in strides:
                bits |= stride * width
        return Strides(tuple(chain.from_iterable(found)), bits)

    def _pointers(
        self, tensors: Sequence[torch.Tensor], strides: Strides
    ) -> tuple[list[int], bool]:
        """Where tensors start, and whether wide copies are safe."""
        pointers = [tensor.data_ptr() for tensor in tensors]
        bits = strides.bits
        for place, units in self._copied:
            bits |= pointers[place] * units
        return pointers, bits % _WIDE == 0

    def _packed(self, known: Sequence[int]) -> bytes:
        return self._pack(*self._in_order(known))

    @staticmethod
    def _device() -> int:
        return torch.cuda.current_device()

    @staticmethod
    def _stream() -> int:
        # Without the object that torch.cuda.current_stream() makes.
        return torch._C._cuda_getCurrentRawStream(torch.cuda.current_device())
