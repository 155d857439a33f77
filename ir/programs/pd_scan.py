"""The PD-SSM scan: ``x_t = P_t (D_t x_{t-1}) + b_t`` and its relatives.

Source: *Structured Sparse Transition Matrices to Enable State Tracking in State-Space Models*
(arXiv 2509.22284), equations of the recurrence; *Flash PD-SSM* (arXiv 2605.19150) for dictionary
and selection.
"""

from dataclasses import dataclass
from typing import Literal

from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.errors import IRError
from pdssm_compiler.ir.passes.rewrite import substitute
from pdssm_compiler.ir.passes.simplify import simplify
from pdssm_compiler.ir.program import Direction, Input, Program
from pdssm_compiler.ir.types import (
    STORAGE_OF_PARTS,
    Element,
    Index,
    Map,
    MapClass,
    Table,
    Vector,
    is_complex,
)
from pdssm_compiler.ir.value import Value

MapSource = Literal["dictionary", "token", "none"]
Orientation = Literal["column", "row"]


@dataclass(frozen=True)
class PdScan:
    """Everything that tells one PD scan program from another.

    Attributes:
        state_size: ``N``.
        dictionary_size: ``K``, with ``map_source="dictionary"``.
        element: ``c64`` or ``c128``, what is computed.
        map_source: ``dictionary`` (a table a head and a selection a token), ``token`` (a map a
            token) or ``none`` (a diagonal scan).
        map_class: what the caller promises about the maps.
        orientation: ``column``: the map is a column's destination, a scatter; ``row``: a row's
            source, a gather.
        initial_state: whether there is one.
        final_state: whether the last state is wanted on its own.
        diagonal_storage, payload_storage: what the diagonal, and the drive and states, are stored
            as; "" for the element itself.
        map_storage, selection_storage: integer dtypes of the maps and of the selection.
        chunk_length: tokens a chunk, where the caller fixed it.
        reverse: whether time runs from the last token to the first.
        packed: whether several sequences lie one after the other along ``T``. An input ``follows``
            says of each token whether another of its sequence is run before it; where none is, the
            scan begins anew, from zero.
        states_storage: what the states are stored as; None for the drive's.
    """

    state_size: int
    dictionary_size: int | None = None
    element: Element = "c64"
    map_source: MapSource = "dictionary"
    map_class: MapClass = "general"
    orientation: Orientation = "column"
    initial_state: bool = False
    final_state: bool = False
    diagonal_storage: str = ""
    payload_storage: str = ""
    map_storage: str = "i32"
    selection_storage: str = "i32"
    chunk_length: int | None = None
    reverse: bool = False
    packed: bool = False
    states_storage: str | None = None


@dataclass(frozen=True)
class Fusion:
    """What is computed within a PD scan around its recurrence.

    Attributes:
        inputs: what the two expressions read, besides the state.
        diagonal: a vector, the diagonal of a token; None if it is an input itself.
        readout: a number, written at every token as ``readout`` in the place of the states, in
            terms of the leaf ``state``; None for the states.
        state: the leaf that stands for the state after the token.
    """

    inputs: tuple[Input, ...] = ()
    diagonal: Value | None = None
    readout: Value | None = None
    state: Value | None = None


def pd_scan(spec: PdScan, fusion: Fusion | None = None) -> Program:
    """The program of a PD scan.

    Inputs ``diagonal``, ``drive``, and by map source ``dictionary`` and ``selection`` or
    ``destination``, ``follows`` if it is packed, and ``initial_state``, and those of the fusion;
    outputs ``states`` or ``readout``, and ``final_state``.

    Raises:
        IRError: a dictionary without a size, or a size without a dictionary.
    """
    if spec.map_source != "dictionary" and spec.dictionary_size is not None:
        raise IRError(f"map_source={spec.map_source!r} takes no dictionary_size")
    fusion = fusion or Fusion()
    vector = Vector(spec.element)
    direction: Direction = "backward" if spec.reverse else "forward"
    build = b.ProgramBuilder(spec.state_size, direction, spec.chunk_length)
    for input_ in fusion.inputs:
        build.input(input_.name, input_.type, input_.role, input_.storage)
    diagonal = fusion.diagonal
    if diagonal is None:
        diagonal = build.input("diagonal", vector, storage=spec.diagonal_storage)
    drive = build.input("drive", vector, storage=spec.payload_storage)
    start: Literal["zero"] | Value = "zero"
    if spec.initial_state:
        start = build.input("initial_state", vector, "row")
    state = build.carry("state", vector, start)
    before = state
    if spec.packed:
        before = b.keep(state, build.input("follows", Index(2)))
    map_ = _map(build, spec)
    if map_ is None:
        moved = b.mul(diagonal, before)
    elif spec.orientation == "column":
        moved = b.scatter_add(b.mul(diagonal, before), map_)
    else:
        moved = b.mul(diagonal, b.gather(before, map_))
    following = b.add(moved, drive)
    build.next("state", following)
    if fusion.readout is None:
        stored = spec.payload_storage if spec.states_storage is None else spec.states_storage
        build.emit("states", following, stored)
    else:
        build.emit("readout", _read_out(fusion, following), _stored(fusion, spec))
    if spec.final_state:
        build.final("final_state", "state")
    program = build.build()
    # What a user writes is not written to be short.
    return program if fusion == Fusion() else simplify(program)


def _read_out(fusion: Fusion, state: Value) -> Value:
    """The read-out of a state."""
    assert fusion.readout is not None
    others = {} if fusion.state is None else {fusion.state: state}
    return substitute([fusion.readout], others)[fusion.readout]


def _stored(fusion: Fusion, spec: PdScan) -> str:
    """What a read-out is stored as: in the payload's precision, real or complex."""
    assert fusion.readout is not None
    real = not is_complex(fusion.readout.type)
    return STORAGE_OF_PARTS.get(spec.payload_storage, "") if real else spec.payload_storage


def _map(build: b.ProgramBuilder, spec: PdScan) -> Value | None:
    if spec.map_source == "none":
        return None
    if spec.map_source == "token":
        return build.input("destination", Map(spec.map_class), storage=spec.map_storage)
    if spec.dictionary_size is None:
        raise IRError("map_source='dictionary' needs a dictionary_size")
    table = Table(spec.dictionary_size, spec.map_class)
    dictionary = build.input("dictionary", table, "head", spec.map_storage)
    index = Index(spec.dictionary_size)
    selection = build.input("selection", index, storage=spec.selection_storage)
    return b.select(dictionary, selection)
