"""What a user says about a scan: :class:`ScanSpec`."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from pdssm_compiler.ir.errors import shown
from pdssm_compiler.ir.programs import MapSource, Orientation, PdScan
from pdssm_compiler.ir.types import MAP_CLASSES, Element, MapClass
from pdssm_compiler.runtime.errors import ArgumentError

ELEMENTS: dict[torch.dtype, Element] = {torch.complex64: "c64", torch.complex128: "c128"}
PAYLOADS: dict[torch.dtype, str] = {torch.bfloat16: "cb32", torch.float16: "c32"}
MAP_DTYPES: dict[torch.dtype, str] = {
    torch.uint8: "u8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
}


OPTIONS: dict[str, tuple[str, ...]] = {
    "map_source": ("dictionary", "token", "none"),
    "map_class": MAP_CLASSES,
    "orientation": ("column", "row"),
}
OptionT = TypeVar("OptionT")


@dataclass(frozen=True)
class ScanSpec:
    """A PD-SSM scan, apart from its sizes: batch, length and heads stay symbolic.

    Attributes:
        state_size: ``N``, complex numbers in the state of one head; at least 1.
        dictionary_size: ``K``, maps in the dictionary of one head; needed with
            ``map_source="dictionary"``.
        chunk_length: tokens a chunk; None leaves it to the schedule. Templates that do not chunk
            ignore it.
        dtype: ``torch.complex64`` or ``torch.complex128``.
        payload_dtype: ``torch.bfloat16`` or ``torch.float16`` to store drive and states so, as
            real ``[..., 2]``, while the diagonal and all arithmetic stay float32; None for
            ``dtype``.
        map_source: ``"dictionary"``, ``"token"`` (a destination map a token) or ``"none"`` (a
            diagonal scan).
        map_class: a promise about the maps: ``"general"``, ``"permutation"`` or ``"identity"``.
        orientation: ``"column"`` (``x_t = P_t D_t x_{t-1} + b_t``) or ``"row"``
            (``x_t[i] = D_t[i] x_{t-1}[p_t[i]] + b_t[i]``).

    Raises:
        ArgumentError: a value outside the above; the message names the field.
    """

    state_size: int
    dictionary_size: int | None = None
    chunk_length: int | None = None
    dtype: torch.dtype = torch.complex64
    payload_dtype: torch.dtype | None = None
    map_source: MapSource = "dictionary"
    map_class: MapClass = "general"
    orientation: Orientation = "column"

    def __post_init__(self) -> None:
        self._set("state_size", _positive("state_size", self.state_size))
        for name, allowed in OPTIONS.items():
            self._set(name, one_of(name, getattr(self, name), allowed))
        if self.map_source == "dictionary" and self.dictionary_size is None:
            raise ArgumentError(
                "dictionary_size is needed with map_source='dictionary'; pass it, or choose "
                "map_source='token' or 'none'"
            )
        for name in ("dictionary_size", "chunk_length"):
            if getattr(self, name) is not None:
                self._set(name, _positive(name, getattr(self, name)))
        one_of("dtype", self.dtype, tuple(ELEMENTS))
        if self.payload_dtype is not None:
            one_of("payload_dtype", self.payload_dtype, tuple(PAYLOADS))
            if self.dtype != torch.complex64:
                raise ArgumentError(
                    f"payload_dtype needs dtype=torch.complex64, got {self.dtype}; leave one out"
                )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def program_spec(
        self,
        *,
        initial_state: bool,
        final_state: bool,
        maps: str = "i32",
        selection: str = "i32",
        reverse: bool = False,
        packed: bool = False,
    ) -> PdScan:
        """What the program builder needs, for given storages of the integers.

        A scan of packed sequences neither starts from states nor ends in them: with either, its
        states are carried on in ``dtype``, whatever the drive is stored in
        (:mod:`pdssm_compiler.packed`).
        """
        payload = PAYLOADS[self.payload_dtype] if self.payload_dtype else ""
        if packed and (initial_state or final_state):
            initial_state, final_state, payload = False, False, ""
        dictionary = self.map_source == "dictionary"
        return PdScan(
            state_size=self.state_size,
            dictionary_size=self.dictionary_size if dictionary else None,
            element=ELEMENTS[self.dtype],
            map_source=self.map_source,
            map_class=self.map_class if self.map_source != "none" else "general",
            orientation=self.orientation,
            initial_state=initial_state,
            final_state=final_state,
            payload_storage=payload,
            map_storage=maps if self.map_source != "none" else "i32",
            selection_storage=selection if dictionary else "i32",
            chunk_length=self.chunk_length,
            reverse=reverse,
            packed=packed,
        )


# Sizes are compiled in; beyond this a token would not fit any cache. A chunk's length is counted
# in 64 bits, with room for products.
_LARGEST = {"state_size": 2**16, "dictionary_size": 2**16, "chunk_length": 2**31 - 1}


def _positive(name: str, value: Any) -> int:
    """A size as a plain int: NumPy's integers would print otherwise."""
    try:
        size = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        size = -1
    if size < 1:
        raise ArgumentError(
            f"{name} must be a whole number of at least 1, got {shown(value)}; pass an int"
        )
    if size > _LARGEST[name]:
        raise ArgumentError(
            f"{name} must be at most {_LARGEST[name]}, got {shown(size)}; use a smaller one"
        )
    return size


def one_of(name: str, value: Any, allowed: Sequence[OptionT]) -> OptionT:
    """The allowed value that an option is equal to.

    Raises:
        ArgumentError: none of them.
    """
    for choice in allowed:
        # An array compares element by element, and has no truth value.
        if isinstance(value, type(choice)) and value == choice:
            return choice
    raise ArgumentError(
        f"{name} must be one of {', '.join(map(repr, allowed))}; got {shown(value)}"
    )
