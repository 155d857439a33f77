"""The layers that these tests run, small and with every parameter in use."""

from collections.abc import Callable
from typing import Any

import torch

from pdssm_compiler.nn import PDSSM, FlashPDSSM
from tests.nn import formulas

# d_model and options. State sizes that are no powers of two, single heads, entries and components,
# convolutions of one token and wider than the sequences.
FLASH: dict[str, tuple[int, dict[str, Any]]] = {
    "odd": (6, {"heads": 2, "state_size": 3, "dictionary_size": 3}),
    "wider inside": (4, {"heads": 1, "state_size": 5, "dictionary_size": 2, "conv_width": 1}),
    "one of each": (3, {"heads": 3, "dictionary_size": 1, "conv_width": 9}),
}
PD: dict[str, tuple[int, dict[str, Any]]] = {
    "linear": (4, {"state_size": 5, "dictionary_size": 3}),
    "mlp, row": (3, {"readout": "mlp", "orientation": "row", "hidden": 5}),
    "one of each": (2, {"state_size": 1, "dictionary_size": 1}),
}
CASES = [(FlashPDSSM, name) for name in FLASH] + [(PDSSM, name) for name in PD]
# What differs from the others in gradients alone.
FLASH["dense"] = (6, FLASH["odd"][1] | {"surrogate": "dense"})
Layer = FlashPDSSM | PDSSM


def made(kind: type, name: str, seed: int, dtype: torch.dtype = torch.float64) -> Layer:
    """A layer whose parameters are all at random, so that none can be forgotten."""
    d_model, options = (FLASH if kind is FlashPDSSM else PD)[name]
    torch.manual_seed(seed)
    layer = kind(d_model, **options, dtype=dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.5)
        layer.temperature.fill_(0.7)
    return layer


def tokens(layer: Layer, batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random tokens in the layer's dtype."""
    random = torch.Generator().manual_seed(seed)
    shape = (batch, length, layer.d_model)
    return torch.randn(shape, generator=random, dtype=torch.float64).to(layer.skip.dtype)


def formula(layer: Layer) -> Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor]:
    """The layer's formulas, of parameters and tokens."""
    if isinstance(layer, FlashPDSSM):
        return lambda p, x: formulas.flash(p, x, layer.surrogate)
    return lambda p, x: formulas.pdssm(p, x, layer.orientation)
