"""Types of the values a scan program computes.

All vectors and maps of a program have the length ``N`` of its ``state_size``, so a type does not
repeat it. What a tensor stores is a property of an input or an output (:data:`STORAGE`), not of
the value: values are computed in the dtype named here.
"""

from dataclasses import dataclass
from typing import Literal

from pdssm_compiler.ir.errors import IRError

Element = Literal["f32", "f64", "c64", "c128"]
MapClass = Literal["general", "permutation", "identity"]

ELEMENTS: tuple[Element, ...] = ("f32", "f64", "c64", "c128")
MAP_CLASSES: tuple[MapClass, ...] = ("general", "permutation", "identity")

# What a tensor may hold: numbers of each precision, then indices.
NUMBER_STORAGE = ("f16", "bf16", "f32", "f64", "c32", "cb32", "c64", "c128")
INDEX_STORAGE = ("u8", "i16", "i32", "i64")
STORAGE = NUMBER_STORAGE + INDEX_STORAGE
# Of an index that is stored as logits, one for each of its values.
LOGIT_STORAGE = ("f16", "bf16")

# A complex number in memory is two reals of the same width, real part first.
STORAGE_OF_PARTS = {
    "f16": "f16",
    "bf16": "bf16",
    "f32": "f32",
    "f64": "f64",
    "c32": "f16",
    "cb32": "bf16",
    "c64": "f32",
    "c128": "f64",
}


@dataclass(frozen=True, slots=True)
class Scalar:
    """One number per row and token."""

    element: Element

    def __str__(self) -> str:
        return self.element


@dataclass(frozen=True, slots=True)
class Vector:
    """``N`` numbers per row and token."""

    element: Element

    def __str__(self) -> str:
        return f"vec<{self.element}>"


@dataclass(frozen=True, slots=True)
class Map:
    """A map ``[N] -> [N]``; ``map_class`` is what its maker promised about it."""

    map_class: MapClass = "general"

    def __str__(self) -> str:
        return f"map<{self.map_class}>"


@dataclass(frozen=True, slots=True)
class Index:
    """An integer in ``[0, bound)``."""

    bound: int

    def __str__(self) -> str:
        return f"index<{self.bound}>"


@dataclass(frozen=True, slots=True)
class Table:
    """``size`` maps ``[N] -> [N]``: the dictionary of one head."""

    size: int
    map_class: MapClass = "general"

    def __str__(self) -> str:
        return f"table<{self.size}, {self.map_class}>"


@dataclass(frozen=True, slots=True)
class Coefficients:
    """``size`` real numbers per row and token: what each matrix of a head is weighed by."""

    size: int
    element: Element

    def __str__(self) -> str:
        return f"coefs<{self.size}, {self.element}>"


@dataclass(frozen=True, slots=True)
class Matrix:
    """``N × N`` real numbers per row and token. It is computed where it is used and never stored:
    of all tokens that would be ``T × N × N`` numbers.
    """

    element: Element

    def __str__(self) -> str:
        return f"matrix<{self.element}>"


@dataclass(frozen=True, slots=True)
class Matrices:
    """``size`` real matrices ``N × N``: of one head."""

    size: int
    element: Element

    def __str__(self) -> str:
        return f"matrices<{self.size}, {self.element}>"


Type = Scalar | Vector | Map | Index | Table | Coefficients | Matrix | Matrices


def are_logits(type_: Type, storage: str) -> bool:
    """Whether a tensor of such storage holds logits, ``[…, bound]``, in place of an index: that is
    the place of the largest, the first of equal ones, and out of range where one is a NaN.
    """
    return isinstance(type_, Index) and storage in LOGIT_STORAGE


def is_number(type_: Type) -> bool:
    """Whether values of the type are numbers (as opposed to maps and indices)."""
    return isinstance(type_, Scalar | Vector)


def is_numeric(type_: Type) -> bool:
    """Whether values of the type are numbers or made of them: those that have gradients."""
    return isinstance(type_, Scalar | Vector | Coefficients | Matrix | Matrices)


def has_matrices(type_: Type) -> bool:
    """Whether the type belongs to programs over matrices, which have templates of their own."""
    return isinstance(type_, Coefficients | Matrix | Matrices)


def is_complex(type_: Type) -> bool:
    """Whether values of the type are complex numbers."""
    return isinstance(type_, Scalar | Vector) and type_.element in ("c64", "c128")


def precision(type_: Type) -> int:
    """Bits of one real part, 32 or 64.

    Raises:
        IRError: the type is not a number.
    """
    if not isinstance(type_, Scalar | Vector | Coefficients | Matrix | Matrices):
        raise IRError(f"{type_} is not a number type, so it has no precision")
    return 32 if type_.element in ("f32", "c64") else 64


def element_of(bits: int, *, complex_: bool) -> Element:
    """The element with real parts of ``bits`` bits."""
    if complex_:
        return "c64" if bits == 32 else "c128"
    return "f32" if bits == 32 else "f64"


def with_complex(type_: Type, complex_: bool) -> Scalar | Vector:
    """The same shape and precision, real or complex."""
    element = element_of(precision(type_), complex_=complex_)
    return Vector(element) if isinstance(type_, Vector) else Scalar(element)


def real_of(type_: Type) -> Scalar | Vector:
    """The real type of the same shape and precision."""
    return with_complex(type_, False)


def default_storage(type_: Type) -> str:
    """The storage a tensor of this type has unless said otherwise."""
    if isinstance(type_, Map | Index | Table):
        return "i32"
    return type_.element
