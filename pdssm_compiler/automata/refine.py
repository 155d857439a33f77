"""The coarsest partition of an automaton's states that its transitions respect."""

from collections import defaultdict

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer]


def equivalent_states(transitions: Ints, labels: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    """Merge states that no sequence of symbols tells apart.

    Hopcroft's algorithm: ``O(symbols · states · log states)``.

    Args:
        transitions: ``[symbols, states]``, the next state.
        labels: ``[states]`` or ``[states, columns]``: what is seen in a state; states with
            different labels stay apart.

    Returns:
        int64 ``[states]``: the number of each state's block, blocks numbered by their lowest
        state.
    """
    states = transitions.shape[1]
    _, block_array = np.unique(labels.reshape(states, -1), axis=0, return_inverse=True)
    block_of: list[int] = block_array.reshape(-1).tolist()
    blocks: list[set[int]] = [set() for _ in range(max(block_of) + 1)]
    for state, block in enumerate(block_of):
        blocks[block].add(state)
    incoming: list[list[tuple[int, int]]] = [[] for _ in range(states)]
    for symbol, row in enumerate(transitions.tolist()):
        for state, target in enumerate(row):
            incoming[target].append((symbol, state))

    waiting = set(range(len(blocks)))
    while waiting:
        sources: defaultdict[int, list[int]] = defaultdict(list)
        for target in blocks[waiting.pop()]:
            for symbol, state in incoming[target]:
                sources[symbol].append(state)
        for leading in sources.values():
            hits: defaultdict[int, list[int]] = defaultdict(list)
            for state in leading:
                hits[block_of[state]].append(state)
            for block, inside in hits.items():
                if len(inside) == len(blocks[block]):
                    continue
                new = len(blocks)
                blocks.append(set(inside))
                blocks[block].difference_update(inside)
                for state in inside:
                    block_of[state] = new
                # Splitting by either half splits by both, so the smaller one is enough, unless
                # the block is still waiting as a whole.
                smaller = new if len(inside) <= len(blocks[block]) else block
                waiting.add(new if block in waiting else smaller)
    return first_seen_order(np.array(block_of, dtype=np.int64))


def first_seen_order(labels: Ints) -> npt.NDArray[np.int64]:
    """Renumber labels ``[n]`` as 0, 1, 2 … in the order in which they first appear."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.reshape(-1)]


def merge_columns(table: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    """For ``[rows, columns]`` the class ``[columns]`` of each column: equal columns share one."""
    _, inverse = np.unique(table.T, axis=0, return_inverse=True)
    return first_seen_order(inverse.reshape(-1))
