"""Packed sequences: the torch operator ``pdssm_compiler::follows``.

``follows(Tensor cu_seqlens, SymInt length, bool reverse) -> Tensor`` says of each of ``length``
tokens whether another of its own sequence is run before it: int32 ``[T]``, 1 if there is one, 0
where a sequence begins. Sequence ``s`` has the tokens from ``cu_seqlens[s]`` up to
``cu_seqlens[s + 1]``, so ``S`` sequences have ``S + 1`` offsets, the first 0 and the last ``T``.

Offsets are data, and are checked as indices are. On a CPU what is wrong is raised here. Elsewhere
the host does not wait for them: places are clamped, and the first token's entry is put out of
range (:data:`BAD`), which the scan that reads it reports, told as what it is.
"""

import numpy as np
import torch

from pdssm_compiler.runtime.devices import DEVICE_TYPES
from pdssm_compiler.runtime.errors import OffsetError
from pdssm_compiler.runtime.operators import refuse_vmap

# No index below 2, so a kernel that reads it clamps it and reports it.
BAD = 2

_library = torch.library.Library("pdssm_compiler", "FRAGMENT")
_library.define(
    "follows(Tensor cu_seqlens, SymInt length, bool reverse) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)

follows = torch.ops.pdssm_compiler.follows.default


def _begun(cu_seqlens: torch.Tensor, length: int, reverse: bool) -> torch.Tensor:
    """1, and 0 where a sequence begins: at its first token, or in reverse at its last."""
    places = cu_seqlens.clamp(0, length)
    if reverse:
        # The token before each offset; before the first there is none.
        places = (places + length) % (length + 1)
    # One place more, for what is no token.
    found = torch.ones(length + 1, dtype=torch.int32, device=cu_seqlens.device)
    return found.index_fill_(0, places, 0)[:length]


def _follows_on_cpu(cu_seqlens: torch.Tensor, length: int, reverse: bool) -> torch.Tensor:
    check_offsets(cu_seqlens, length)
    return _begun(cu_seqlens.long(), length, reverse)


def _follows(cu_seqlens: torch.Tensor, length: int, reverse: bool) -> torch.Tensor:
    offsets = cu_seqlens.long()
    found = _begun(offsets, length, reverse)
    lengths = torch.diff(
        offsets, prepend=offsets.new_zeros(1), append=offsets.new_full((1,), length)
    )
    # The lengths of the sequences, and before and behind them what is to be none.
    wrong = (lengths < 0).any() | (lengths[0] != 0) | (lengths[-1] != 0)
    first = found[:1]
    first.copy_(torch.where(wrong, BAD, first))
    return found


def check_offsets(cu_seqlens: torch.Tensor, length: int) -> None:
    """Refuse offsets that do not cut ``length`` tokens into sequences; reads them on the host.

    Raises:
        OffsetError: says which is wrong and how.
    """
    offsets = cu_seqlens.cpu().numpy()
    if offsets[0] != 0:
        raise OffsetError(
            f"cu_seqlens[0] = {offsets[0]}: offsets start at 0, where the first sequence begins"
        )
    falls = np.flatnonzero(offsets[1:] < offsets[:-1])
    if len(falls):
        at = falls[0] + 1
        raise OffsetError(
            f"cu_seqlens[{at}] = {offsets[at]} is less than cu_seqlens[{at - 1}] = "
            f"{offsets[at - 1]}: offsets must not decrease; an empty sequence repeats one"
        )
    if offsets[-1] != length:
        where = "past the end" if offsets[-1] > length else "and leaves tokens over"
        raise OffsetError(
            f"cu_seqlens[-1] = {offsets[-1]} {where}: offsets end at T = {length}; give tokens "
            f"that belong to none a sequence of their own"
        )


def _fake(cu_seqlens: torch.Tensor, length: int, reverse: bool) -> torch.Tensor:
    return cu_seqlens.new_empty(length, dtype=torch.int32)


for _type in DEVICE_TYPES:
    _library.impl("follows", _follows_on_cpu if _type == "cpu" else _follows, _type.upper())
refuse_vmap(_library, "follows")
torch.library.register_fake("pdssm_compiler::follows", _fake)

__all__ = ["BAD", "check_offsets", "follows"]
