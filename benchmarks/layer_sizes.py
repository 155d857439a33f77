"""Sizes of PD-SSM layers to measure."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """Sizes of a layer and of its input, float32.

    Attributes:
        name: what tables call it.
        d_model: of the layer.
        state_size: likewise.
        dictionary_size: likewise.
        batch: sequences.
        length: tokens of each.
    """

    name: str
    d_model: int
    state_size: int
    dictionary_size: int
    batch: int
    length: int

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes by the letters that tables have for them."""
        return {
            "B": self.batch,
            "T": self.length,
            "D": self.d_model,
            "N": self.state_size,
            "K": self.dictionary_size,
        }


# Those first of which a run that is cut short should know.
LAYERS = (
    Layer("D2048", 2048, 1024, 6, 8, 256),
    Layer("D5632", 5632, 2816, 6, 8, 64),
    Layer("FSA-256", 128, 128, 8, 256, 256),
    Layer("UEA", 128, 128, 8, 4, 17984),
    Layer("FSA-40", 128, 128, 8, 256, 40),
    Layer("FSA-32x256", 128, 128, 8, 32, 256),
)
CPU_LAYERS = (Layer("FSA-8x40", 128, 128, 8, 8, 40),)
