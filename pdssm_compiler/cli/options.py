"""Options that several commands share: a specification, told on the command line."""

from enum import StrEnum
from typing import Annotated

import torch
import typer

from pdssm_compiler.spec import ScanSpec


class Dtype(StrEnum):
    """What is computed."""

    complex64 = "complex64"
    complex128 = "complex128"


class Payload(StrEnum):
    """What drive and states are stored as."""

    bfloat16 = "bfloat16"
    float16 = "float16"


class MapSource(StrEnum):
    """Where the maps come from."""

    dictionary = "dictionary"
    token = "token"
    none = "none"


class MapClass(StrEnum):
    """What is promised about the maps."""

    general = "general"
    permutation = "permutation"
    identity = "identity"


class Orientation(StrEnum):
    """Whether columns or rows are one-hot."""

    column = "column"
    row = "row"


StateSize = Annotated[int, typer.Option("--state-size", "-N", help="N, states of one head.")]
DictionarySize = Annotated[
    int, typer.Option("--dictionary-size", "-K", help="K, maps of one head's dictionary.")
]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="What is computed.")]
PayloadOption = Annotated[
    Payload | None, typer.Option("--payload-dtype", help="How drive and states are stored.")
]
MapSourceOption = Annotated[MapSource, typer.Option("--map-source", help="Where maps come from.")]
MapClassOption = Annotated[MapClass, typer.Option("--map-class", help="A promise about the maps.")]
OrientationOption = Annotated[
    Orientation, typer.Option("--orientation", help="One-hot columns or rows.")
]
InitialState = Annotated[bool, typer.Option("--initial-state", help="Start from a given state.")]
FinalState = Annotated[bool, typer.Option("--final-state", help="Write the last state as well.")]


def spec_of(
    state_size: int,
    dictionary_size: int,
    dtype: Dtype,
    payload: Payload | None,
    map_source: MapSource,
    map_class: MapClass,
    orientation: Orientation,
) -> ScanSpec:
    """The specification that the options describe."""
    return ScanSpec(
        state_size,
        dictionary_size if map_source is MapSource.dictionary else None,
        dtype=getattr(torch, dtype.value),
        payload_dtype=getattr(torch, payload.value) if payload else None,
        map_source=map_source.value,
        map_class=map_class.value,
        orientation=orientation.value,
    )
