"""The shared strategies keep what they promise."""

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pdssm_compiler.ir import Program, interpret, verify
from pdssm_compiler.ir.ops import OPS
from pdssm_compiler.ir.ops.matrices import MATRIX_OPS
from pdssm_compiler.ir.passes import adjoint, specialise, summarise
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.ir.types import Index, is_number
from tests.random_bodies import PRODUCERS
from tests.strategies import (
    CARRY_BOUND,
    Sizes,
    affine_programs,
    arrays_for,
    pd_specs,
    programs,
    seeds,
)

SHAPE = Sizes(2, 20, 2)


def test_every_op_can_be_drawn() -> None:
    assert set(PRODUCERS) == set(OPS) - MATRIX_OPS


def test_every_op_is_drawn() -> None:
    """Not only can be: in a hundred programs each op is alive in some body."""
    seen: set[str] = set()

    @settings(max_examples=100, database=None, derandomize=True)
    @given(programs())
    def collect(program: Program) -> None:
        seen.update(value.op for value in program.body)

    collect()
    assert set(OPS) - MATRIX_OPS <= seen


@given(st.sampled_from((32, 64)), st.data())
def test_precision_and_state_size(bits: int, data: st.DataObject) -> None:
    for strategy in (programs, affine_programs):
        program = data.draw(strategy(3, bits))
        verify(program)
        assert program.state_size == 3
        elements = {v.type.element for v in program.body if is_number(v.type)}
        assert elements <= ({"f32", "c64"} if bits == 32 else {"f64", "c128"})


@given(programs(), seeds())
def test_programs_stay_bounded(program: Program, seed: int) -> None:
    """However many tokens: float32 kernels are compared on them."""
    results = interpret(program, arrays_for(program, SHAPE, seed))
    for final in program.final_outputs:
        assert np.abs(results[final.name]).max() <= CARRY_BOUND
    for out in program.token_outputs:
        if is_number(out.value.type):
            assert np.abs(results[out.name]).max() <= 50.0


@given(affine_programs(), seeds())
def test_affine_programs_are_affine_and_grow_slowly(program: Program, seed: int) -> None:
    summarise(program)
    states = interpret(program, arrays_for(program, SHAPE, seed))["states"]
    assert np.abs(states).max() <= 10.0 * SHAPE.length


@given(programs(), seeds())
def test_arrays_for_is_reproducible(program: Program, seed: int) -> None:
    first, second = (arrays_for(program, SHAPE, seed) for _ in range(2))
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    other = arrays_for(program, SHAPE, seed + 1)
    assert (other["x"] != first["x"]).any()


@given(pd_specs(), seeds())
def test_arrays_for_keeps_ranges_and_promises(spec: PdScan, seed: int) -> None:
    program = specialise(pd_scan(spec))
    arrays = arrays_for(program, SHAPE, seed)
    assert "dictionary_inverse" not in arrays
    for input_ in program.inputs:
        if input_.inverse_of is not None:
            continue
        array = arrays[input_.name]
        if is_number(input_.type):
            assert array.dtype == np.complex128
            assert np.abs(array).max() <= 1.0 + 1e-15
            continue
        assert array.dtype == np.int64
        assert array.min() >= 0
        bound = input_.type.bound if isinstance(input_.type, Index) else program.state_size
        assert array.max() < bound
        if not isinstance(input_.type, Index) and input_.type.map_class == "permutation":
            identity = np.broadcast_to(np.arange(spec.state_size), array.shape)
            np.testing.assert_array_equal(np.sort(array, axis=-1), identity)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_arrays_for_serves_derived_programs(data: st.DataObject) -> None:
    program = adjoint(pd_scan(data.draw(pd_specs()))).program
    interpret(program, arrays_for(program, Sizes(1, 3, 1), seed=1))
