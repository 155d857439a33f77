"""Launching cubins: what a kernel's parameters are in a call, and how many blocks run."""

import struct
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import accumulate, chain
from math import prod
from operator import itemgetter, mul
from typing import NamedTuple

import torch

from pdssm_compiler.runtime.backends.base import Kernel, Sizes
from pdssm_compiler.runtime.backends.cubin import cubin_resources
from pdssm_compiler.runtime.backends.cuda_driver import DriverKernel
from pdssm_compiler.schedules.chunking import blocks_of_a_row, carry_window, cluster_of_a_row
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


class ChunkedCudaKernel(CudaKernel):
    """A cubin whose warps run chunks of rows and wait for one another, within a cluster."""

    size_names = (*CudaKernel.size_names, "abreast")

    def _prepare(self, source: KernelSource) -> None:
        self._tokens = int(source.options["chunk_tokens"])
        self._teams = int(source.options["teams"])
        # By the blocks of a cluster, how many run at once.
        self._at_once = cache(self._clusters_at_once)
        # As long to find as a launch takes.
        self._shares = lru_cache(maxsize=256)(self._blocks_of_a_row)
        state_size = source.program.state_size
        # Where sums stand among the arguments, and their own axes.
        self._sums = [
            (place, argument.own_shape(state_size))
            for place, argument in enumerate(self.signature(source).arguments)
            if argument.role == "chunk"
        ]

    @staticmethod
    def signature(source: KernelSource) -> Signature:
        sums = frozenset(total.name for total in source.program.sum_outputs)
        return Signature(source.program, sums)

    def launch_dense(
        self, tensors: Sequence[torch.Tensor], error: torch.Tensor, sizes: Sizes
    ) -> None:
        if self._sums:
            # The kernel is handed others in their place.
            Kernel.launch_dense(self, tensors, error, sizes)
        else:
            super().launch_dense(tensors, error, sizes)

    def launch(self, tensors: Sequence[torch.Tensor], error: torch.Tensor, sizes: Sizes) -> None:
        batch, _, heads = sizes
        if batch * heads == 0:
            return
        _, sharing = self._shares(sizes)
        # Each team adds to sums of its own, which are added up in order.
        handed = list(tensors)
        for place, own in self._sums:
            shape = (batch, sharing * self._teams, heads, *own)
            handed[place] = torch.empty(
                shape, dtype=tensors[place].dtype, device=tensors[0].device
            )
        super().launch(handed, error, sizes)
        for place, _ in self._sums:
            torch.sum(handed[place], dim=1, out=tensors[place])

    def _run(
        self,
        tensors: Sequence[torch.Tensor],
        strides: Strides,
        error: torch.Tensor,
        sizes: Sizes,
    ) -> None:
        batch, length, heads = sizes
        rows = batch * heads
        abreast, sharing = self._shares(sizes)
        pointers, aligned = self._pointers(tensors, strides)
        blocks = abreast * sharing
        known = (*pointers, *strides.all, error.data_ptr(), rows, length, heads, aligned)
        packed = self._packed((*known, blocks, abreast))
        self._driver().launch_in_clusters(
            sharing, blocks, self._threads, packed, self._offsets, self._stream()
        )

    def _chunks(self, length: int) -> int:
        return max(1, -(-length // self._tokens))

    def _blocks_of_a_row(self, sizes: Sizes) -> tuple[int, int]:
        """Rows that run at the same time, and the blocks that share each.

        Raises:
            RuntimeError: not even one block runs.
        """
        self._refuse_too_large(self._at_once(1))
        rows, chunks = sizes.batch * sizes.heads, self._chunks(sizes.length)
        return cluster_of_a_row(-(-rows // self._rows), chunks, self._teams, self._at_once)

    def _clusters_at_once(self, size: int) -> int:
        return self._driver().clusters_at_once(size, self._threads)

    def _refuse_too_large(self, blocks_at_once: int) -> None:
        if not blocks_at_once:
            raise RuntimeError(
                f"a block of {self._threads} threads and {self._shared_bytes} bytes of shared "
                f"memory does not fit this device; give a config with fewer teams"
            )


class WindowedCudaKernel(ChunkedCudaKernel):
    """One whose warps wait for any others: all blocks run at once."""

    size_names = (*ChunkedCudaKernel.size_names, "window", "every")

    def _prepare(self, source: KernelSource) -> None:
        super()._prepare(source)
        self._most_blocks: int | None = None
        state_size = source.program.state_size
        *summaries, passed, _ = source.scratch
        self._summaries = [(a.own_shape(state_size), getattr(torch, a.dtype)) for a in summaries]
        self._passed = passed.own_shape(state_size)

    def _run(
        self,
        tensors: Sequence[torch.Tensor],
        strides: Strides,
        error: torch.Tensor,
        sizes: Sizes,
    ) -> None:
        batch, length, heads = sizes
        rows = batch * heads
        abreast, sharing = self._shares(sizes)
        window = carry_window(sharing, self._teams)
        # Chunks between two carries that pass through global memory.
        every = window if window > 1 else self._teams
        between = self._between(tensors[0].device, sizes, self._chunks(length), window, every)
        pointers, aligned = self._pointers(tensors, strides)
        pointers += [each.data_ptr() for each in between]
        apart = chain.from_iterable(
            each.stride()[:leading]
            for each, (leading, _) in zip(between, self._layouts[len(tensors) :], strict=True)
        )
        blocks = abreast * sharing
        known = (*pointers, *strides.all, *apart, error.data_ptr(), rows, length, heads, aligned)
        packed = self._packed((*known, blocks, abreast, window, every))
        self._driver().launch_together(
            blocks, self._threads, packed, self._offsets, self._stream()
        )

    def _blocks_of_a_row(self, sizes: Sizes) -> tuple[int, int]:
        if self._most_blocks is None:
            self._most_blocks = self._driver().blocks_at_once(self._threads)
        self._refuse_too_large(self._most_blocks)
        rows, chunks = sizes.batch * sizes.heads, self._chunks(sizes.length)
        return blocks_of_a_row(-(-rows // self._rows), chunks, self._teams, self._most_blocks)

    def _between(
        self, device: torch.device, sizes: Sizes, chunks: int, window: int, every: int
    ) -> list[torch.Tensor]:
        """What warps leave for one another: summaries, carries behind windows, flags."""
        batch, _, heads = sizes
        windows = -(-chunks // every)
        # Windows of one chunk have nothing to join.
        chunks = chunks if window > 1 else 1
        summaries = [
            torch.empty((batch, chunks, heads, *own), dtype=dtype, device=device)
            for own, dtype in self._summaries
        ]
        passed = (batch, windows, heads, *self._passed)
        words = prod(passed)
        flags = batch * chunks * heads
        # One tensor, so that one operation clears it.
        cleared = torch.zeros(words + (flags + 1) // 2, dtype=torch.int64, device=device)
        folded = cleared[words:].view(torch.int32)[:flags].view(batch, chunks, heads)
        return [*summaries, cleared[:words].view(passed), folded]
