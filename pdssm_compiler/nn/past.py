"""The tokens before each token, across the cuts of a sequence: :class:`Past`."""

import torch


class Past:
    """What stood a few tokens earlier, in this piece of a sequence or before it.

    Of packed sequences each has a past of its own, so nothing of one reaches another.

    Args:
        tokens: ``[B, T, ...]``.
        before: the last ``R`` tokens before them, ``[B, R, ...]``, of packed sequences
            ``[S, R, ...]``.
        cu_seqlens: offsets of packed sequences ``[S + 1]``, with ``B = 1``; None for a batch.
            Checked before. What is wrong with their values the scan reports; here places are
            clamped, so nothing is read outside the tensors.
    """

    def __init__(
        self, tokens: torch.Tensor, before: torch.Tensor, cu_seqlens: torch.Tensor | None
    ) -> None:
        self._length = tokens.shape[1]
        self._reach = before.shape[1]
        self._offsets = None if cu_seqlens is None else cu_seqlens.long()
        if self._offsets is None:
            self._all = torch.cat([before, tokens], 1)  # [B, R + T, ...]
            return
        self._sequences = before.shape[0]
        # [S · R + T, ...]
        self._all = torch.cat([before.flatten(0, 1), tokens[0]])
        self._token = torch.arange(self._length, device=tokens.device)
        owner = torch.searchsorted(self._offsets, self._token, right=True) - 1
        self._owner = owner.clamp(0, max(self._sequences - 1, 0))
        # How many tokens of its sequence stand before each.
        self._place = self._token - self._offsets[self._owner]

    def lagged(self, lag: int) -> torch.Tensor:
        """What stood ``lag`` tokens before each token, ``[B, T, ...]``; at most ``R``."""
        if self._offsets is None:
            return self._all.narrow(1, self._reach - lag, self._length)
        inside = self._sequences * self._reach + self._token - lag
        outside = (self._owner + 1) * self._reach - lag + self._place
        return self._at(torch.where(self._place >= lag, inside, outside)).unsqueeze(0)

    def last(self) -> torch.Tensor:
        """The last ``R`` tokens of each sequence, ``[B, R, ...]`` or ``[S, R, ...]``."""
        if self._offsets is None:
            return self._all.narrow(1, self._length, self._reach)
        begin, end = self._offsets[:-1, None], self._offsets[1:, None]  # [S, 1]
        lag = torch.arange(self._reach, 0, -1, device=begin.device)
        first = torch.arange(self._sequences, device=begin.device)[:, None] * self._reach
        inside = self._sequences * self._reach + end - lag
        outside = first + self._reach - lag + (end - begin)
        places = torch.where(end - begin >= lag, inside, outside)  # [S, R]
        return self._at(places.flatten()).unflatten(0, places.shape)

    def _at(self, places: torch.Tensor) -> torch.Tensor:
        return self._all.index_select(0, places.clamp(0, max(self._all.shape[0] - 1, 0)))
