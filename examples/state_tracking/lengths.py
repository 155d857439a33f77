"""Accuracy far beyond the lengths of training."""

from collections.abc import Iterable

import torch

from examples.state_tracking.evaluation import accuracy
from examples.state_tracking.training import Run

LENGTHS = (40, 256, 1_000, 10_000, 100_000)
# Tokens that a length is measured on, at most.
_TOKENS = 2**21


def over_lengths(
    run: Run, lengths: Iterable[int] = LENGTHS, tokens: int = _TOKENS, most: int = 1024
) -> dict[int, tuple[float, int]]:
    """For each length the accuracy on sequences of it, and how many they were.

    Args:
        run: whose model is measured as it is.
        lengths: tokens of a sequence.
        tokens: of all sequences of a length, at most.
        most: sequences, at most.
    """
    random = torch.Generator(run.device).manual_seed(run.settings.seed)
    found = {}
    for length in lengths:
        count = max(1, min(most, tokens // length))
        right = accuracy(run.model, run.task, count, (length, length), random)
        found[length] = (right, count)
    return found
