"""What a layer carries from one token to the next: :class:`LayerCache`."""

from typing import NamedTuple

import torch

from pdssm_compiler.runtime.errors import ArgumentError


class LayerCache(NamedTuple):
    """The past of some sequences, as one layer needs it to go on.

    A tuple of tensors, which nothing changes in place: ``step`` and ``forward`` give a new one.
    So it goes through ``torch.compile``, and a cache may be kept, to go on from it twice. A CUDA
    graph wants the same memory in every replay: :meth:`copy_` puts the new one there.

    Attributes:
        state: the scan's, float32 or float64 pairs ``[B, H, N, 2]``, of packed sequences
            ``[S, H, N, 2]``.
        window: the last inputs of the convolution, float32 or float64 ``[B, width - 1, d]``;
            None in a layer without one.
        maps: the destination maps of a dictionary, int32 ``[H, K, N]``, as its logits were when
            the cache was made: ``step`` chooses from them. None in a layer whose maps are made
            token by token.
    """

    state: torch.Tensor
    window: torch.Tensor | None = None
    maps: torch.Tensor | None = None

    def select(self, rows: torch.Tensor) -> "LayerCache":
        """The caches of some sequences in some order, as beam search needs them.

        Args:
            rows: which, int32 or int64 ``[B']``.
        """
        window = None if self.window is None else self.window.index_select(0, rows)
        return self._replace(state=self.state.index_select(0, rows), window=window)

    def detach(self) -> "LayerCache":
        """Cut off from what it was computed from: no gradient flows back further than here."""
        window = None if self.window is None else self.window.detach()
        return self._replace(state=self.state.detach(), window=window)

    def copy_(self, other: "LayerCache") -> "LayerCache":
        """Write another cache of the same shapes into this one's memory.

        Raises:
            ArgumentError: one has a tensor where the other has none.
        """
        for name, mine, theirs in zip(self._fields, self, other, strict=True):
            if (mine is None) != (theirs is None):
                raise ArgumentError(
                    f"{name} is a tensor in one cache and None in the other; copy between caches "
                    f"of one layer"
                )
            if mine is not None and theirs is not None and mine is not theirs:
                mine.copy_(theirs)
        return self
