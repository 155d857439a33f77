"""What layers check of their arguments, before torch has words of its own for it."""

import math
import operator
from typing import Any

import torch
from torch import nn
from torch._C._functorch import peek_interpreter_stack

from pdssm_compiler.arguments import check_tensor, under_autocast
from pdssm_compiler.ir.errors import shown
from pdssm_compiler.nn.cache import LayerCache
from pdssm_compiler.runtime.errors import ArgumentError, IndexRangeError
from pdssm_compiler.runtime.symbols import of_symbols
from pdssm_compiler.sequences import check_offset_tensor
from pdssm_compiler.spec import MAP_DTYPES


def positive(name: str, value: object) -> int:
    """A size of a layer.

    Raises:
        ArgumentError: not a whole number of at least 1.
    """
    try:
        size = 0 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        size = 0
    if size < 1:
        raise ArgumentError(
            f"{name} must be a whole number of at least 1, got {shown(value)}; pass an int"
        )
    return size


def parameters_of(device: torch.device | str | None, dtype: torch.dtype | None) -> dict[str, Any]:
    """What a layer's parameters are made with.

    Raises:
        ArgumentError: a dtype that no layer computes in.
    """
    if dtype not in (None, torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise ArgumentError(
            f"dtype must be torch.float32, float64, bfloat16 or float16, got {shown(dtype)}; pass "
            f"one, or None for torch's default"
        )
    return {"device": device, "dtype": dtype}


def check_count(name: str, value: object) -> None:
    """Refuse what is no number of things, none at all among them.

    Raises:
        ArgumentError: not a whole number of at least 0.
    """
    try:
        # A size that torch.compile traces is compared, and not made a number of this call.
        size = value if isinstance(value, int | torch.SymInt) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        size = -1
    if isinstance(value, bool) or size < 0:
        raise ArgumentError(
            f"{name} must be a whole number of at least 0, got {shown(value)}; pass an int"
        )


def check_tokens(x: torch.Tensor, d_model: int, cu_seqlens: torch.Tensor | None) -> int:
    """Refuse what is no input of a layer; gives the number of sequences.

    Raises:
        ArgumentError: another shape or dtype, or offsets that cannot be some.
    """
    _check(x, 3, f"[B, T, {d_model}]", d_model)
    if cu_seqlens is None:
        return x.shape[0]
    check_offset_tensor(cu_seqlens, x)
    return cu_seqlens.shape[0] - 1


def check_token(x: torch.Tensor, d_model: int, cu_seqlens: torch.Tensor | None) -> int:
    """Refuse what is no input of a step; gives the number of sequences.

    Raises:
        ArgumentError: another shape or dtype, or offsets.
    """
    _check(x, 2, f"[B, {d_model}]", d_model)
    if cu_seqlens is not None:
        raise ArgumentError(
            "a step is of one token of each sequence, so nothing is packed; leave out cu_seqlens"
        )
    return x.shape[0]


def _check(x: torch.Tensor, rank: int, axes: str, d_model: int) -> None:
    check_tensor("x", x)
    if not x.is_floating_point():
        raise ArgumentError(f"x must be real numbers, got {x.dtype}; convert it with .to()")
    if x.dim() != rank or x.shape[-1] != d_model:
        raise ArgumentError(
            f"x must have the shape {axes}, got {list(x.shape)}; the last axis is d_model"
        )


def check_symbols(symbols: torch.Tensor, table: torch.Tensor, d_model: int) -> None:
    """Refuse what is no table of symbols' vectors, and what are no symbols of it.

    Whether each symbol is in it is told where that waits for no device.

    Raises:
        ArgumentError: another shape, dtype or device.
        IndexRangeError: on a CPU, a symbol that the table has not.
    """
    check_tensor("x", table)
    if table.dim() != 2 or table.shape[0] == 0 or table.shape[1] != d_model:
        raise ArgumentError(
            f"x must be the table [V, {d_model}] of the symbols' vectors, with V of at least 1, "
            f"got {list(table.shape)}; leave symbols out for tokens [B, T, {d_model}]"
        )
    check_tensor("symbols", symbols)
    if symbols.dtype not in MAP_DTYPES or symbols.dim() != 2:
        raise ArgumentError(
            f"symbols must be uint8, int16, int32 or int64 [B, T], got {symbols.dtype} "
            f"{list(symbols.shape)}; convert or reshape them"
        )
    if symbols.device != table.device:
        raise ArgumentError(
            f"symbols are on {symbols.device} and x, their table, on {table.device}; move one"
        )
    if _seen(symbols):
        wrong = ~_among(symbols, table)
        if wrong.any():
            at = wrong.nonzero()[0].tolist()
            raise IndexRangeError(
                f"symbols{at} = {int(symbols[tuple(at)])}: entries must lie in "
                f"[0, {table.shape[0]}), the rows of x"
            )


def _seen(symbols: torch.Tensor) -> bool:
    """Whether symbols may be looked at: what is traced or mapped has no values."""
    if torch.compiler.is_compiling() or type(symbols) is not torch.Tensor:
        return False
    return symbols.is_cpu and peek_interpreter_stack() is None


def at_symbols(table: torch.Tensor, symbols: torch.Tensor) -> torch.Tensor:
    """Tokens ``[B, T, d_model]`` of a table and its symbols; NaN of one that it has not, which the
    choice of the token's map reports.
    """
    return torch.where(_among(symbols, table).unsqueeze(-1), of_symbols(table, symbols), math.nan)


def _among(symbols: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    # In the symbols' own dtype the bound may wrap: 256 is 0 in uint8.
    symbols = symbols.long()
    return (symbols >= 0) & (symbols < table.shape[0])


def check_beside(x: torch.Tensor, projection: nn.Module) -> None:
    """Refuse what a layer's first projection cannot multiply.

    Only where it is torch's own linear layer as it came: what was put in its place, or has a hook
    that converts or moves its inputs, takes what it takes.

    Raises:
        ArgumentError: ``x`` on another device than the weight, or of another dtype where autocast
            converts neither.
    """
    if type(projection) is not nn.Linear or projection._forward_pre_hooks:
        return
    weight = projection.weight
    # A weight on ``meta`` is one that is loaded when its layer is called.
    if x.device != weight.device and not weight.is_meta:
        raise ArgumentError(
            f"x is on {x.device} and the layer's parameters on {weight.device}; move one with "
            f".to()"
        )
    if x.dtype == weight.dtype:
        return
    if under_autocast(x.device.type):
        return
    raise ArgumentError(
        f"x is {x.dtype} and the layer's parameters are {weight.dtype}; convert one with .to(), "
        f"or call the layer under torch.autocast"
    )


def check_mask(
    attention_mask: torch.Tensor | None, x: torch.Tensor, cu_seqlens: torch.Tensor | None
) -> None:
    """Refuse what is no mask of a layer's tokens; None is none.

    Raises:
        ArgumentError: another shape, dtype or device, or packed sequences.
    """
    if attention_mask is None:
        return
    if cu_seqlens is not None:
        raise ArgumentError(
            "packed sequences have no padding; leave out attention_mask, or cu_seqlens"
        )
    check_tensor("attention_mask", attention_mask)
    if attention_mask.dtype is not torch.bool or attention_mask.shape != x.shape[:2]:
        raise ArgumentError(
            f"attention_mask of a layer must be torch.bool [B, T] = {list(x.shape[:2])}, True at "
            f"tokens, got {attention_mask.dtype} {list(attention_mask.shape)}; convert it with "
            f".bool()"
        )
    if attention_mask.device != x.device:
        raise ArgumentError(
            f"attention_mask is on {attention_mask.device} and x on {x.device}; move it there"
        )


def check_cache(cache: LayerCache | None, empty: LayerCache) -> LayerCache:
    """Refuse a cache that is not of this layer and these sequences; gives it back.

    Args:
        cache: as given.
        empty: one of the right shapes.

    Raises:
        ArgumentError: names what does not fit.
    """
    if not isinstance(cache, LayerCache):
        raise ArgumentError(
            f"cache must be a LayerCache, got {type(cache).__name__}; take what init_cache or the "
            f"last call gave"
        )
    for name in ("state", "window"):
        given, want = getattr(cache, name), getattr(empty, name)
        if (given is None) != (want is None):
            raise ArgumentError(
                f"cache.{name} is {'missing' if given is None else 'there'}, so the cache is of "
                f"another kind of layer; take what this layer's init_cache or last call gave"
            )
        if given is not None and given.shape != want.shape:
            raise ArgumentError(
                f"cache.{name} must have the shape {list(want.shape)}, got {list(given.shape)}; a "
                f"cache goes with its layer and its number of sequences"
            )
        if given is not None and given.dtype != want.dtype:
            raise ArgumentError(
                f"cache.{name} must be {want.dtype}, whatever the layer's parameters are stored "
                f"in, got {given.dtype}; pass it as it came (a MixedPrecisionPolicy of "
                f"fully_shard leaves it alone with cast_forward_inputs=False)"
            )
    return cache
