"""The shapes that are measured and tuned: language models, long sequences, automata, a step."""

from dataclasses import dataclass


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

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes by the names of the field."""
        names = ("B", "T", "H", "N", "K")
        values = (self.batch, self.length, self.heads, self.state_size, self.dictionary_size)
        return dict(zip(names, values, strict=True))


SUITE = (
    Shape("LM-32", 8, 4096, 32, 32, 32),
    Shape("LM-64", 8, 4096, 16, 64, 16),
    Shape("LONG", 1, 32768, 32, 32, 32),
    Shape("FSA", 64, 256, 4, 128, 8),
    Shape("UEA", 4, 17984, 1, 128, 8),
)
CPU_SUITE = (Shape("N32", 4, 2048, 8, 32, 32), Shape("N128", 4, 2048, 8, 128, 8))

# A token of each of many sequences, as a model that generates takes it.
STEP = Shape("STEP", 64, 1, 32, 32, 32)
