"""PD scans to test: a fixed list of programs, and inputs drawn for them.

Programs are fixed so that a run compiles each once; Hypothesis draws sizes, maps and values.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One program: the state size, where its maps come from, what is promised about them."""

    state_size: int
    source: str
    orientation: str = "column"
    map_class: str = "general"
    dtype: torch.dtype = torch.complex64
    dictionary_size: int = 3

    def __str__(self) -> str:
        bits = "" if self.dtype == torch.complex64 else "-c128"
        return f"N{self.state_size}-{self.source}-{self.orientation}-{self.map_class}{bits}"

    @property
    def options(self) -> dict[str, Any]:
        """The keywords of ``pd_scan`` that are not tensors."""
        return {"orientation": self.orientation, "map_class": self.map_class}


C128 = torch.complex128
CASES = (
    Case(1, "dictionary"),
    Case(1, "token", "row", dtype=C128),
    Case(2, "token"),
    Case(3, "dictionary", "row"),
    Case(7, "dictionary", "column", "permutation"),
    Case(8, "none"),
    Case(16, "token", "column", "permutation"),
    Case(16, "dictionary", "column", dtype=C128),
    Case(31, "dictionary"),
    Case(32, "dictionary", "column", "permutation"),
    Case(33, "token", "row"),
    Case(33, "token", "row", "permutation", dtype=C128),
    Case(64, "token"),
    Case(64, "dictionary", "column", "identity"),
    Case(100, "dictionary", "row", "permutation"),
    Case(128, "dictionary"),
    Case(128, "none", dtype=C128),
)
# Every source in both orientations and, where it has maps, every class, at a small size.
KINDS = (
    Case(3, "none", dtype=C128),
    *(
        Case(3, source, orientation, map_class, C128)
        for source in ("dictionary", "token")
        for orientation in ("column", "row")
        for map_class in ("general", "permutation", "identity")
    ),
)

GENERAL_MAPS = ("random", "collide", "permutation", "identity")
MAPS = {"general": GENERAL_MAPS, "permutation": GENERAL_MAPS[2:], "identity": GENERAL_MAPS[3:]}
DIAGONALS = ("disk", "zero", "tiny", "nearly one", "one", "rotation")


class Draw(NamedTuple):
    """What Hypothesis chooses for a case."""

    batch: int
    length: int
    heads: int
    maps: str
    diagonal: str
    seed: int


def draws(
    case: Case, lengths: tuple[int, ...] = (0, 1, 2, 3, 5, 8, 13)
) -> st.SearchStrategy[Draw]:
    """Sizes, kinds of maps and of diagonals, and a seed."""
    return st.builds(
        Draw,
        st.integers(1, 3),
        st.sampled_from(lengths),
        st.integers(1, 3),
        st.sampled_from(MAPS[case.map_class]),
        st.sampled_from(DIAGONALS),
        st.integers(0, 2**31 - 1),
    )


def inputs(case: Case, draw: Draw) -> Tensors:
    """Every tensor of a call, the initial state among them."""
    random = torch.Generator().manual_seed(draw.seed)
    shape = (draw.batch, draw.length, draw.heads, case.state_size)
    tensors = {
        "diagonal": _diagonal(draw.diagonal, shape, case.dtype, random),
        "drive": torch.randn(shape, dtype=case.dtype, generator=random),
        "initial_state": torch.randn(
            (draw.batch, draw.heads, case.state_size), dtype=case.dtype, generator=random
        ),
    }
    if case.source == "dictionary":
        size = case.dictionary_size
        shape = (draw.heads, size, case.state_size)
        tensors["dictionary"] = _maps(draw.maps, shape, random)
        rows = (draw.batch, draw.length, draw.heads)
        tensors["selection"] = torch.randint(size, rows, generator=random, dtype=torch.int32)
    elif case.source == "token":
        tensors["destination"] = _maps(draw.maps, shape, random)
    return tensors


def _diagonal(
    kind: str, shape: tuple[int, ...], dtype: torch.dtype, random: torch.Generator
) -> torch.Tensor:
    real = torch.float32 if dtype == torch.complex64 else torch.float64
    uniform = torch.rand(shape, dtype=real, generator=random)
    radius = {
        "disk": uniform.sqrt(),
        "zero": torch.zeros(shape, dtype=real),
        "tiny": uniform * 1e-20,
        "nearly one": 1 - 1e-6 * uniform,
        "one": torch.ones(shape, dtype=real),
        "rotation": torch.ones(shape, dtype=real),
    }[kind]
    turn = 2 * torch.pi * torch.rand(shape, dtype=real, generator=random)
    return torch.polar(radius, turn if kind != "one" else torch.zeros_like(turn))


def _maps(kind: str, shape: tuple[int, ...], random: torch.Generator) -> torch.Tensor:
    n = shape[-1]
    if kind == "random":
        maps = torch.randint(n, shape, generator=random)
    elif kind == "collide":
        maps = torch.randint(n, (*shape[:-1], 1), generator=random).expand(shape)
    elif kind == "permutation":
        maps = torch.rand(shape, generator=random).argsort(dim=-1)
    else:
        maps = torch.arange(n).expand(shape)
    return maps.to(torch.int32).contiguous()
