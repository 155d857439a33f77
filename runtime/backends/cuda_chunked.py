"""Launching what runs chunks of rows: how many blocks share a row, what they leave for others."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import chain
from math import prod

import torch

from pdssm_compiler.runtime.backends.base import Kernel, Sizes
from pdssm_compiler.runtime.backends.cuda_launch import CudaKernel, Strides
from pdssm_compiler.schedules.chunking import blocks_of_a_row, carry_window, cluster_of_a_row
from pdssm_compiler.schedules.signature import Signature
from pdssm_compiler.schedules.source import KernelSource


class ChunkedCudaKernel(CudaKernel):
    """A cubin whose teams run chunks of rows and wait for one another."""

    size_names = (*CudaKernel.size_names, "abreast")

    def _prepare(self, source: KernelSource) -> None:
        self._tokens = int(source.options["chunk_tokens"])
        self._teams = int(source.options["teams"])
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
        abreast, sharing = self._shares(sizes)
        left, numbers = self._left(sizes, sharing, tensors[0].device)
        pointers, aligned = self._pointers(tensors, strides)
        pointers += [each.data_ptr() for each in left]
        apart = chain.from_iterable(
            each.stride()[:leading]
            for each, (leading, _) in zip(left, self._layouts[len(tensors) :], strict=True)
        )
        blocks = abreast * sharing
        own = (error.data_ptr(), batch * heads, length, heads, aligned, blocks, abreast, *numbers)
        self._start(sharing, blocks, self._packed((*pointers, *strides.all, *apart, *own)))

    def _left(
        self, sizes: Sizes, sharing: int, device: torch.device
    ) -> tuple[list[torch.Tensor], tuple[int, ...]]:
        """What teams leave for one another in global memory, and the numbers that go with it."""
        return [], ()

    @abstractmethod
    def _start(self, sharing: int, blocks: int, packed: bytes) -> None:
        """Launch so many blocks, of which ``sharing`` share a row."""

    def _chunks(self, length: int) -> int:
        return max(1, -(-length // self._tokens))

    @abstractmethod
    def _blocks_of_a_row(self, sizes: Sizes) -> tuple[int, int]:
        """Rows that run at the same time, and the blocks that share each.

        Raises:
            RuntimeError: not even one block runs.
        """

    def _refuse_too_large(self, blocks_at_once: int) -> None:
        if not blocks_at_once:
            raise RuntimeError(
                f"a block of {self._threads} threads and {self._shared_bytes} bytes of shared "
                f"memory does not fit this device; give a config with fewer teams"
            )


class ClusteredCudaKernel(ChunkedCudaKernel):
    """One whose blocks that share a row are a cluster, within which they wait."""

    def _prepare(self, source: KernelSource) -> None:
        super()._prepare(source)
        # By the blocks of a cluster, how many run at once.
        self._at_once = cache(self._clusters_at_once)

    def _start(self, sharing: int, blocks: int, packed: bytes) -> None:
        self._driver().launch_in_clusters(
            sharing, blocks, self._threads, packed, self._offsets, self._stream()
        )

    def _blocks_of_a_row(self, sizes: Sizes) -> tuple[int, int]:
        self._refuse_too_large(self._at_once(1))
        rows, chunks = sizes.batch * sizes.heads, self._chunks(sizes.length)
        return cluster_of_a_row(-(-rows // self._rows), chunks, self._teams, self._at_once)

    def _clusters_at_once(self, size: int) -> int:
        return self._driver().clusters_at_once(size, self._threads)


class WindowedCudaKernel(ChunkedCudaKernel):
    """One whose teams wait for any others: all blocks run at once."""

    size_names = (*ChunkedCudaKernel.size_names, "window", "every")

    def _prepare(self, source: KernelSource) -> None:
        super()._prepare(source)
        self._most_blocks: int | None = None
        state_size = source.program.state_size
        *summaries, passed, _ = source.scratch
        self._summaries = [(a.own_shape(state_size), getattr(torch, a.dtype)) for a in summaries]
        self._passed = passed.own_shape(state_size)

    def _left(
        self, sizes: Sizes, sharing: int, device: torch.device
    ) -> tuple[list[torch.Tensor], tuple[int, ...]]:
        window = carry_window(sharing, self._teams)
        # Chunks between two carries that pass through global memory.
        every = window if window > 1 else self._teams
        chunks = self._chunks(sizes.length)
        return self._between(device, sizes, chunks, window, every), (window, every)

    def _start(self, sharing: int, blocks: int, packed: bytes) -> None:
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
