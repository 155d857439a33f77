"""Chunks side by side give what token after token gives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdssm_compiler.ir import PassError, Program, interpret
from pdssm_compiler.ir.chunked_interpreter import interpret_in_chunks
from pdssm_compiler.ir.errors import IRError
from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.programs import PdScan, pd_scan
from tests.ir.agreement import assert_close, cotangents_for
from tests.ir.pd_reference import all_specs, spec_id
from tests.ir.test_summarise_errors import NOT_AFFINE, program_of
from tests.strategies import Sizes, affine_programs, arrays_for, seeds

SIZES = st.builds(Sizes, st.integers(1, 2), st.integers(0, 11), st.integers(1, 2))
LENGTHS = st.none() | st.integers(1, 12)


@given(affine_programs(), SIZES, LENGTHS, seeds())
def test_random_programs(program: Program, sizes: Sizes, length: int | None, seed: int) -> None:
    arrays = arrays_for(program, sizes, seed)
    assert_close(interpret_in_chunks(program, arrays, length), interpret(program, arrays))


@pytest.mark.parametrize("length", [1, 23])
@pytest.mark.parametrize("spec", all_specs(), ids=spec_id)
def test_pd_scans_and_their_gradients(spec: PdScan, length: int) -> None:
    forward, sizes = pd_scan(spec), Sizes(2, length, 2)
    derived = adjoint(forward, surrogate="active")
    arrays = arrays_for(forward, sizes, 5)
    assert_close(interpret_in_chunks(forward, arrays), interpret(forward, arrays))
    # What the backward reads of the forward lags behind its tokens.
    results = interpret(derived.forward, arrays)
    arrays |= {name: results[kept] for name, kept in derived.saved.items()}
    arrays |= {f"grad_{n}": grad for n, grad in cotangents_for(forward, sizes, 6).items()}
    program = derived.program
    reads = {i.name: arrays[i.name] for i in program.inputs if i.inverse_of is None}
    assert_close(interpret_in_chunks(program, reads), interpret(program, reads))


def test_what_is_missing_and_what_cannot_be_cut() -> None:
    scan = pd_scan(PdScan(4, 3))
    arrays = arrays_for(scan, Sizes(1, 9, 1), 0)
    with pytest.raises(IRError, match="no array for %drive"):
        interpret_in_chunks(scan, {n: a for n, a in arrays.items() if n != "drive"})
    step, reason = NOT_AFFINE["square"]
    bent = program_of(step)
    with pytest.raises(PassError, match=reason):
        interpret_in_chunks(bent, arrays_for(bent, Sizes(1, 9, 1), 0))
