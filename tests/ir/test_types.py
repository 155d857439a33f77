"""Types: what they say about themselves, and the conversions between them."""

import pytest

from pdssm_compiler.ir import IRError, ParseError
from pdssm_compiler.ir.parser import parse_type
from pdssm_compiler.ir.types import (
    ELEMENTS,
    MAP_CLASSES,
    Index,
    Map,
    Scalar,
    Table,
    Type,
    Vector,
    default_storage,
    is_complex,
    is_number,
    precision,
    real_of,
    with_complex,
)

NUMBERS = [shape(element) for shape in (Scalar, Vector) for element in ELEMENTS]
OTHERS = [Map(class_) for class_ in MAP_CLASSES] + [Table(3, class_) for class_ in MAP_CLASSES]
TYPES: list[Type] = [*NUMBERS, *OTHERS, Index(7)]


@pytest.mark.parametrize("type_", TYPES, ids=str)
def test_parse_type_reads_what_str_prints(type_: Type) -> None:
    assert parse_type(str(type_)) == type_


@pytest.mark.parametrize(
    "text",
    ["", "vec", "vec<f16>", "f32<f32>", "map<any>", "index<x>", "index<-1>", "table<3>", "f8"],
)
def test_parse_type_refuses(text: str) -> None:
    with pytest.raises(ParseError, match="is not a type"):
        parse_type(text)


@pytest.mark.parametrize("type_", NUMBERS, ids=str)
def test_conversions_keep_shape_and_precision(type_: Scalar | Vector) -> None:
    assert is_number(type_)
    assert with_complex(type_, is_complex(type_)) == type_
    assert is_complex(with_complex(type_, True))
    assert real_of(with_complex(type_, True)) == real_of(type_)
    assert type(real_of(type_)) is type(type_)
    assert precision(real_of(type_)) == precision(type_)
    assert precision(type_) == {"f32": 32, "c64": 32, "f64": 64, "c128": 64}[type_.element]
    assert default_storage(type_) == type_.element


@pytest.mark.parametrize("type_", [*OTHERS, Index(7)], ids=str)
def test_maps_and_indices_are_no_numbers(type_: Type) -> None:
    assert not is_number(type_)
    assert not is_complex(type_)
    assert default_storage(type_) == "i32"
    with pytest.raises(IRError, match="is not a number type, so it has no precision"):
        precision(type_)
