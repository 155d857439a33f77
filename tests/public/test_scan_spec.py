"""``ScanSpec``: what it accepts, refuses and hands to the program builder."""

from typing import Any

import numpy as np
import pytest
import torch

from pdssm_compiler import ArgumentError, ScanSpec
from pdssm_compiler.ir.programs import PdScan, pd_scan

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "state_size": (
        {"state_size": 0},
        "state_size must be a whole number of at least 1, got 0; pass an int",
    ),
    "no integer": (
        {"state_size": 4.0},
        "state_size must be a whole number of at least 1, got 4.0; pass an int",
    ),
    "bool": (
        {"state_size": True},
        "state_size must be a whole number of at least 1, got True; pass an int",
    ),
    "an array": (
        {"state_size": np.array([4, 4])},
        "state_size must be a whole number of at least 1, got array([4, 4]); pass an int",
    ),
    "too large": (
        {"state_size": 1 << 17},
        "state_size must be at most 65536, got 131072; use a smaller one",
    ),
    "map_source of several": (
        {"state_size": 4, "map_source": np.array(["none", "token"])},
        "map_source must be one of 'dictionary', 'token', 'none'; got array(['none', 'token'], "
        "dtype='<U5')",
    ),
    "NumPy's dtype": (
        {"state_size": 4, "map_source": "token", "dtype": np.complex64},
        "dtype must be one of torch.complex64, torch.complex128; got <class 'numpy.complex64'>",
    ),
    "no dictionary": (
        {"state_size": 4},
        "dictionary_size is needed with map_source='dictionary'; pass it, or choose "
        "map_source='token' or 'none'",
    ),
    "dictionary_size": (
        {"state_size": 4, "dictionary_size": -1},
        "dictionary_size must be a whole number of at least 1, got -1; pass an int",
    ),
    "chunk_length": (
        {"state_size": 4, "dictionary_size": 2, "chunk_length": 0},
        "chunk_length must be a whole number of at least 1, got 0; pass an int",
    ),
    "a chunk that no sequence fills": (
        {"state_size": 4, "dictionary_size": 2, "chunk_length": 2**31},
        "chunk_length must be at most 2147483647, got 2147483648; use a smaller one",
    ),
    "a matrix": (
        {"state_size": np.zeros((3, 2))},
        "state_size must be a whole number of at least 1, got array([[0., 0.], [0., 0.], [0., "
        "0.]]); pass an int",
    ),
    "map_source": (
        {"state_size": 4, "map_source": "head"},
        "map_source must be one of 'dictionary', 'token', 'none'; got 'head'",
    ),
    "map_class": (
        {"state_size": 4, "map_source": "token", "map_class": "any"},
        "map_class must be one of 'general', 'permutation', 'identity'; got 'any'",
    ),
    "orientation": (
        {"state_size": 4, "map_source": "token", "orientation": "columns"},
        "orientation must be one of 'column', 'row'; got 'columns'",
    ),
    "dtype": (
        {"state_size": 4, "map_source": "token", "dtype": torch.float32},
        "dtype must be one of torch.complex64, torch.complex128; got torch.float32",
    ),
    "payload": (
        {"state_size": 4, "map_source": "token", "payload_dtype": torch.float32},
        "payload_dtype must be one of torch.bfloat16, torch.float16; got torch.float32",
    ),
    "double payload": (
        {
            "state_size": 4,
            "map_source": "token",
            "dtype": torch.complex128,
            "payload_dtype": torch.float16,
        },
        "payload_dtype needs dtype=torch.complex64, got torch.complex128; leave one out",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_refuses(wrong: str) -> None:
    arguments, message = WRONG[wrong]
    with pytest.raises(ArgumentError) as caught:
        ScanSpec(**arguments)
    assert str(caught.value) == message


def test_numpys_integers_and_strings_are_pythons() -> None:
    found = ScanSpec(np.int64(4), np.uint8(2), np.int32(8), orientation=np.str_("row"))
    assert found == ScanSpec(4, 2, 8, orientation="row")
    assert repr(found) == repr(ScanSpec(4, 2, 8, orientation="row"))


def test_is_a_value() -> None:
    assert ScanSpec(4, 2) == ScanSpec(state_size=4, dictionary_size=2)
    assert len({ScanSpec(4, 2), ScanSpec(4, 2), ScanSpec(4, 3)}) == 2
    with pytest.raises(AttributeError):
        ScanSpec(4, 2).state_size = 5  # type: ignore[misc]


def test_program_spec() -> None:
    spec = ScanSpec(
        4, 2, 64, payload_dtype=torch.bfloat16, map_class="permutation", orientation="row"
    )
    assert spec.program_spec(initial_state=True, final_state=False, maps="u8") == PdScan(
        state_size=4,
        dictionary_size=2,
        element="c64",
        map_source="dictionary",
        map_class="permutation",
        orientation="row",
        initial_state=True,
        final_state=False,
        payload_storage="cb32",
        map_storage="u8",
        selection_storage="i32",
        chunk_length=64,
    )


@pytest.mark.parametrize("source", ["dictionary", "token", "none"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_every_spec_has_a_program(source: str, dtype: torch.dtype) -> None:
    spec = ScanSpec(4, 2 if source == "dictionary" else None, map_source=source, dtype=dtype)
    program = pd_scan(spec.program_spec(initial_state=True, final_state=True))
    names = {input_.name for input_ in program.inputs}
    maps = {"dictionary": {"dictionary", "selection"}, "token": {"destination"}, "none": set()}
    assert names == {"diagonal", "drive", "initial_state"} | maps[source]


def test_without_maps_the_map_options_change_nothing() -> None:
    plain = ScanSpec(4, map_source="none").program_spec(initial_state=False, final_state=False)
    other = ScanSpec(4, 7, map_source="none", map_class="identity")
    assert other.program_spec(initial_state=False, final_state=False, maps="u8") == plain
