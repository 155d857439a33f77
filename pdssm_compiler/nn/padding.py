"""Batches of sequences of different lengths, padded on the left: what their masks must be."""

import torch

from pdssm_compiler.arguments import check_tensor
from pdssm_compiler.ir.errors import shown
from pdssm_compiler.nn.attention import AttentionCache
from pdssm_compiler.nn.cache import LayerCache
from pdssm_compiler.runtime.errors import ArgumentError

_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def read_mask(
    attention_mask: torch.Tensor,
    tokens: torch.Tensor,
    caches: tuple[LayerCache | AttentionCache, ...] | None,
    carried: bool,
) -> torch.Tensor:
    """The mask as booleans ``[B, T]``, False at padding before a sequence.

    Padding behind a sequence is seen by no token of it, so it is taken for tokens; where the cache
    after it is wanted it is refused.

    Its values are looked at, which on a GPU waits for the device once; where a compiler traces, or
    a graph is captured, they are taken as they are.

    Args:
        attention_mask: as given.
        tokens: ``[B, T]``.
        caches: what came before, if anything.
        carried: whether the cache after these tokens is wanted.

    Raises:
        ArgumentError: another shape, dtype or device, another value than 0 and 1, padding between
            tokens, or behind them where caches are wanted.
    """
    check_tensor("attention_mask", attention_mask)
    if attention_mask.dtype not in _INTEGERS or attention_mask.shape != tokens.shape:
        raise ArgumentError(
            f"attention_mask must be booleans or integers [B, T] = {list(tokens.shape)}, 1 at "
            f"tokens and 0 at padding, got {attention_mask.dtype} {list(attention_mask.shape)}; "
            f"of this call's tokens alone: the cache knows of those before"
        )
    if attention_mask.device != tokens.device:
        raise ArgumentError(
            f"attention_mask is on {attention_mask.device} and the tokens on {tokens.device}; "
            f"move it there"
        )
    real = attention_mask.bool()
    begun = torch.zeros(tokens.shape[:1], dtype=torch.bool, device=tokens.device)
    for cache in caches or ():
        begun = begun | _begun(cache)
    # Whether there is a token before each, of this call or of the cache, and one behind it.
    before = torch.cat([begun[:, None], real], 1).cumsum(1)[:, : real.shape[1]] > 0
    capturing = tokens.is_cuda and torch.cuda.is_current_stream_capturing()
    if not torch.compiler.is_compiling() and not capturing:
        behind = real.flip(1).cumsum(1).flip(1) > 0
        wrong = ~real & before & (behind | carried)
        if bool((wrong.any() | (attention_mask != real).any()).item()):
            _refuse(attention_mask, real, wrong)
    return real | before


def _begun(cache: LayerCache | AttentionCache) -> torch.Tensor:
    """Which sequences had a token, ``[B]``."""
    if isinstance(cache, LayerCache):
        parts = [part for part in (cache.state, cache.window) if part is not None]
        return torch.stack([part.flatten(1).any(1) for part in parts]).any(0)
    if cache.mask is not None:
        return cache.mask.any(1)
    return cache.keys.new_full(cache.keys.shape[:1], cache.keys.shape[2] > 0, dtype=torch.bool)


def _refuse(mask: torch.Tensor, real: torch.Tensor, wrong: torch.Tensor) -> None:
    odd = (mask != real).nonzero()
    if len(odd):
        at = odd[0].tolist()
        raise ArgumentError(
            f"attention_mask{at} = {shown(int(mask[tuple(at)]))}: it holds 1 at tokens and 0 at "
            f"padding; sequences that lie one after the other are told apart by cu_seqlens"
        )
    at = wrong.nonzero()[0].tolist()
    at_end = not real[at[0], at[1] :].any()
    way_out = (
        "; at the end it is taken where no cache is wanted (output_cache=False, use_cache=False)"
    )
    raise ArgumentError(
        f"attention_mask{at} is 0 behind a token of its sequence, and what comes after it, tokens "
        f"or caches, would go on from the padding: it must stand before a sequence; pad on the "
        f"left (of a tokenizer, padding_side='left'){way_out if at_end else ''}"
    )
