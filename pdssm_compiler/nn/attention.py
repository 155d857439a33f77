"""Causal attention for hybrids: :class:`CausalAttention`, and its :class:`AttentionCache`."""

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from pdssm_compiler.nn.arguments import (
    check_beside,
    check_count,
    check_mask,
    check_token,
    check_tokens,
    positive,
)
from pdssm_compiler.nn.cache import check_rows, known_to_torch
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.packing import follows


@known_to_torch
class AttentionCache(NamedTuple):
    """The keys and values of all tokens so far, which grow with each call.

    Attributes:
        keys: ``[B, heads, T, d_head]``.
        values: likewise.
        mask: which of them are of tokens and not of padding, bool ``[B, T]``; None if all are.
    """

    keys: torch.Tensor
    values: torch.Tensor
    mask: torch.Tensor | None = None

    def select(self, rows: torch.Tensor) -> "AttentionCache":
        """The caches of some sequences in some order, ``rows`` int32 or int64 ``[B']``.

        Raises:
            ArgumentError: another shape, dtype or device; on a CPU, a sequence that is not there.
        """
        check_rows(rows, self.keys)
        mask = None if self.mask is None else self.mask.index_select(0, rows)
        keys, values = (each.index_select(0, rows) for each in (self.keys, self.values))
        return AttentionCache(keys, values, mask)

    def detach(self) -> "AttentionCache":
        """Cut off from what it was computed from."""
        return AttentionCache(self.keys.detach(), self.values.detach(), self.mask)


