"""Texts of similar length side by side, as the rows of one array."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pdssm_compiler.automata.corpus import Text
from pdssm_compiler.automata.errors import CorpusError

DEFAULT_MAX_TOKENS = 2**24


@dataclass(frozen=True, eq=False)
class Batch:
    """Some texts of a corpus.

    Attributes:
        tokens: uint8 ``[batch, T]``, the bytes of one text a row, then zeros.
        lengths: int64 ``[batch]``, the bytes of each row.
        indices: the number of each row's text in the corpus.
    """

    tokens: npt.NDArray[np.uint8]
    lengths: npt.NDArray[np.int64]
    indices: tuple[int, ...]

    @property
    def padding(self) -> float:
        """The part of ``tokens`` that is padding, from 0 to 1."""
        return 1 - int(self.lengths.sum()) / self.tokens.size if self.tokens.size else 0.0


def batches(
    texts: Sequence[Text],
    batch_size: int,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    max_padding: float = 0.25,
) -> Iterator[Batch]:
    """Group texts of similar length; every text is in exactly one batch, whole.

    Args:
        texts: the texts of a corpus.
        batch_size: the most rows of a batch.
        max_tokens: the most places of a batch, padding included. A text longer than this is a
            batch of its own: cutting it would cut matches.
        max_padding: the largest part of a batch that may be padding, from 0 to 1.

    Yields:
        Batches, the shortest texts first; the rows of a batch ascend in length.

    Raises:
        CorpusError: ``batch_size`` or ``max_tokens`` is below one, or ``max_padding`` is not in
            0 .. 1.
    """
    if batch_size < 1 or max_tokens < 1:
        raise CorpusError(
            f"batch_size is {batch_size} and max_tokens {max_tokens}; both must be at least 1"
        )
    if not 0 <= max_padding <= 1:
        raise CorpusError(f"max_padding is {max_padding}; it is a part, from 0 to 1")
    return _grouped(texts, batch_size, max_tokens, max_padding)


def _grouped(
    texts: Sequence[Text], batch_size: int, max_tokens: int, max_padding: float
) -> Iterator[Batch]:
    group: list[int] = []
    filled = 0  # bytes of the texts in the group
    for index in sorted(range(len(texts)), key=lambda i: len(texts[i].data)):
        length = len(texts[index].data)  # the longest so far
        places = (len(group) + 1) * length
        padding = places - filled - length
        full = len(group) == batch_size or places > max_tokens
        if group and (full or padding > max_padding * places):
            yield _batch(texts, group)
            group, filled = [], 0
        group.append(index)
        filled += length
    if group:
        yield _batch(texts, group)


def _batch(texts: Sequence[Text], group: Sequence[int]) -> Batch:
    lengths = np.array([len(texts[index].data) for index in group], dtype=np.int64)
    tokens = np.zeros((len(group), int(lengths.max())), dtype=np.uint8)
    for row, index in zip(tokens, group, strict=True):
        data = np.frombuffer(texts[index].data, dtype=np.uint8)
        row[: len(data)] = data
    return Batch(tokens, lengths, tuple(group))
