"""Spans of matches: the symbols that go into a bimachine, and what its states say."""

import numpy as np
import numpy.typing as npt

from pdssm_compiler.automata.bimachine import Bimachine
from pdssm_compiler.automata.errors import SymbolError
from pdssm_compiler.automata.scan import walk


def backward_symbols(
    bimachine: Bimachine,
    tokens: npt.NDArray[np.uint8],
    lengths: npt.NDArray[np.integer] | None = None,
) -> npt.NDArray[np.int32]:
    """The symbols of the backward scan: the class of every byte, and the pad beyond the end.

    Args:
        bimachine: the machine that will read them.
        tokens: uint8 ``[T]`` or ``[batch, T]``, bytes.
        lengths: integers ``[batch]``, the bytes in each row of ``[batch, T]``; all of them if left
            out.

    Returns:
        int32 of the shape of ``tokens``.
    """
    symbols = bimachine.byte_class[tokens].astype(np.int32)
    if lengths is not None:
        beyond = np.arange(tokens.shape[-1]) >= np.asarray(lengths)[..., None]  # [batch, T]
        symbols[beyond] = bimachine.backward.pad
    return symbols


def decode_spans(
    bimachine: Bimachine,
    states: npt.NDArray[np.integer],
    symbols: npt.NDArray[np.integer],
) -> npt.NDArray[np.int64]:
    """The matches of one text, from its forward scan.

    Args:
        bimachine: the machine that was run.
        states: integers ``[T]``, the state of ``bimachine.forward`` after every byte.
        symbols: integers ``[T]``, the symbol it read at every byte.

    Returns:
        int64 ``[matches, 2]``: start and end of every match, from the left.

    Raises:
        SymbolError: ``states`` and ``symbols`` are not vectors of one length.
    """
    if states.ndim != 1 or states.shape != symbols.shape:
        raise SymbolError(
            f"states {states.shape} and symbols {symbols.shape} must be vectors of one length; "
            "decode one text at a time, cut to its length"
        )
    inside = states != bimachine.forward.start  # [T]
    before = np.empty_like(states)
    before[:1] = bimachine.forward.start
    before[1:] = states[:-1]
    begins = bimachine.begins[symbols, before]  # [T]
    # A match ends where the next byte is outside one or begins another.
    ends = inside.copy()
    ends[:-1] &= ~inside[1:] | begins[1:]
    return np.column_stack([np.flatnonzero(begins), np.flatnonzero(ends) + 1]).astype(np.int64)


def find_spans(bimachine: Bimachine, data: bytes) -> npt.NDArray[np.int64]:
    """The matches in a text, by two table walks: the reference for every scan.

    Returns:
        int64 ``[matches, 2]``, what ``m.span()`` is for the ``m`` of
        ``re.finditer(pattern.encode(), data)``.
    """
    classes = backward_symbols(bimachine, np.frombuffer(data, dtype=np.uint8))
    symbols = bimachine.pair_symbol[classes, walk(bimachine.backward, classes, reverse=True)]
    return decode_spans(bimachine, walk(bimachine.forward, symbols), symbols)
