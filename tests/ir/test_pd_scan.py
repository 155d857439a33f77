"""``pd_scan``: the programs of the PD recurrence, against its definition."""

import pytest
import torch
from hypothesis import given

from pdssm_compiler.ir import IRError, interpret
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.ir.types import Index, Map, Table, Vector
from tests.ir.agreement import assert_close
from tests.ir.pd_reference import all_specs, pd_reference, spec_id
from tests.strategies import Sizes, arrays_for, pd_specs, seeds, sizes


def assert_is_the_recurrence(spec: PdScan, shape: Sizes, seed: int) -> None:
    program = pd_scan(spec)
    arrays = arrays_for(program, shape, seed)
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    want = {name: out.numpy() for name, out in pd_reference(spec, tensors, shape).items()}
    assert_close(interpret(program, arrays), want)


@pytest.mark.parametrize("length", [0, 1, 6])
@pytest.mark.parametrize("spec", all_specs(), ids=spec_id)
def test_every_variant_is_the_recurrence(spec: PdScan, length: int) -> None:
    assert_is_the_recurrence(spec, Sizes(2, length, 3), seed=length)


@given(pd_specs(), sizes(max_length=8), seeds())
def test_random_specs_are_the_recurrence(spec: PdScan, shape: Sizes, seed: int) -> None:
    assert_is_the_recurrence(spec, shape, seed)


def test_signature() -> None:
    spec = PdScan(
        8,
        4,
        "c64",
        map_class="permutation",
        initial_state=True,
        final_state=True,
        diagonal_storage="c64",
        payload_storage="cb32",
        map_storage="u8",
        selection_storage="i16",
        chunk_length=32,
    )
    program = pd_scan(spec)
    signature = {i.name: (i.type, i.role, i.storage) for i in program.inputs}
    assert signature == {
        "diagonal": (Vector("c64"), "token", "c64"),
        "drive": (Vector("c64"), "token", "cb32"),
        "dictionary": (Table(4, "permutation"), "head", "u8"),
        "selection": (Index(4), "token", "i16"),
        "initial_state": (Vector("c64"), "row", "c64"),
    }
    # States come back as the payload is stored, the final state in what is computed.
    assert [(o.name, o.storage) for o in program.token_outputs] == [("states", "cb32")]
    assert [(f.name, f.storage) for f in program.final_outputs] == [("final_state", "c64")]
    assert program.chunk_length == 32
    token = pd_scan(PdScan(8, map_source="token", map_class="identity", map_storage="i64"))
    assert token.input("destination").type == Map("identity")
    assert token.input("destination").storage == "i64"


def test_dictionary_and_its_size_go_together() -> None:
    with pytest.raises(IRError, match="map_source='dictionary' needs a dictionary_size"):
        pd_scan(PdScan(4))
    for source in ("token", "none"):
        with pytest.raises(IRError, match=f"map_source='{source}' takes no dictionary_size"):
            pd_scan(PdScan(4, 3, map_source=source))
