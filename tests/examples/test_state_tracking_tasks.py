"""The tasks of the state-tracking example: answers by definition, draws as they say."""

from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.state_tracking.batches import Batches
from examples.state_tracking.groups import Group
from examples.state_tracking.presets import settings_of
from examples.state_tracking.schedule import TESTING, TRAINING, seed_of
from examples.state_tracking.tasks import END, MINUS, PLUS, TASKS, TIMES, Task, task_of

NAMES = [*TASKS, "A5-2", "A5-6", "S5-2", "S5-32"]


def right(task: Task, tokens: list[int]) -> int:
    """The answer, from 0 on, by the task's definition."""
    match task.name:
        case "parity":
            return tokens.count(2) % 2
        case "even-pairs":
            # The number of neighbours that differ is even if the first is like the last.
            return sum(a != b for a, b in pairwise(tokens)) % 2
        case "cycle-navigation":
            return sum({1: 0, 2: 1, 3: -1}[token] for token in tokens) % 5
        case "modular-arithmetic":
            signs = {PLUS: "+", MINUS: "-", TIMES: "*", END: ""}
            return eval("".join(signs.get(t) or str(t - 1) for t in tokens[:-1])) % 5
    group = Group.named(task.name[:2])
    letters = [group.elements[number] for number in group.letters(task.symbols)]
    places = tuple(range(5))
    for token in tokens:
        places = tuple(letters[token - 1][place] for place in places)
    return group.elements.index(places)


@pytest.mark.parametrize("name", NAMES)
@given(
    seed=st.integers(0, 2**31),
    shortest=st.integers(1, 12),
    more=st.integers(0, 9),
    beyond=st.none() | st.integers(0, 3),
    known=st.booleans(),
)
def test_answers(
    name: str, seed: int, shortest: int, more: int, beyond: int | None, known: bool
) -> None:
    """Whatever is beyond the longest sequences, and where only the device knows how long."""
    task, longest = task_of(name), shortest + more
    width = longest + (beyond or 0)
    room = {} if beyond is None and known else {"width": width}
    most = longest if known else torch.tensor(longest)
    batch = task.batch(7, shortest, most, torch.Generator().manual_seed(seed), **room)
    even = task.even
    assert batch.tokens.shape == (7, width + width % 2 * even)
    for tokens, length, answer in zip(*(part.tolist() for part in batch), strict=True):
        assert shortest <= length <= longest + (longest % 2) * even
        assert length % 2 == 0 or not even
        here = tokens[:length]
        assert min(here) >= 1
        assert max(here) <= task.symbols
        assert not any(tokens[length:])
        assert answer == 1 + right(task, here)
        assert answer < task.vocabulary


@pytest.mark.parametrize("longest", [8, torch.tensor(8)], ids=["known", "on the device"])
@pytest.mark.parametrize("name", NAMES)
def test_draws_are_even(name: str, longest: int | torch.Tensor) -> None:
    """Every symbol of a place as often, every length as often; a seed gives the same again."""
    task = task_of(name)
    batches = [
        task.batch(4000, 3, longest, torch.Generator().manual_seed(5), width=9) for _ in range(2)
    ]
    assert batches[0].tokens.shape == (4000, 10 if task.even else 9)
    assert all(torch.equal(one, other) for one, other in zip(*batches, strict=True))
    lengths = batches[0].lengths.bincount()
    assert (lengths[lengths > 0] > 500).all()
    assert lengths.count_nonzero() == (3 if task.even else 6)
    for place in (0, 1):
        counts = batches[0].tokens[:, place].bincount()
        found = counts[counts > 0]
        if task.even:
            assert len(found) == (5 if place == 0 else 3)
        assert found.max() < 1.6 * found.min()


def test_nothing_is_drawn_twice() -> None:
    """Steps, measurements and runs of other seeds have no sequence in common."""
    settings = replace(settings_of("steady", "S5-32", "lstm", 0), batch=50, shortest=20)
    batches = Batches(task_of("S5-32"), settings, torch.device("cpu"))
    seen = []
    for seed, stream, step in product(range(2), (TRAINING, TESTING), range(20)):
        batches.begin(seed_of(seed, stream, step), 40)
        seen += map(tuple, batches.next(40).tokens.tolist())
    assert len(set(seen)) == len(seen) == 4000


def test_what_only_the_device_knows_needs_a_width() -> None:
    with pytest.raises(ValueError, match="width is to be given where longest is a tensor"):
        TASKS["parity"].batch(5, 2, torch.tensor(9), torch.Generator())


def test_expressions_are_spelt_as_they_should() -> None:
    tokens = TASKS["modular-arithmetic"].batch(50, 2, 9, torch.Generator().manual_seed(1)).tokens
    for row in tokens.tolist():
        row = [token for token in row if token]
        assert row[-1] == END
        assert all(1 <= digit <= 5 for digit in row[::2])
        assert all(PLUS <= sign <= TIMES for sign in row[1:-1:2])


@pytest.mark.parametrize(("name", "order"), [("A5", 60), ("S5", 120)])
@pytest.mark.parametrize("letters", [2, 3, 40])
def test_letters_generate_the_group(name: str, order: int, letters: int) -> None:
    group = Group.named(name)
    assert len(group.elements) == order
    assert group.elements[0] == (0, 1, 2, 3, 4)
    chosen, table = group.letters(letters), group.table.tolist()
    assert len(set(chosen)) == letters
    assert chosen[: letters - 1] == group.letters(letters - 1 if letters > 2 else 2)[: letters - 1]
    reached, found = {0}, [0]
    while found:
        found = [table[element][letter] for element in found for letter in chosen]
        found = list(set(found) - reached)
        reached |= set(found)
    assert len(reached) == order


def test_more_letters_than_elements() -> None:
    assert len(Group.named("A5").letters(80)) == 80


@pytest.mark.parametrize(
    "name", ["A5", "A5-1", "S6-3", "parities", "A5-x", "A5-²", "A5-02", "S5-1001", "S5-" + "9" * 9]
)
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(ValueError, match=f"there is no task '{name}'; there are cycle-navigation"):
        task_of(name)
    with pytest.raises(ValueError, match="takes two letters to generate, not 1"):
        Group.named("A5").letters(1)
