"""The alternating and the symmetric group of five things, by their multiplication tables."""

import random
from functools import cache, cached_property
from itertools import permutations

import torch

Permutation = tuple[int, ...]
POINTS = 5
# Two that generate each: a cycle of five, with one of three (even) or with a transposition.
_GENERATORS: dict[str, tuple[Permutation, Permutation]] = {
    "A5": ((1, 2, 3, 4, 0), (1, 2, 0, 3, 4)),
    "S5": ((1, 2, 3, 4, 0), (1, 0, 2, 3, 4)),
}


class Group:
    """A group of permutations, its elements numbered; 0 is the identity.

    Attributes:
        name: ``"A5"`` or ``"S5"``.
        elements: 60 or 120 of them.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        every = permutations(range(POINTS))
        self.elements: list[Permutation] = [p for p in every if name == "S5" or _is_even(p)]
        self._number = {element: number for number, element in enumerate(self.elements)}

    @staticmethod
    @cache
    def named(name: str) -> "Group":
        """The group of a name."""
        return Group(name)

    @cached_property
    def table(self) -> torch.Tensor:
        """Products, int64 ``[G, G]``: of the first and then the second."""
        return torch.tensor(
            [[self._number[_then(p, q)] for q in self.elements] for p in self.elements]
        )

    def letters(self, count: int, seed: int = 0) -> list[int]:
        """Numbers of ``count`` elements that generate the group: two that do, and others drawn,
        none twice and not the identity while there are enough.

        Raises:
            ValueError: fewer than two.
        """
        if count < 2:
            raise ValueError(f"{self.name} takes two letters to generate, not {count}")
        first = [self._number[element] for element in _GENERATORS[self.name]]
        others = [n for n in range(1, len(self.elements)) if n not in first]
        draw = random.Random(seed)
        draw.shuffle(others)
        while len(others) < count - 2:
            others.append(draw.randrange(len(self.elements)))
        return [*first, *others[: count - 2]]


def _then(first: Permutation, second: Permutation) -> Permutation:
    return tuple(second[place] for place in first)


def _is_even(permutation: Permutation) -> bool:
    pairs = [(i, j) for j in range(POINTS) for i in range(j)]
    return sum(permutation[i] > permutation[j] for i, j in pairs) % 2 == 0
