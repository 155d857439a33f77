"""A PD-SSM layer with weights set by hand follows an automaton exactly, however long the word."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdssm_compiler.nn import PDSSM


def automaton_layer(table: torch.Tensor, orientation: str) -> PDSSM:
    """The automaton with transitions ``table`` ``[symbols, states]``; symbols come one-hot.

    Each symbol picks its entry, columns of which lead where the table does; ``D = 1``, no drive.
    """
    symbols, states = table.shape
    layer = PDSSM(
        symbols, state_size=states, dictionary_size=symbols, hidden=1, orientation=orientation
    )
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.selector.weight.copy_(torch.eye(symbols)).mul_(5)
        ones = torch.nn.functional.one_hot(table, states).mT.float()  # [symbols, row, column]
        layer.dictionary_logits.copy_(ones)
        layer.diagonal.magnitude.last.bias.fill_(200)
        layer.diagonal.phase.last.bias.fill_(-200)
        layer.norm.weight.fill_(1)
    return layer


@settings(max_examples=8)
@given(
    symbols=st.integers(1, 4),
    states=st.integers(1, 6),
    word=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_automaton(symbols: int, states: int, word: list[int], seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    table = torch.randint(states, (symbols, states), generator=random)
    layer = automaton_layer(table, "column")
    x = torch.nn.functional.one_hot(torch.tensor(word) % symbols, symbols).float()[None]
    with torch.no_grad():
        _, whole = layer(x, output_cache=True)
        cache, state = layer.init_cache(1), 0
        for t, symbol in enumerate(word):
            state = int(table[symbol % symbols, state])
            _, cache = layer.step(x[:, t], cache)
            want = torch.zeros(1, 1, states, 2)
            want[..., state, 0] = 1
            assert torch.equal(cache.state, want)
    assert torch.equal(whole.state, want)


@pytest.mark.parametrize("orientation", ["column", "row"])
def test_a_group(orientation: str) -> None:
    """Permutations of five things, three hundred of them in a row."""
    torch.manual_seed(0)
    table = torch.rand(3, 5).argsort(-1)
    layer = automaton_layer(table, orientation)
    word = torch.randint(3, (300,))
    _, cache = layer(torch.nn.functional.one_hot(word, 3).float()[None], output_cache=True)
    state = 0
    for symbol in word.tolist():
        # One-hot rows give x[i] = x[p[i]], and the row of a one in column j is table[j].
        state = int(table[symbol, state])
    assert cache.state[0, 0, :, 0].tolist() == [float(i == state) for i in range(5)]
