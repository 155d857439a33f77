"""Sizes to measure at, and random scans of them."""

from dataclasses import dataclass, replace

import torch

from pdssm_compiler.suite import CPU_SUITE, SUITE, Shape

# How the maps of a problem are drawn, and what is promised about them: one-to-one and promised;
# at random, so that targets collide; the worst, in which every column goes to one row.
MAP_CLASSES = {"permutation": "permutation", "random": "general", "one row": "general"}


# One size at a time: T with B·T as it is, N with H·N as it is or a little less, B alone.
Sweeps = dict[str, tuple[Shape, ...]]
# State sizes of the sweep over N: powers of two, what lies between them, and odd ones.
_WIDTHS = (5, 8, 12, 16, 21, 32, 47, 64, 100, 128, 200, 256)


def sweeps(base: Shape, tokens: int, shortest: int, batches: int) -> Sweeps:
    """What is measured to see how time follows a size: by powers of two, but for ``N``.

    Args:
        base: the sizes that stay.
        tokens: ``B·T`` of the sweep over ``T``, which ends at one sequence of all of them.
        shortest: the ``T`` it begins with.
        batches: the ``B`` that the sweep over it ends with.
    """
    channels = base.heads * base.state_size
    lengths = _doubling(shortest, tokens)
    widths = [n for n in _WIDTHS if n <= channels]
    return {
        "T": tuple(replace(base, name=f"T={t}", batch=tokens // t, length=t) for t in lengths),
        "N": tuple(
            # Few maps, so that the tables of wide states fit what a processor holds.
            replace(base, name=f"N={n}", heads=channels // n, state_size=n, dictionary_size=8)
            for n in widths
        ),
        "B": tuple(replace(base, name=f"B={b}", batch=b) for b in _doubling(1, batches)),
    }


def _doubling(least: int, most: int) -> list[int]:
    found = [least]
    while found[-1] * 2 <= most:
        found.append(found[-1] * 2)
    return found


SWEEPS = sweeps(SUITE[0], tokens=1 << 20, shortest=1 << 14, batches=64)
CPU_SWEEPS = sweeps(CPU_SUITE[0], tokens=1 << 13, shortest=1 << 8, batches=8)


@dataclass(frozen=True)
class LayerSizes:
    """What is measured of layers.

    Attributes:
        d_model: the layer's width.
        length: ``T`` of the first row, which targets are for.
        lengths: ``T`` of the rows after it.
        tokens: ``B·T``; longer sequences stand alone.
        decoded: sequences that are decoded together.
        backend: of ``torch.compile``.
    """

    d_model: int
    length: int
    lengths: tuple[int, ...]
    tokens: int
    decoded: int
    backend: str = "inductor"

    def batch(self, length: int) -> int:
        """``B`` of rows of so many tokens."""
        return max(1, self.tokens // length)

    @property
    def measured(self) -> tuple[int, ...]:
        """Every ``T``, the first row's first: a compiler takes later ones for any."""
        return tuple(dict.fromkeys((self.length, *self.lengths)))


@dataclass
class Problem:
    """Inputs of one scan: diagonal with |D| < 1, drive, dictionary, selection."""

    diagonal: torch.Tensor
    drive: torch.Tensor
    dictionary: torch.Tensor
    selection: torch.Tensor

    @property
    def maps(self) -> dict[str, torch.Tensor]:
        """The keyword arguments of the maps."""
        return {"dictionary": self.dictionary, "selection": self.selection}

    @property
    def destination(self) -> torch.Tensor:
        """The map of each token, int64 ``[B, T, H, N]``."""
        heads = torch.arange(len(self.dictionary), device=self.dictionary.device)
        return self.dictionary.long()[heads, self.selection.long()]


def random_problem(
    shape: Shape, device: torch.device, *, maps: str = "random", seed: int = 0
) -> Problem:
    """Random inputs; ``maps`` is one of :data:`MAP_CLASSES`."""
    random = torch.Generator(device).manual_seed(seed)
    sizes = (shape.batch, shape.length, shape.heads, shape.state_size)
    magnitude = torch.rand(sizes, generator=random, device=device)
    phase = torch.rand(sizes, generator=random, device=device).mul_(2 * torch.pi)
    diagonal = torch.polar(magnitude, phase)
    drive = torch.randn(sizes, generator=random, device=device, dtype=torch.complex64)
    entries = (shape.heads, shape.dictionary_size, shape.state_size)
    match maps:
        case "permutation":
            dictionary = torch.rand(entries, generator=random, device=device).argsort(-1)
        case "random":
            dictionary = torch.randint(shape.state_size, entries, generator=random, device=device)
        case "one row":
            dictionary = torch.zeros(entries, dtype=torch.int64, device=device)
        case _:
            raise ValueError(f"unknown maps {maps!r}; use one of {', '.join(MAP_CLASSES)}")
    selection = torch.randint(
        shape.dictionary_size, sizes[:3], generator=random, device=device, dtype=torch.int32
    )
    return Problem(diagonal, drive, dictionary.to(torch.int32), selection)
