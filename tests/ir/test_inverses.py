"""``computed_inverses``: the selected map inverted, instead of a table of inverses read."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from pdssm_compiler.ir import IRError, Program, interpret
from pdssm_compiler.ir.passes import computed_inverses, specialise
from pdssm_compiler.ir.programs import PdScan, pd_scan
from tests.ir.agreement import assert_close
from tests.strategies import Sizes, arrays_for, programs, seeds, sizes


def handed_the_tables(
    program: Program, arrays: dict[str, np.ndarray]
) -> tuple[Program, dict[str, np.ndarray]]:
    """The program and its arrays where inputs of inverses are handed the tables themselves."""
    sources = {i.name: i.inverse_of for i in program.inputs if i.inverse_of is not None}
    given_ = arrays | {name: arrays[source] for name, source in sources.items()}
    inputs = tuple(replace(input_, inverse_of=None) for input_ in program.inputs)
    return replace(program, inputs=inputs), given_


@given(programs(), sizes(), seeds())
def test_random_programs(program: Program, shape: Sizes, seed: int) -> None:
    lowered = specialise(program)
    arrays = arrays_for(program, shape, seed)
    computed, given_ = handed_the_tables(computed_inverses(lowered), arrays)
    assert_close(interpret(computed, given_), interpret(lowered, arrays))


@pytest.mark.parametrize("orientation", ["column", "row"])
def test_the_inverse_is_computed_and_verified(orientation: str) -> None:
    spec = PdScan(5, 3, map_class="permutation", orientation=orientation)
    lowered = specialise(pd_scan(spec))
    if orientation == "row":
        assert computed_inverses(lowered) is lowered
        return
    computed = computed_inverses(lowered)
    assert "invert" not in lowered.text
    assert computed.text.count("invert") == 1
    assert [(c.subject, c.promise) for c in computed.checks] == [
        ("dictionary_inverse", "permutation")
    ]
    arrays = arrays_for(lowered, Sizes(1, 4, 2), 3)
    arrays["dictionary"][:] = 0
    program, given_ = handed_the_tables(computed, arrays)
    with pytest.raises(IRError, match="permutation"):
        interpret(program, given_)
