"""Random scans of given sizes."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Shape:
    """Sizes of a scan: ``B, T, H, N, K``."""

    name: str
    batch: int
    length: int
    heads: int
    state_size: int
    dictionary_size: int

    @property
    def elements(self) -> int:
        """Complex numbers in one tensor of states."""
        return self.batch * self.length * self.heads * self.state_size


SUITE = (
    Shape("LM-32", 8, 4096, 32, 32, 32),
    Shape("LM-64", 8, 4096, 16, 64, 16),
    Shape("LONG", 1, 32768, 32, 32, 32),
    Shape("FSA", 64, 256, 4, 128, 8),
    Shape("UEA", 4, 17984, 1, 128, 8),
)

# A token of each of many sequences, as a model that generates takes it.
STEP = Shape("STEP", 64, 1, 32, 32, 32)


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


def random_problem(
    shape: Shape, device: torch.device, *, permutation: bool = False, seed: int = 0
) -> Problem:
    """Random inputs; maps collide unless they are permutations."""
    random = torch.Generator(device).manual_seed(seed)
    sizes = (shape.batch, shape.length, shape.heads, shape.state_size)
    magnitude = torch.rand(sizes, generator=random, device=device)
    phase = torch.rand(sizes, generator=random, device=device) * 2 * torch.pi
    drive = torch.randn(sizes, generator=random, device=device, dtype=torch.complex64)
    entries = (shape.heads, shape.dictionary_size, shape.state_size)
    if permutation:
        dictionary = torch.rand(entries, generator=random, device=device).argsort(-1)
    else:
        dictionary = torch.randint(shape.state_size, entries, generator=random, device=device)
    selection = torch.randint(
        shape.dictionary_size, sizes[:3], generator=random, device=device, dtype=torch.int32
    )
    return Problem(torch.polar(magnitude, phase), drive, dictionary.to(torch.int32), selection)
