"""Options that several commands share: a specification, told on the command line."""

import inspect
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import torch
import typer

from pdssm_compiler.schedules.registry import TEMPLATES
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
    int | None,
    typer.Option(
        "--dictionary-size",
        "-K",
        help="K, maps of one head's dictionary; of maps a token, the matrices they are mixed of.",
        show_default="32 with a dictionary",
    ),
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
_BATCH = typer.Option("--batch", "-B", min=1, help="B, sequences.")
_LENGTH = typer.Option("--length", "-T", min=1, help="T, tokens.")
_HEADS = typer.Option("--heads", "-H", min=1, help="H, heads.")
Batch = Annotated[int, _BATCH]
Length = Annotated[int, _LENGTH]
Heads = Annotated[int, _HEADS]
SomeBatch = Annotated[int | None, _BATCH]
SomeLength = Annotated[int | None, _LENGTH]
Template = Annotated[
    str | None,
    typer.Option(
        "--template",
        help=f"The template to take: {', '.join(TEMPLATES)}. Without it, what the resolution "
        "order finds.",
    ),
]
InitialState = Annotated[bool, typer.Option("--initial-state", help="Start from a given state.")]
Reverse = Annotated[bool, typer.Option("--reverse", help="From the last token to the first.")]
Packed = Annotated[bool, typer.Option("--packed", help="Of packed sequences (cu_seqlens).")]
FinalState = Annotated[bool, typer.Option("--final-state", help="Write the last state as well.")]


def spec_of(
    state_size: StateSize = 32,
    dictionary_size: DictionarySize = None,
    dtype: DtypeOption = Dtype.complex64,
    payload_dtype: PayloadOption = None,
    map_source: MapSourceOption = MapSource.dictionary,
    map_class: MapClassOption = MapClass.general,
    orientation: OrientationOption = Orientation.column,
) -> ScanSpec:
    """The specification that the options describe."""
    if map_source is MapSource.dictionary and dictionary_size is None:
        dictionary_size = 32
    return ScanSpec(
        state_size,
        None if map_source is MapSource.none else dictionary_size,
        dtype=getattr(torch, dtype.value),
        payload_dtype=getattr(torch, payload_dtype.value) if payload_dtype else None,
        map_source=map_source.value,
        map_class=map_class.value,
        orientation=orientation.value,
    )


# Options of a specification, but for the one that says there is one.
SPEC_OPTIONS = tuple(
    name for name in inspect.signature(spec_of).parameters if name != "state_size"
)


def takes_spec(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter ``spec`` is told by the options of :func:`spec_of`.

    If the parameter has a default, that is what it is where ``--state-size`` is not given.
    """
    own = dict(inspect.signature(command).parameters)
    spec = own.pop("spec")
    told = dict(inspect.signature(spec_of).parameters)
    optional = spec.default is not inspect.Parameter.empty
    if optional:
        size = told["state_size"]
        perhaps = Annotated[int | None, *size.annotation.__metadata__]
        told["state_size"] = size.replace(annotation=perhaps, default=None)

    def with_options(**given: Any) -> None:
        options = {name: given.pop(name) for name in told}
        if optional and options["state_size"] is None:
            command(**given)
        else:
            command(spec=spec_of(**options), **given)

    # Typer reads a command's options from these.
    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in (*own.values(), *told.values())]
    with_options.__doc__ = command.__doc__
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_options
