"""``decode_spans`` on what a scan returns: padded batches, and texts in one row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdssm_compiler.automata import (
    SymbolError,
    Text,
    backward_symbols,
    batches,
    decode_spans,
    walk,
)
from tests.automata.regexes import machine, patterns, python_spans, texts


@given(pattern=patterns(), data=st.lists(texts, min_size=1, max_size=6))
def test_each_row_of_a_padded_batch(pattern: str, data: list[bytes]) -> None:
    scans = machine(pattern)
    named = [Text(str(number), text) for number, text in enumerate(data)]
    (batch,) = batches(named, batch_size=6, max_padding=1.0)
    classes = backward_symbols(scans, batch.tokens, batch.lengths)
    symbols = scans.pair_symbol[classes, walk(scans.backward, classes, reverse=True)]
    states = walk(scans.forward, symbols)
    for row, index in enumerate(batch.indices):
        length = len(data[index])
        # Cut to its length or with its padding, a row says the same.
        whole = decode_spans(scans, states[row], symbols[row])
        cut = decode_spans(scans, states[row, :length], symbols[row, :length])
        assert whole.tolist() == cut.tolist() == python_spans(pattern, data[index])


@given(pattern=patterns(), data=st.lists(texts, min_size=1, max_size=4))
def test_the_pad_separates_texts_in_one_row(pattern: str, data: list[bytes]) -> None:
    scans = machine(pattern)
    pad = np.array([scans.backward.pad])
    parts, expected, offset = [], [], 0
    for text in data:
        parts += [backward_symbols(scans, np.frombuffer(text, dtype=np.uint8)), pad]
        spans = python_spans(pattern, text)
        expected += [[offset + start, offset + end] for start, end in spans]
        offset += len(text) + 1
    classes = np.concatenate(parts)
    symbols = scans.pair_symbol[classes, walk(scans.backward, classes, reverse=True)]
    assert decode_spans(scans, walk(scans.forward, symbols), symbols).tolist() == expected


def test_a_batch_must_be_decoded_row_by_row() -> None:
    scans = machine("a")
    states = np.zeros((2, 3), dtype=np.int32)
    with pytest.raises(SymbolError, match="decode one text at a time, cut to its length"):
        decode_spans(scans, states, states)
    with pytest.raises(SymbolError, match=r"states \(3,\) and symbols \(2,\)"):
        decode_spans(scans, states[0], states[0, :2])
