"""Accuracy on sequences of given lengths, in batches of a bounded number of tokens."""

import torch
from torch import nn

from examples.state_tracking.tasks import Task

# Tokens of a batch: what a GPU holds the states of.
_TOKENS = 2**20
_TOKENS_ON_CPU = 2**15


@torch.no_grad()
def accuracy(
    model: nn.Module,
    task: Task,
    sequences: int,
    lengths: tuple[int, int],
    random: torch.Generator,
) -> float:
    """The part of new sequences whose last token has the right answer.

    Args:
        model: scores from tokens and lengths.
        task: draws the sequences.
        sequences: how many.
        lengths: of them, the shortest and the longest.
        random: of the model's device.
    """
    tokens = _TOKENS_ON_CPU if random.device.type == "cpu" else _TOKENS
    most = max(1, min(sequences, tokens // lengths[1]))
    training = model.training
    model.eval()
    right, left = 0, sequences
    while left > 0:
        batch = task.batch(min(most, left), *lengths, random, random.device)
        found = model(batch.tokens, batch.lengths).argmax(-1)
        right += int((found == batch.answers).sum())
        left -= len(found)
    model.train(training)
    return right / sequences
