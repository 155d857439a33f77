"""Leftmost matching, without overlap, as two deterministic scans: a bimachine.

Where a match begins and ends depends on bytes that follow, so no single scan from the left can
say so in time. A scan from the right can: after byte ``i`` its state ``R_i`` is the set of the
states ``q`` of the byte automaton from which some non-empty prefix of ``text[i:]`` is accepted.
A scan from the left then never has to look ahead. At byte ``i``:

- inside a match in state ``q``, if ``q ∈ R_i``, the match goes on: ``q → δ(q, c_i)``;
- otherwise a match that was open ended before ``i``, and if ``start ∈ R_i`` a new one begins:
  ``→ δ(start, c_i)``; if not, byte ``i`` is outside any match.

See M.-P. Schützenberger, *A remark on finite transducers* (1961), for the machine.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pdssm_compiler.automata.dfa import MAX_STATES, ByteAutomaton
from pdssm_compiler.automata.errors import PatternTooLargeError, shown
from pdssm_compiler.automata.refine import equivalent_states, first_seen_order
from pdssm_compiler.automata.scan import ScanAutomaton

MAX_SYMBOLS = 256
# How far beyond its limit a machine may grow before it is made minimal.
_SLACK = 16

Bools = npt.NDArray[np.bool_]
Longs = npt.NDArray[np.int64]
_T = TypeVar("_T", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Bimachine:
    """The matches of a regular expression in a text, as two scans over its bytes.

    ``backward`` reads byte classes from the end of the text; ``forward`` reads, from the
    beginning, ``pair_symbol[class of the byte, state of backward after it]``. Both machines are
    minimal and every state can be reached.

    Attributes:
        backward: its symbols are the byte classes, then ``pad``.
        forward: state 0, its ``start``, is outside any match; the others are inside one.
        byte_class: uint8 ``[256]``, the class of every byte.
        pair_symbol: int32 ``[classes + 1, backward states]``, the symbol of ``forward``; the last
            row is the pad's. Pairs that cannot occur hold ``forward.pad``.
        begins: bool ``[forward symbols, forward states]``: whether a match begins with a symbol
            read in a state. A state alone cannot say so: a match may begin with the byte after
            another's last one and lead to the same state as going on.
        pattern: the regular expression.

    All arrays are read-only.
    """

    backward: ScanAutomaton
    forward: ScanAutomaton
    byte_class: npt.NDArray[np.uint8]
    pair_symbol: npt.NDArray[np.int32]
    begins: Bools
    pattern: str


def build_bimachine(
    automaton: ByteAutomaton, max_states: int = MAX_STATES, max_symbols: int = MAX_SYMBOLS
) -> Bimachine:
    """The two scans that find the matches of an automaton.

    Args:
        automaton: of a pattern that does not match the empty string.
        max_states: the most states either scan may have.
        max_symbols: the most symbols either scan may have, the pad included.

    Raises:
        PatternTooLargeError: a scan needs more states or symbols than allowed.
    """
    limits = _Limits(automaton.pattern, max_states, max_symbols)
    sets, back_moves = _backward_sets(automaton, limits)
    pair_symbol, maps, begins = _pairs(automaton, sets, back_moves, limits)
    maps, begins, renamed = _minimal_forward(maps, begins)
    pair_symbol = np.where(pair_symbol < 0, -1, renamed[pair_symbol])
    limits.check("states of the forward scan", maps.shape[1], max_states)
    limits.check("symbols of the forward scan", len(maps) + 1, max_symbols)

    # States of the backward scan that give every class the same forward symbol are one state.
    blocks = equivalent_states(back_moves, pair_symbol.T)
    first = np.unique(blocks, return_index=True)[1]
    back_moves, pair_symbol = blocks[back_moves[:, first]], pair_symbol[:, first]
    limits.check("states of the backward scan", len(first), max_states)
    limits.check("symbols of the backward scan", len(back_moves) + 1, max_symbols)

    pad = len(maps)
    pair_symbol = np.where(pair_symbol < 0, pad, pair_symbol)
    pair_symbol = np.vstack([pair_symbol, np.full((1, len(first)), pad)])
    return Bimachine(
        backward=_scan_automaton(back_moves),
        forward=_scan_automaton(maps),
        byte_class=automaton.byte_class,
        pair_symbol=_frozen(pair_symbol.astype(np.int32)),
        begins=_frozen(np.vstack([begins, np.zeros((1, begins.shape[1]), dtype=np.bool_)])),
        pattern=automaton.pattern,
    )


@dataclass(frozen=True)
class _Limits:
    pattern: str
    states: int
    symbols: int

    def check(self, what: str, count: int, limit: int) -> None:
        if count > limit:
            raise PatternTooLargeError(
                f"pattern {shown(self.pattern)} needs {count:,} {what} and the limit is "
                f"{limit:,}; use smaller counts or raise the limit"
            )

    def check_growth(self, what: str, count: int, limit: int) -> None:
        """Stop a construction that is far beyond its limit before equal things are merged."""
        if count > _SLACK * limit:
            raise PatternTooLargeError(
                f"pattern {shown(self.pattern)} was given up at {count:,} {what}, before equal "
                f"ones are merged; the limit is {limit:,}: use smaller counts or raise it"
            )


def _backward_sets(automaton: ByteAutomaton, limits: _Limits) -> tuple[Bools, Longs]:
    """All reachable sets ``R``: bool ``[sets, states]``, and int64 ``[classes, sets]``.

    Set 0 is the empty one, the state before the last byte is read.
    """
    empty = np.zeros(automaton.states, dtype=np.bool_)
    number = {empty.tobytes(): 0}
    sets, rows = [empty], []
    for members in sets:  # grows while it is read
        # R_i = {q : δ(q, c_i) is accepting or in R_{i+1}}, for every class at once.
        preceding = (automaton.accepting | members)[automaton.transitions]  # [classes, states]
        for row in preceding:
            if row.tobytes() not in number:
                number[row.tobytes()] = len(sets)
                sets.append(row)
        rows.append([number[row.tobytes()] for row in preceding])
        limits.check_growth("states of the backward scan", len(sets), limits.states)
    return np.array(sets), np.array(rows, dtype=np.int64).T


def _pairs(
    automaton: ByteAutomaton, sets: Bools, back_moves: Longs, limits: _Limits
) -> tuple[Longs, Longs, Bools]:
    """The forward map of every pair (class, set) that can occur; equal ones are one symbol.

    Returns:
        int64 ``[classes, sets]``, the symbol of a pair or -1; int64 and bool
        ``[symbols, 1 + states]``: the destinations, and where a match begins. State 0 is outside
        a match, state ``1 + q`` inside one in state ``q``.
    """
    start = automaton.start
    pair_symbol = np.full((automaton.classes, len(sets)), -1, dtype=np.int64)
    number: dict[bytes, int] = {}
    rows: list[npt.NDArray[np.int32]] = []
    for class_, targets in enumerate(automaton.transitions):
        indices = np.unique(back_moves[class_])
        members = sets[indices]  # [pairs, states]
        may_begin = members[:, start, None]  # [pairs, 1]
        # Column 0 is outside a match, then one column a state; destinations, then begins.
        inside = np.hstack([np.zeros_like(may_begin), members])
        onward = np.hstack([[0], 1 + targets])
        anew = np.where(may_begin, 1 + targets[start], 0)
        destinations = np.where(inside, onward, anew)
        table = np.hstack([destinations, ~inside & may_begin]).astype(np.int32)
        for index, row in zip(indices, table, strict=True):
            key = row.tobytes()
            if key not in number:
                number[key] = len(rows)
                rows.append(row)
                limits.check_growth("symbols of the forward scan", len(rows), limits.symbols)
            pair_symbol[class_, index] = number[key]
    maps, begins = np.hsplit(np.array(rows, dtype=np.int64), 2)
    return pair_symbol, maps, begins.astype(np.bool_)


def _minimal_forward(maps: Longs, begins: Bools) -> tuple[Longs, Bools, Longs]:
    """The forward scan without states that cannot be reached or told apart.

    Returns:
        The smaller maps and begins, and int64 ``[symbols]``: the new number of every symbol.
    """
    reached = _reachable(maps)
    position = np.full(maps.shape[1], -1, dtype=np.int64)
    position[reached] = np.arange(len(reached))
    maps, begins = position[maps[:, reached]], begins[:, reached]
    # Outside a match is told apart from inside by the state, a begin by state and symbol.
    inside = np.arange(len(reached))[:, None] > 0
    blocks = equivalent_states(maps, np.hstack([inside, begins.T]))
    first = np.unique(blocks, return_index=True)[1]
    maps, begins = blocks[maps[:, first]], begins[:, first]
    _, rows = np.unique(np.hstack([maps, begins]), axis=0, return_inverse=True)
    renamed = first_seen_order(rows.reshape(-1))
    kept = np.unique(renamed, return_index=True)[1]
    return maps[kept], begins[kept], renamed


def _reachable(maps: Longs) -> Longs:
    """The states reached from state 0, in breadth-first order."""
    found = [0]
    seen = set(found)
    for state in found:  # grows while it is read
        new = [target for target in maps[:, state].tolist() if target not in seen]
        for target in dict.fromkeys(new):
            seen.add(target)
            found.append(target)
    return np.array(found, dtype=np.int64)


def _scan_automaton(maps: Longs) -> ScanAutomaton:
    """Add the pad, which leads to the start, state 0."""
    padded = np.vstack([maps, np.zeros((1, maps.shape[1]), dtype=np.int64)])
    return ScanAutomaton(_frozen(padded.astype(np.int32)), start=0, pad=len(maps))


def _frozen(array: npt.NDArray[_T]) -> npt.NDArray[_T]:
    array.setflags(write=False)
    return array
