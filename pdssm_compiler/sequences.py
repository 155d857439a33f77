"""Packed sequences: several, of any lengths, one after the other along ``T``."""

import torch

from pdssm_compiler.arguments import as_complex, check_tensor
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.packed_states import at_places, begun
from pdssm_compiler.runtime.packing import follows


class Sequences:
    """The sequences of one call.

    A program that is packed begins anew, from zero, where a sequence does
    (:class:`~pdssm_compiler.ir.programs.PdScan`), so every template and every derived adjoint runs
    it as any other. What a sequence starts from is added to the drive of its first token, and what
    it ends in is read from the states of its last one: both around the kernel, a row a sequence
    (:mod:`pdssm_compiler.runtime.packed_states`).

    Attributes:
        count: how many there are, ``S``.
        follows: whether each token follows another of its sequence in the order of time, int32
            ``[1, T, H]``.

    Args:
        cu_seqlens: ``[S + 1]``, where each begins, and behind them ``T``.
        tokens: any of the call's tensors by token, ``[1, T, H, …]``.
        reverse: whether time runs from the last token to the first.

    Raises:
        ArgumentError: another dtype, shape or device, or a batch.
        OffsetError: offsets that do not cut ``T`` tokens into sequences; on a GPU the scan that
            reads ``follows`` reports it.
    """

    def __init__(self, cu_seqlens: torch.Tensor, tokens: torch.Tensor, reverse: bool) -> None:
        check_offset_tensor(cu_seqlens, tokens)
        self.count = cu_seqlens.shape[0] - 1
        self._tokens = tokens.shape[1]
        flags = follows(cu_seqlens, self._tokens, reverse)
        self.follows = flags[None, :, None].expand(tokens.shape[:3])
        self._offsets = cu_seqlens
        self._reverse = reverse

    def start(self, initial_state: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """The initial states ``[S, H, N]``, complex; ``like`` is any ``[1, T, H, N]``.

        Raises:
            ArgumentError: another shape, dtype or device.
        """
        start = as_complex("initial_state", initial_state, 3)
        want = (self.count, *like.shape[2:])
        if start.shape != want:
            raise ArgumentError(
                f"initial_state of packed sequences must have the shape [S, H, N] = "
                f"{list(want)}, got {list(start.shape)}; cu_seqlens has S + 1 entries"
            )
        if start.dtype != like.dtype or start.device != like.device:
            raise ArgumentError(
                f"initial_state must be {like.dtype} on {like.device}, got {start.dtype} on "
                f"{start.device}; convert it with .to()"
            )
        return start

    def entry(self, of_tokens: torch.Tensor) -> torch.Tensor:
        """What stands for an entry of ``follows``, which is no choice of anyone's, beside those of
        hard choices: of the dense surrogate, of no and of yes.

        Args:
            of_tokens: the entries of the tokens' choices.
        """
        shape = self.follows.shape
        if of_tokens.dim() > len(shape):
            shape = (*shape, 2)
        return torch.ones((), device=of_tokens.device).expand(shape)

    @property
    def _empty(self) -> torch.Tensor:
        """Which have no token, ``[S, 1, 1]``."""
        return (self._offsets[1:] <= self._offsets[:-1])[:, None, None]

    def _at(self, first: bool) -> torch.Tensor:
        """The places of their first tokens in the order of time, or of their last, ``[S]``; of an
        empty one any token's. Offsets that are wrong give places within ``T`` all the same.
        """
        offsets = self._offsets.long()
        places = offsets[:-1] if first != self._reverse else offsets[1:] - 1
        return places.clamp(0, self._tokens - 1)

    def moving(self, start: torch.Tensor) -> torch.Tensor:
        """The initial states that a first token moves; zero of an empty one, whose place is that
        of another's token: NaN there would be in that token's gradients.
        """
        return torch.where(self._empty, 0, start)

    def first_tokens(self, tensor: torch.Tensor) -> torch.Tensor:
        """What a tensor by token has for their first tokens, ``[S, 1, …]``; there are tokens."""
        return _picked(tensor, self._at(first=True)).unsqueeze(1)

    def begun(self, drive: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        """The drive, complex, and in it ``moved`` ``[S, H, N]``: what each one's first token makes
        of its initial state.
        """
        moved = torch.where(self._empty, 0, moved)
        found: torch.Tensor = begun(drive, moved, self._at(first=True))
        return found

    def zero(self, like: torch.Tensor) -> torch.Tensor:
        """Initial states ``[S, H, N]`` where none are given; ``like`` is any ``[1, T, H, N]``."""
        return like.new_zeros(()).expand(self.count, *like.shape[2:])

    def final(self, states: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """The state after each, ``[S, H, N]``; of an empty one that before it."""
        if self._tokens == 0:
            return start.clone(memory_format=torch.contiguous_format)
        reached = _picked(states, self._at(first=False))
        return torch.where(self._empty, start, reached)


def _picked(by_token: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Of ``[1, T, …]`` the tokens at places, ``[S, …]``."""
    if torch.is_grad_enabled() and by_token.requires_grad:
        # For its backward.
        found: torch.Tensor = at_places(by_token, places)
        return found
    return by_token[0].index_select(0, places)


def check_offset_tensor(cu_seqlens: torch.Tensor, tokens: torch.Tensor) -> None:
    """Refuse what cannot hold the offsets of a scan's tokens ``[1, T, H, …]``.

    Raises:
        ArgumentError: another dtype, shape or device, or a batch.
    """
    check_tensor("cu_seqlens", cu_seqlens)
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ArgumentError(
            f"cu_seqlens must be int32 or int64, got {cu_seqlens.dtype}; convert it with .to()"
        )
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ArgumentError(
            f"cu_seqlens must have the shape [S + 1] for S sequences, got "
            f"{list(cu_seqlens.shape)}; it holds where each begins, and behind them T"
        )
    if cu_seqlens.device != tokens.device:
        raise ArgumentError(
            f"cu_seqlens is on {cu_seqlens.device} and the tokens on {tokens.device}; move it "
            f"there"
        )
    if tokens.shape[0] != 1:
        raise ArgumentError(
            f"packed sequences lie along T of one row, so B must be 1, got {tokens.shape[0]}; "
            f"reshape [B, T, …] to [1, B * T, …] and give each row its offsets"
        )
