"""What a layer carries from one token to the next: :class:`LayerCache`."""

from typing import NamedTuple, TypeVar

import torch
from torch.utils import _pytree

from pdssm_compiler.arguments import check_tensor
from pdssm_compiler.runtime.errors import ArgumentError

CacheT = TypeVar("CacheT", bound=type)


def known_to_torch(cache: CacheT) -> CacheT:
    """A class of caches that ``torch.load`` takes as it takes tensors, and that programs of
    ``torch.export`` may take and give.
    """
    torch.serialization.add_safe_globals([cache])
    # Without a name nothing that has one in its signature can be saved.
    _pytree._register_namedtuple(
        cache, serialized_type_name=f"{cache.__module__}.{cache.__qualname__}"
    )
    return cache


def check_rows(rows: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
    """Refuse what does not name sequences of a cache; gives it back.

    Whether they are there is told where that waits for no device.

    Raises:
        ArgumentError: another shape, dtype or device; on a CPU, a sequence that is not there.
    """
    check_tensor("rows", rows)
    if rows.dtype not in (torch.int32, torch.int64) or rows.dim() != 1:
        raise ArgumentError(
            f"rows must be int32 or int64 [B'], got {rows.dtype} {list(rows.shape)}; of a mask, "
            f"mask.nonzero().squeeze(1)"
        )
    if rows.device != beside.device:
        raise ArgumentError(
            f"rows are on {rows.device} and the cache on {beside.device}; move one"
        )
    if type(rows) is torch.Tensor and rows.is_cpu and not torch.compiler.is_compiling():
        wrong = ((rows < 0) | (rows >= len(beside))).nonzero()
        if len(wrong):
            at = int(wrong[0])
            raise ArgumentError(
                f"rows[{at}] = {int(rows[at])}, and the cache is of {len(beside)} sequences; "
                f"number them from 0"
            )
    return rows


@known_to_torch
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

        Raises:
            ArgumentError: another shape, dtype or device; on a CPU, a sequence that is not there.
        """
        check_rows(rows, self.state)
        window = None if self.window is None else self.window.index_select(0, rows)
        return self._replace(state=self.state.index_select(0, rows), window=window)

    def detach(self) -> "LayerCache":
        """Cut off from what it was computed from: no gradient flows back further than here."""
        window = None if self.window is None else self.window.detach()
        return self._replace(state=self.state.detach(), window=window)

    def copy_(self, other: "LayerCache") -> "LayerCache":
        """Write another cache of the same shapes into this one's memory.

        Raises:
            ArgumentError: no cache, or one has a tensor where the other has none, or of another
                shape.
        """
        if not isinstance(other, LayerCache):
            raise ArgumentError(
                f"copy_ takes a LayerCache, got {type(other).__name__}; pass what init_cache or a "
                f"call gave"
            )
        for name, mine, theirs in zip(self._fields, self, other, strict=True):
            if (mine is None) != (theirs is None):
                raise ArgumentError(
                    f"{name} is a tensor in one cache and None in the other; copy between caches "
                    f"of one layer"
                )
            if mine is not None and theirs is not None and mine.shape != theirs.shape:
                raise ArgumentError(
                    f"{name} is {list(theirs.shape)} and is to be written into "
                    f"{list(mine.shape)}; make one by init_cache for as many sequences"
                )
            if mine is not None and theirs is not None and mine is not theirs:
                mine.copy_(theirs)
        return self
