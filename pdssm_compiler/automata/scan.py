"""An automaton in the form a PD-SSM scan runs: a dictionary of destination maps."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pdssm_compiler.automata.errors import SymbolError

# From about this many texts on, one NumPy step over all of them beats a Python step for each.
_VECTOR_BATCH = 48


@dataclass(frozen=True, eq=False)
class ScanAutomaton:
    """A deterministic automaton whose every symbol is a destination map.

    Attributes:
        maps: int32 ``[symbols, states]``, read-only; entry ``[k, j]`` is the state after state
            ``j`` and symbol ``k``: the dictionary of a PD-SSM scan with ``p_k[j] = maps[k, j]``.
        start: the state before the first symbol.
        pad: the last symbol, for positions that hold no byte. It leads from every state to
            ``start``, so it serves as padding on either side of a text and as a separator between
            texts of one row.
    """

    maps: npt.NDArray[np.int32]
    start: int
    pad: int

    @property
    def symbols(self) -> int:
        """Number of symbols, ``pad`` included: the dictionary size ``K``."""
        return self.maps.shape[0]

    @property
    def states(self) -> int:
        """Number of states: the state size ``N``."""
        return self.maps.shape[1]


def walk(
    automaton: ScanAutomaton, symbols: npt.NDArray[np.integer], *, reverse: bool = False
) -> npt.NDArray[np.int32]:
    """The state after every symbol, by looking each one up in turn.

    Args:
        automaton: the automaton, begun in its ``start``.
        symbols: integers ``[T]`` or ``[batch, T]``.
        reverse: read each row from its end; the state after ``symbols[..., t]`` then depends on
            the symbols from ``t`` on.

    Returns:
        int32 of the shape of ``symbols``, the state after each position's symbol.

    Raises:
        SymbolError: a symbol is not one of the automaton's, or ``symbols`` has another rank.
    """
    if symbols.ndim not in (1, 2):
        raise SymbolError(f"symbols have shape {symbols.shape}; they must be [T] or [batch, T]")
    rows = np.atleast_2d(symbols)
    if rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < automaton.symbols:
        raise SymbolError(
            f"the symbols lie in {int(rows.min())} .. {int(rows.max())}, but the automaton has "
            f"symbols 0 .. {automaton.symbols - 1}; use the symbols made for this automaton"
        )
    ordered = rows[:, ::-1] if reverse else rows
    step = _walk_together if rows.shape[0] >= _VECTOR_BATCH else _walk_one_by_one
    states = step(automaton, ordered)
    return (states[:, ::-1] if reverse else states).reshape(symbols.shape)


def _walk_one_by_one(
    automaton: ScanAutomaton, symbols: npt.NDArray[np.integer]
) -> npt.NDArray[np.int32]:
    maps = automaton.maps.tolist()
    states = np.empty(symbols.shape, dtype=np.int32)
    for row, out in zip(symbols, states, strict=True):
        state = automaton.start
        out[:] = [state := maps[symbol][state] for symbol in row.tolist()]
    return states


def _walk_together(
    automaton: ScanAutomaton, symbols: npt.NDArray[np.integer]
) -> npt.NDArray[np.int32]:
    table = automaton.maps.reshape(-1)
    # [T, batch], so that every step reads and writes one run of memory.
    offsets = np.ascontiguousarray(symbols.T, dtype=np.int64) * automaton.states
    states = np.empty(offsets.shape, dtype=np.int32)
    state = np.full(offsets.shape[1], automaton.start, dtype=np.int32)
    for offset, out in zip(offsets, states, strict=True):
        np.take(table, offset + state, out=out)
        state = out
    return states.T
