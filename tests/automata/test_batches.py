"""``batches``: every text once and whole, side by side with others of its length."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdssm_compiler.automata import CorpusError, Text, batches

texts = st.lists(st.binary(max_size=60), max_size=30).map(
    lambda data: [Text(str(number), text) for number, text in enumerate(data)]
)


@given(
    texts=texts,
    batch_size=st.integers(1, 8),
    max_tokens=st.integers(1, 200),
    max_padding=st.floats(0, 1),
)
def test_every_text_is_in_one_batch_whole(
    texts: list[Text], batch_size: int, max_tokens: int, max_padding: float
) -> None:
    seen: list[int] = []
    for batch in batches(texts, batch_size, max_tokens, max_padding):
        rows, length = batch.tokens.shape
        assert rows == len(batch.lengths) == len(batch.indices)
        assert 1 <= rows <= batch_size
        # Only a single text may be longer than the limit.
        assert rows * length <= max_tokens or rows == 1
        assert batch.padding <= max_padding + 1e-12
        assert length == batch.lengths[-1] == batch.lengths.max()
        for row, count, index in zip(batch.tokens, batch.lengths, batch.indices, strict=True):
            assert row[:count].tobytes() == texts[index].data
            assert not row[count:].any()
        seen += batch.indices
    assert sorted(seen) == list(range(len(texts)))
    lengths = [len(texts[index].data) for index in seen]
    assert lengths == sorted(lengths)


def test_texts_of_one_length_share_a_batch_in_their_order() -> None:
    texts = [Text("", bytes([value]) * length) for value, length in enumerate([3, 9, 3, 9, 3])]
    first, second = batches(texts, batch_size=4)
    assert (first.indices, second.indices) == ((0, 2, 4), (1, 3))
    np.testing.assert_array_equal(first.tokens, [[0] * 3, [2] * 3, [4] * 3])
    np.testing.assert_array_equal(second.lengths, [9, 9])
    assert first.tokens.dtype == np.uint8
    assert first.lengths.dtype == np.int64
    assert first.padding == second.padding == 0.0


def test_padding_is_a_part_of_the_places() -> None:
    texts = [Text("", b"a" * 6), Text("", b"b" * 10)]
    (batch,) = batches(texts, batch_size=2)
    assert batch.padding == pytest.approx(0.2)
    assert len(list(batches(texts, batch_size=2, max_padding=0.19))) == 2


def test_no_texts_make_no_batches() -> None:
    assert list(batches([], batch_size=4)) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5, 0.5), "batch_size is 0 and max_tokens 5; both must be at least 1"),
        ((5, 0, 0.5), "batch_size is 5 and max_tokens 0; both must be at least 1"),
        ((5, 5, 1.5), r"max_padding is 1\.5; it is a part, from 0 to 1"),
    ],
)
def test_arguments_are_checked_before_the_first_batch(
    arguments: tuple[int, int, float], message: str
) -> None:
    with pytest.raises(CorpusError, match=message):
        batches([], *arguments)
