"""The PD-SSM scan: ``x_t = P_t (D_t x_{t-1}) + b_t`` and its relatives.

Source: *Structured Sparse Transition Matrices to Enable State Tracking in State-Space Models*
(arXiv 2509.22284), equations of the recurrence; *Flash PD-SSM* (arXiv 2605.19150) for dictionary
and selection.
"""

from dataclasses import dataclass
from typing import Literal

from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.errors import IRError
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import Element, Index, Map, MapClass, Table, Vector
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


def pd_scan(spec: PdScan) -> Program:
    """The program of a PD scan.

    Inputs ``diagonal``, ``drive``, and by map source ``dictionary`` and ``selection`` or
    ``destination``, and ``initial_state``; outputs ``states`` and ``final_state``.

    Raises:
        IRError: a dictionary without a size, or a size without a dictionary.
    """
    if spec.map_source != "dictionary" and spec.dictionary_size is not None:
        raise IRError(f"map_source={spec.map_source!r} takes no dictionary_size")
    vector = Vector(spec.element)
    build = b.ProgramBuilder(spec.state_size, chunk_length=spec.chunk_length)
    diagonal = build.input("diagonal", vector, storage=spec.diagonal_storage)
    drive = build.input("drive", vector, storage=spec.payload_storage)
    start: Literal["zero"] | Value = "zero"
    if spec.initial_state:
        start = build.input("initial_state", vector, "row")
    state = build.carry("state", vector, start)
    map_ = _map(build, spec)
    if map_ is None:
        moved = b.mul(diagonal, state)
    elif spec.orientation == "column":
        moved = b.scatter_add(b.mul(diagonal, state), map_)
    else:
        moved = b.mul(diagonal, b.gather(state, map_))
    following = b.add(moved, drive)
    build.next("state", following)
    build.emit("states", following, spec.payload_storage)
    if spec.final_state:
        build.final("final_state", "state")
    return build.build()


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
