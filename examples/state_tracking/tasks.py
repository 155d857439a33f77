"""The tasks: sequences of symbols, each with one answer, drawn in batches on the device.

Symbols and answers share a vocabulary, of which 0 is padding. A batch has no loop over samples or
tokens; an answer is what the automaton of the task is in at the end, but computed otherwise, so
that it can be checked.

Source: Delétang et al. 2023 (arXiv 2207.02098) for the first four; word problems of groups as in
PD-SSM (arXiv 2509.22284).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch.nn import functional

from examples.state_tracking.groups import Group

MODULUS = 5
# Letters of a word problem, at most: there are 60 and 120 elements, and others repeat.
MOST_LETTERS = 1000
# What lengths are remainders of where they are not drawn from a known range.
_MANY = 2**31


class Batch(NamedTuple):
    """Sequences of a task.

    Attributes:
        tokens: int64 ``[B, T]``, 0 behind the end.
        lengths: int64 ``[B]``.
        answers: int64 ``[B]``, from 1 on.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    answers: torch.Tensor


@dataclass(frozen=True)
class Task:
    """A language of sequences, and what is asked of them.

    Attributes:
        name: what commands call it.
        symbols: symbols there are, numbered from 1.
        answers: answers there are, numbered from 1.
        solve: from tokens ``[B, T]`` and lengths ``[B]`` the answers, from 0 on.
        spell: from numbers drawn uniformly from 1 to ``choices``, ``[B, T]``, and lengths the
            tokens; None if those are the symbols.
        choices: what is drawn from; 0 for the symbols.
        even: whether lengths are even; odd ones are rounded up.
    """

    name: str
    symbols: int
    answers: int
    solve: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    spell: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    choices: int = 0
    even: bool = False

    @property
    def vocabulary(self) -> int:
        """Numbers of symbols and answers, and padding."""
        return 1 + max(self.symbols, self.answers)

    def batch(
        self,
        size: int,
        shortest: int,
        longest: int | torch.Tensor,
        random: torch.Generator,
        device: torch.device | str = "cpu",
        width: int | None = None,
    ) -> Batch:
        """Sequences drawn uniformly, of lengths drawn uniformly.

        Args:
            size: ``B``.
            shortest: tokens at least, 1 or more.
            longest: tokens at most; or an int64 tensor of that number, on the device, which is not
                looked at here.
            random: of that device.
            device: where.
            width: ``T``, at least the longest; rounded up to an even number where lengths are.
                None for the longest, if that is known.

        Raises:
            ValueError: neither the longest nor a width is known.
        """
        known = width if isinstance(longest, torch.Tensor) else longest
        if known is None:
            raise ValueError("width is to be given where longest is a tensor; pass it")
        if isinstance(longest, torch.Tensor):
            # Of so many numbers the remainders are as good as uniform.
            drawn = torch.randint(_MANY, (size,), generator=random, device=device)
            lengths = shortest + drawn % (longest + (1 - shortest))
        else:
            numbers = (shortest, longest + 1, (size,))
            lengths = torch.randint(*numbers, generator=random, device=device)
        drawn_width, width = (
            each + each % 2 * self.even for each in (known, known if width is None else width)
        )
        if self.even:
            lengths = lengths + lengths % 2
        choices = 1 + (self.choices or self.symbols)
        drawn = torch.randint(1, choices, (size, drawn_width), generator=random, device=device)
        tokens = drawn if self.spell is None else self.spell(drawn, lengths)
        there = _places(drawn_width, lengths.device) < lengths[:, None]
        tokens = tokens * there
        if width > drawn_width:
            tokens = functional.pad(tokens, (0, width - drawn_width))
        return Batch(tokens, lengths, 1 + self.solve(tokens, lengths))


