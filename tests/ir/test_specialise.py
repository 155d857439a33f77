"""``specialise``: what promises about maps allow, and what happens when they are broken."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given

from pdssm_compiler.ir import IRError, Program, ProgramBuilder, interpret
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.passes import adjoint, specialise, summarise
from pdssm_compiler.ir.passes.specialise import (
    inverse_program,
    promise_program,
    unverified_promises,
)
from pdssm_compiler.ir.program import Input
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.ir.types import Map, MapClass, Table, Vector
from tests.ir.agreement import assert_close
from tests.ir.pd_reference import all_specs, spec_id
from tests.ir.torch_oracle import differentiable
from tests.strategies import (
    Sizes,
    affine_programs,
    arrays_for,
    pd_specs,
    programs,
    seeds,
    sizes,
)

PROMISED = ("permutation", "identity")


def ops(program: Program) -> set[str]:
    return {value.op for value in program.body if not value.is_leaf}


def assert_same_answer(program: Program, shape: Sizes, seed: int) -> Program:
    specialised = specialise(program)
    arrays = arrays_for(program, shape, seed)
    assert_close(interpret(specialised, arrays), interpret(program, arrays))
    return specialised


@given(programs(map_classes=PROMISED), sizes(), seeds())
def test_random_programs_keep_their_answer(program: Program, shape: Sizes, seed: int) -> None:
    specialised = assert_same_answer(program, shape, seed)
    assert specialise(specialised) == specialised


@given(programs(max_ops=8), sizes(min_length=1), seeds())
def test_random_adjoints_keep_their_answer(program: Program, shape: Sizes, seed: int) -> None:
    specialised = specialise(program)
    assume(differentiable(specialised))
    assert_same_answer(adjoint(specialised).program, shape, seed)


@given(affine_programs(map_classes=PROMISED), sizes(), seeds())
def test_random_summaries_keep_their_answer(program: Program, shape: Sizes, seed: int) -> None:
    summary = summarise(program)
    for part in (summary.fold, summary.combine, summary.apply):
        assert_same_answer(part, shape, seed)


@pytest.mark.parametrize("spec", all_specs(), ids=spec_id)
def test_every_pd_scan_keeps_its_answer(spec: PdScan) -> None:
    assert_same_answer(pd_scan(spec), Sizes(2, 5, 3), seed=1)
    assert_same_answer(adjoint(pd_scan(spec)).program, Sizes(2, 5, 3), seed=1)


@given(pd_specs(map_sources=("dictionary", "token")))
def test_the_adjoint_of_the_specialised_is_the_specialised_adjoint(spec: PdScan) -> None:
    program = pd_scan(spec)
    late = specialise(adjoint(program).program)
    early = specialise(adjoint(specialise(program)).program)
    assert early == late
    assert not {"invert", "compose"} & ops(late) or spec.orientation == "row"


@pytest.mark.parametrize("orientation", ["column", "row"])
@pytest.mark.parametrize("source", ["dictionary", "token"])
def test_a_permutation_is_gathered(source: str, orientation: str) -> None:
    spec = PdScan(4, 3 if source == "dictionary" else None, map_source=source)
    spec = replace(spec, map_class="permutation", orientation=orientation)
    for program in (pd_scan(spec), adjoint(pd_scan(spec)).program):
        assert "gather" in ops(specialise(program))
        assert "scatter_add" not in ops(specialise(program))


def test_the_inverse_of_a_table_is_an_input() -> None:
    spec = PdScan(4, 3, map_class="permutation", map_storage="u8")
    specialised = specialise(pd_scan(spec))
    inverse = specialised.input("dictionary_inverse")
    assert inverse.inverse_of == "dictionary"
    assert inverse.storage == "u8"
    assert "invert" not in ops(specialised)
    assert specialised.checks == ()
    # Its own inverse is the table it came from.
    build = ProgramBuilder(4)
    x = build.input("x", Vector("f64"))
    maps = replace(specialised.input("dictionary"), name="maps")
    table = build.input("maps", maps.type, "head")
    p = b.select(table, build.input("k", specialised.input("selection").type))
    build.emit("y", b.scatter_add(b.gather(x, b.invert(p)), b.invert(p)))
    twice = specialise(build.build())
    assert [i.name for i in twice.inputs] == ["k", "maps", "maps_inverse", "x"]
    assert_same_answer(twice, Sizes(2, 3, 2), seed=1)
    assert_same_answer(adjoint(twice).program, Sizes(2, 3, 2), seed=1)


@pytest.mark.parametrize("orientation", ["column", "row"])
@pytest.mark.parametrize("source", ["dictionary", "token"])
def test_an_identity_is_not_read(source: str, orientation: str) -> None:
    size = 3 if source == "dictionary" else None
    spec = PdScan(4, size, map_source=source, map_class="identity", orientation=orientation)
    specialised = specialise(pd_scan(spec))
    assert specialised == pd_scan(PdScan(4, map_source="none"))


def test_general_maps_stay() -> None:
    for source, size in (("dictionary", 3), ("token", None)):
        program = pd_scan(PdScan(4, size, map_source=source))
        assert specialise(program) == program


def test_a_broken_promise_of_an_inverted_map_raises() -> None:
    program = pd_scan(PdScan(4, map_source="token", map_class="permutation"))
    specialised = specialise(program)
    assert [(c.subject, c.promise) for c in specialised.checks] == [("destination", "permutation")]
    arrays = arrays_for(program, Sizes(2, 3, 2), seed=1)
    arrays["destination"] = arrays["destination"].copy()
    arrays["destination"][1, 2, 0] = [0, 1, 2, 2]
    with pytest.raises(IRError, match="%destination is not the permutation it was promised"):
        interpret(specialised, arrays)


@pytest.mark.parametrize("map_class", PROMISED)
@pytest.mark.parametrize("kind", [Map, Table])
def test_promise_program(kind: type, map_class: MapClass) -> None:
    type_ = Map(map_class) if kind is Map else Table(3, map_class)
    input_ = Input("p", type_, "head" if kind is Table else "token", "i16")
    program = promise_program(4, input_)
    assert program is not None
    assert program.input("maps").storage == "i16"
    arrays = arrays_for(program, Sizes(1, 5, 2), seed=3)
    assert interpret(program, arrays) == {}
    broken = np.broadcast_to(np.arange(4), (1, 5, 2, 4)).copy()
    # Of a permutation only the identity is a stronger promise.
    broken[0, 4, 1] = [1, 0, 2, 3] if map_class == "identity" else [0, 1, 2, 1]
    with pytest.raises(IRError, match=f"%maps is not the {map_class} it was promised"):
        interpret(program, {"maps": broken})


def test_promise_program_of_nothing_promised() -> None:
    assert promise_program(4, Input("p", Map())) is None
    assert promise_program(4, Input("t", Table(3), "head")) is None
    assert promise_program(4, Input("x", Vector("f32"))) is None


def test_inverse_program() -> None:
    table = Input("t", Table(3, "permutation"), "head", "u8")
    program = inverse_program(5, table)
    arrays = arrays_for(program, Sizes(1, 3, 2), seed=3)
    inverse = interpret(program, arrays)["inverse"]
    np.testing.assert_array_equal(inverse, arrays["maps"].argsort(-1))
    assert program.token_outputs[0].storage == "u8"
    arrays["maps"] = np.zeros_like(arrays["maps"])
    with pytest.raises(IRError, match="%maps is not the permutation it was promised"):
        interpret(program, arrays)


def _promises(spec: PdScan) -> list[str]:
    program = pd_scan(spec)
    return [i.name for i in unverified_promises(program, specialise(program))]


def test_unverified_promises() -> None:
    column = PdScan(4, map_source="token", map_class="permutation")
    assert _promises(column) == []
    assert _promises(replace(column, orientation="row")) == ["destination"]
    assert _promises(replace(column, map_class="identity")) == ["destination"]
    assert _promises(replace(column, map_class="general")) == []
    table = PdScan(4, 3, map_class="permutation")
    assert _promises(table) == []
    assert _promises(replace(table, orientation="row")) == ["dictionary"]
    assert _promises(replace(table, map_class="identity")) == ["dictionary"]


@pytest.mark.parametrize("source", ["table", "token"])
def test_inverting_an_identity_does_not_pass_for_verifying_it(source: str) -> None:
    """A check that the map is a permutation says nothing about its being the identity."""
    build = ProgramBuilder(4)
    x = build.input("x", Vector("f64"))
    if source == "table":
        table = build.input("p", Table(3, "identity"), "head")
        k = build.input("k", pd_scan(PdScan(4, 3)).input("selection").type)
        map_ = b.select(table, k)
    else:
        map_ = build.input("p", Map("identity"))
    build.emit("y", b.gather(x, b.compose(b.invert(map_), build.input("q", Map()))))
    program = build.build()
    assert [i.name for i in unverified_promises(program, specialise(program))] == ["p"]