class CausalAttention(nn.Module):
    """Multi-head attention to the tokens up to each one, by torch's own
    ``scaled_dot_product_attention``, with the interface of the other layers.

    There are no positions in it: it stands among layers whose states know the order.

    Args:
        d_model: the tokens' width.
        heads: how many; ``d_model`` is divisible by it.
        device: of the parameters.
        dtype: likewise.

    Raises:
        ArgumentError: a size that is none, or does not divide.
    """

    def __init__(self, d_model: int, heads: int, **factory: Any) -> None:
        super().__init__()
        self.d_model, self.heads = positive("d_model", d_model), positive("heads", heads)
        if d_model % heads:
            raise ArgumentError(
                f"d_model={d_model} is not divisible by heads={heads}; choose others"
            )
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=False, **factory)
        self.out_proj = nn.Linear(d_model, d_model, bias=False, **factory)

    def reset_parameters(self) -> None:
        """Start anew, as ``torch.nn.Linear`` does."""
        self.in_proj.reset_parameters()
        self.out_proj.reset_parameters()

    def init_cache(self, batch_size: int) -> AttentionCache:
        """The cache of sequences that begin: no keys.

        Raises:
            ArgumentError: a batch size that is none.
        """
        check_count("batch_size", batch_size)
        weight = next(self.parameters())
        empty = torch.empty(
            (batch_size, self.heads, 0, self.d_model // self.heads),
            dtype=weight.dtype,
            device=weight.device,
        )
        return AttentionCache(empty, empty)

    def forward(
        self,
        x: torch.Tensor,
        *,
        cache: AttentionCache | None = None,
        cu_seqlens: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        output_cache: bool = False,
        step: bool = False,
    ) -> Any:
        """Attend.

        Args:
            x: real ``[B, T, d_model]``.
            cache: what came before.
            cu_seqlens: offsets of packed sequences ``[S + 1]``, with ``B = 1``; without caches.
            attention_mask: booleans ``[B, T]``, False at padding, to which no other token attends,
                in later calls neither: the cache knows it. Not with ``cu_seqlens``.
            output_cache: whether the cache after these tokens is wanted as well.
            step: what :meth:`step` calls this with. It goes through the module's own call, so
                that what hangs on that, as the parameters' gathering by ``fully_shard``, is done.

        Returns:
            ``out`` ``[B, T, d_model]``, or ``(out, cache)`` with ``output_cache``.

        Raises:
            ArgumentError: a wrong shape, dtype or device, another layer's cache, or packed
                sequences with a cache.
            OffsetError: on a CPU, offsets that do not cut the tokens into sequences; on a GPU the
                scans beside it report them.
        """
        if step:
            check_token(x, self.d_model, cu_seqlens)
            self._check_cache(cache, x.shape[0])
            out, cache = self.forward(x.unsqueeze(1), cache=cache, output_cache=True)
            return out.squeeze(1), cache
        check_tokens(x, self.d_model, cu_seqlens)
        check_beside(x, self.in_proj)
        check_mask(attention_mask, x, cu_seqlens)
        if cu_seqlens is not None and (cache is not None or output_cache):
            raise ArgumentError(
                "attention over packed sequences has no cache: keys of sequences of different "
                "lengths do not fit one tensor; leave out cache and output_cache"
            )
        qkv = self.in_proj(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, keys, values = qkv.unbind(0)  # [B, heads, T, d_head]
        real = attention_mask
        if cache is not None:
            self._check_cache(cache, x.shape[0])
            real = _continued(cache, real, x)
            keys = torch.cat([cache.keys.to(keys.dtype), keys], 2)
            values = torch.cat([cache.values.to(values.dtype), values], 2)
        plain = cache is None and cu_seqlens is None and real is None
        mask = None if plain else self._mask(x, keys, cu_seqlens, real)
        attended = functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, is_causal=mask is None
        )
        out = self.out_proj(attended.transpose(1, 2).flatten(-2))
        return (out, AttentionCache(keys, values, real)) if output_cache else out

    def _mask(
        self,
        x: torch.Tensor,
        keys: torch.Tensor,
        cu_seqlens: torch.Tensor | None,
        real: torch.Tensor | None,
    ) -> torch.Tensor:
        """Which keys each token may see, ``[T, keys]``, with padding ``[B, 1, T, keys]``: of its
        sequence, and none after it.
        """
        key = torch.arange(keys.shape[2], device=x.device)
        token = key[keys.shape[2] - x.shape[1] :]
        seen = key <= token[:, None]
        if real is not None:
            # Padding sees itself: a softmax over nothing would be NaN.
            return seen & (real[:, None, None, :] | (key == token[:, None]))
        if cu_seqlens is None:
            return seen
        # By the operator that the scans use, which checks the offsets. It is 0 where one begins.
        owner = (follows(cu_seqlens, x.shape[1], False) == 0).cumsum(0)
        return seen & (owner == owner[:, None])

    def step(self, x: torch.Tensor, cache: AttentionCache) -> tuple[torch.Tensor, AttentionCache]:
        """One token ``[B, d_model]``: what :meth:`forward` gives for it after the cache's."""
        after: tuple[torch.Tensor, AttentionCache] = self(x, cache=cache, step=True)
        return after

    def _check_cache(self, cache: AttentionCache | None, sequences: int) -> None:
        width = self.d_model // self.heads
        fits = isinstance(cache, AttentionCache) and all(
            each.shape[:2] == (sequences, self.heads) and each.shape[3:] == (width,)
            for each in (cache.keys, cache.values)
        )
        if not fits:
            raise ArgumentError(
                f"cache must be an AttentionCache of {sequences} sequences and {self.heads} heads "
                f"of {width}; take what this layer's init_cache or last call gave"
            )

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f"{self.d_model}, heads={self.heads}"


def _continued(
    cache: AttentionCache, real: torch.Tensor | None, x: torch.Tensor
) -> torch.Tensor | None:
    """Which keys are of tokens, the cache's and these, ``[B, keys]``; None if all are."""
    if cache.mask is None and real is None:
        return None
    before = cache.mask
    if before is None:
        before = torch.ones(x.shape[0], cache.keys.shape[2], dtype=torch.bool, device=x.device)
    if real is None:
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    return torch.cat([before, real], 1)