def _parity(tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Whether the number of twos is odd."""
    return (tokens == 2).sum(-1) % 2


def _even_pairs(tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Whether the first and the last symbol differ: then pairs of unlike neighbours are odd."""
    return (tokens[:, 0] != _last(tokens, lengths)).long()


def _cycle(tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Where moves by 0, 1 and -1 on a circle of five places lead."""
    moves = (tokens == 2).long() - (tokens == 3).long()
    return moves.sum(-1) % MODULUS


def _last(tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return tokens.gather(1, lengths[:, None] - 1).squeeze(1)


# Digits are 1 … 5, then the signs, then the end.
PLUS, MINUS, TIMES, END = MODULUS + 1, MODULUS + 2, MODULUS + 3, MODULUS + 4
# Powers of 2 are all digits but 0: exponents of 0 … 4, that of 0 not used.
_EXPONENTS = (0, 0, 1, 3, 2)
_POWERS = (1, 2, 4, 3)


@cache
def _numbers(values: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Constants on a device, copied there once: each copy would wait for what runs there."""
    return torch.tensor(values, device=device)


@cache
def _places(count: int, device: torch.device) -> torch.Tensor:
    """``0 … count - 1``; once, as each kernel of a small batch takes as long as a large one's."""
    return torch.arange(count, device=device)


def _spell_arithmetic(drawn: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Digits and signs in turn, and the end: ``d ± d · d … =``. Of 15 numbers as many give each
    digit, and as many each sign.
    """
    places = _places(drawn.shape[1], drawn.device)
    digits, signs = 1 + (drawn - 1) % MODULUS, PLUS + (drawn - 1) % 3
    tokens = torch.where(places % 2 == 0, digits, signs)
    return torch.where(places == lengths[:, None] - 1, END, tokens)


def _arithmetic(tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The value modulo 5, products first: each product by its factors' exponents, zeros apart."""
    digits, signs = tokens[:, ::2], tokens[:, 1::2]
    there = digits > 0
    values = (digits - 1).clamp(min=0)
    exponents = _numbers(_EXPONENTS, tokens.device)[values]
    # A sign before each digit; a plus before the first.
    before = torch.cat([torch.full_like(signs[:, :1], PLUS), signs[:, :-1]], 1)
    product = ((before == PLUS) | (before == MINUS)).long().cumsum(1) - 1
    sums = torch.zeros_like(values)
    exponent = sums.scatter_add(1, product, exponents * there)
    zeros = sums.scatter_add(1, product, ((values == 0) & there).long())
    negative = sums.scatter_add(1, product, (before == MINUS).long())
    known = sums.scatter_add(1, product, there.long()) > 0
    powers = _numbers(_POWERS, tokens.device)[exponent % 4]
    terms = torch.where((zeros > 0) | ~known, 0, powers)
    return torch.where(negative > 0, -terms, terms).sum(1) % MODULUS


def word_problem(group: Group, generators: int, seed: int = 0) -> Task:
    """The product of a sequence of a group's elements, of those that are letters.

    Args:
        group: ``A5`` or ``S5``.
        generators: letters, at least 2: two that generate the group, and others drawn from it.
        seed: of the others.
    """
    # Padding is the identity, which is element 0.
    letters, order = (0, *group.letters(generators, seed)), len(group.table)
    table = tuple(group.table.flatten().tolist())

    def solve(tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        elements = _numbers(letters, tokens.device)[tokens]
        products = _numbers(table, tokens.device).view(order, order)
        while elements.shape[1] > 1:
            if elements.shape[1] % 2:
                elements = functional.pad(elements, (0, 1))
            elements = products[elements[:, ::2], elements[:, 1::2]]
        return elements.squeeze(1)

    return Task(f"{group.name}-{generators}", generators, order, solve)


TASKS = {
    task.name: task
    for task in (
        Task("cycle-navigation", 3, MODULUS, _cycle),
        Task("even-pairs", 2, 2, _even_pairs),
        Task("modular-arithmetic", END, MODULUS, _arithmetic, _spell_arithmetic, 15, even=True),
        Task("parity", 2, 2, _parity),
    )
}


def task_of(name: str) -> Task:
    """A task by its name; ``A5-2`` is the word problem of A5 with two letters.

    Raises:
        ValueError: there is none of that name.
    """
    if name in TASKS:
        return TASKS[name]
    group, _, letters = name.partition("-")
    # Numbers as they are printed: each task has one name, and none is so long that it takes time.
    if group in ("A5", "S5") and len(letters) <= len(str(MOST_LETTERS)) and letters.isdecimal():
        count = int(letters)
        if letters == str(count) and 2 <= count <= MOST_LETTERS:
            return word_problem(Group.named(group), count)
    raise ValueError(
        f"there is no task {name!r}; there are {', '.join(TASKS)}, and A5-n and S5-n with "
        f"2 <= n <= {MOST_LETTERS} letters"
    )
