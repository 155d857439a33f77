"""``adjoint(..., surrogate="active")``: gradients of hard choices, against one-hot matrices."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdssm_compiler.ir import PassError, Program, ProgramBuilder, interpret
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.passes import adjoint, in_chunks, specialise
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.ir.types import Index, Map, Table, Vector, is_number
from tests.ir.agreement import assert_close, cotangents_for, run_adjoint
from tests.ir.one_hot_oracle import gradients
from tests.ir.pd_reference import all_specs, spec_id
from tests.strategies import Sizes, affine_programs, arrays_for, pd_specs, programs, seeds, sizes

SPEC = PdScan(5, 3, "c128", initial_state=True, final_state=True)
VECTOR = Vector("f64")


def choosable(program: Program) -> list[str]:
    """What has a gradient by the surrogate; a table, if the body selects from it."""
    read = {value.name for value in program.body if value.op == "input"}
    return [i.name for i in program.inputs if not isinstance(i.type, Table) or i.name in read]


def assert_active(
    program: Program, shape: Sizes, seed: int, wrt: list[str] | None = None
) -> dict[str, np.ndarray]:
    """The derived gradients are those of the ones; gives them."""
    arrays = arrays_for(program, shape, seed)
    cotangents = cotangents_for(program, shape, seed)
    derived = adjoint(program, wrt, surrogate="active")
    got = run_adjoint(derived, arrays, cotangents)
    assert_close(got, gradients(program, arrays, shape, cotangents, wrt or choosable(program)))
    return got


@pytest.mark.parametrize("spec", all_specs(), ids=spec_id)
def test_every_pd_scan(spec: PdScan) -> None:
    for length in (0, 1, 6):
        assert_active(pd_scan(spec), Sizes(2, length, 3), seed=length)


@given(pd_specs(elements=("c128",)), sizes(max_length=8), seeds())
def test_random_pd_scans(spec: PdScan, shape: Sizes, seed: int) -> None:
    assert_active(pd_scan(spec), shape, seed)


@given(programs(), sizes(), seeds())
def test_random_programs(program: Program, shape: Sizes, seed: int) -> None:
    assert_active(program, shape, seed)


@given(affine_programs(), sizes(min_length=1), seeds(), st.data())
def test_subsets_of_inputs(program: Program, shape: Sizes, seed: int, data: st.DataObject) -> None:
    names = st.lists(st.sampled_from(choosable(program)), min_size=1, unique=True)
    assert_active(program, shape, seed, sorted(data.draw(names)))


def test_the_definition_of_a_pd_scan() -> None:
    """``a_t[j] = Re(conj(g_t[p_t[j]]) D_t[j] x_{t-1}[j])``, its sum over ``j``, and its sum over
    the tokens that selected a map.
    """
    program, shape = pd_scan(SPEC), Sizes(2, 7, 3)
    arrays, cotangents = arrays_for(program, shape, 3), cotangents_for(program, shape, 3)
    got = run_adjoint(adjoint(program, surrogate="active"), arrays, cotangents)
    states = interpret(program, arrays)["states"]
    before = np.concatenate([arrays["initial_state"][:, None], states[:, :-1]], 1)
    maps = arrays["dictionary"][np.arange(3), arrays["selection"]]  # [B, T, H, N]
    arriving = np.take_along_axis(got["drive"], maps, -1)  # the drive's gradient is g
    a = (arriving.conj() * arrays["diagonal"] * before).real
    np.testing.assert_allclose(got["selection"], a.sum(-1), rtol=0, atol=1e-12)
    for k in range(3):
        chosen = (arrays["selection"] == k)[..., None]
        np.testing.assert_allclose(
            got["dictionary"][:, k], (a * chosen).sum((0, 1)), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("map_class", ["permutation", "identity"])
@pytest.mark.parametrize("orientation", ["column", "row"])
@pytest.mark.parametrize("source", ["dictionary", "token"])
def test_specialising_the_adjoint_changes_nothing(
    source: str, orientation: str, map_class: str
) -> None:
    size = 3 if source == "dictionary" else None
    program = pd_scan(PdScan(5, size, "c128", source, map_class, orientation))
    shape = Sizes(2, 6, 2)
    arrays, cotangents = arrays_for(program, shape, 3), cotangents_for(program, shape, 3)
    derived = adjoint(program, surrogate="active")
    special = replace(derived, program=specialise(derived.program))
    assert_close(*(run_adjoint(each, arrays, cotangents) for each in (special, derived)))


def test_a_map_inverted_by_specialise_has_its_gradient() -> None:
    """Of maps a token; a table's inverse is another input, whose gradient is not asked for."""
    program = specialise(pd_scan(PdScan(5, None, "c128", "token", "permutation")))
    assert "invert" in {value.op for value in program.body}
    assert_active(program, Sizes(2, 6, 2), 4)
    table = specialise(pd_scan(PdScan(5, 3, "c128", map_class="permutation")))
    with pytest.raises(PassError, match=r"%dictionary is read by its inverse.* before special"):
        adjoint(table, ["dictionary"], surrogate="active")


def test_what_is_written() -> None:
    program = adjoint(pd_scan(replace(SPEC, payload_storage="cb32")), surrogate="active").program
    assert {o.name: (str(o.value.type), o.storage) for o in program.token_outputs} == {
        "grad_diagonal": ("vec<c128>", "c128"),
        "grad_drive": ("vec<c128>", "cb32"),
        "grad_selection": ("f64", "f64"),
    }
    (sums,) = program.sum_outputs
    assert (sums.name, str(sums.value.type), sums.index.name) == (
        "grad_dictionary", "vec<f64>", "selection",
    )  # fmt: skip
    assert sums.groups == 3
    # The diagonal's gradient is used for what the ones were multiplied by.
    products = [value for value in program.body if value.op == "mul"]
    assert len(products) == 3


def test_one_carry_and_so_a_summary() -> None:
    program = adjoint(pd_scan(SPEC), surrogate="active").program
    parts = in_chunks(program)
    assert parts.partials == {"grad_dictionary": "partial_grad_dictionary"}
    assert [s.name for s in parts.resume.sum_outputs] == ["partial_grad_dictionary"]
    assert parts.fold.sum_outputs == parts.carry.sum_outputs == ()


def test_without_a_surrogate_choices_have_no_gradient() -> None:
    with pytest.raises(PassError, match="no gradient for %selection: differentiable inputs are"):
        adjoint(pd_scan(SPEC), ["selection"])
    program = adjoint(pd_scan(SPEC)).program
    assert program.sum_outputs == ()


def test_an_unknown_surrogate() -> None:
    with pytest.raises(PassError, match="no surrogate 'soft': there is active, dense"):
        adjoint(pd_scan(SPEC), surrogate="soft")


@pytest.mark.parametrize("indices", [0, 2])
def test_a_table_is_summed_by_one_index(indices: int) -> None:
    build = ProgramBuilder(3)
    x = build.input("x", VECTOR)
    table = build.input("table", Table(2), "head")
    for number in range(indices):
        index = build.input(f"index{number}", Index(2))
        x = b.gather(x, b.select(table, index))
    build.emit("y", x)
    program = build.build()
    with pytest.raises(PassError, match=f"%table is selected from by {indices} indices"):
        adjoint(program, ["table"], surrogate="active")
    names = [f"index{number}" for number in range(indices)]
    assert_active(program, Sizes(2, 3, 2), 1, ["x", *names])


@pytest.mark.parametrize("role", ["token", "row", "head"])
def test_maps_and_indices_of_every_role(role: str) -> None:
    build = ProgramBuilder(4)
    x = build.input("x", VECTOR)
    p = build.input("p", Map(), role)
    table = build.input("table", Table(3), "head")
    moved = b.gather(b.scatter_add(x, p), b.select(table, build.input("k", Index(3), role)))
    state = build.carry("state", VECTOR)
    build.next("state", b.add(b.mul(moved, b.function("tanh", state)), x))
    build.final("last", "state")
    program = build.build()
    got = assert_active(program, Sizes(2, 5, 3), 6)
    assert all(np.abs(got[name]).max() > 1e-3 for name in ("p", "k", "table"))
    derived = adjoint(program, surrogate="active")
    assert set(derived.summed) == {"grad_table"} | (
        {"grad_p", "grad_k"} if role == "head" else set()
    )


def test_a_choice_that_reaches_nothing_has_gradient_zero() -> None:
    build = ProgramBuilder(4)
    build.emit("y", build.input("x", VECTOR))
    build.input("p", Map())
    build.input("k", Index(3), "row")
    got = assert_active(build.build(), Sizes(2, 3, 2), 1)
    assert not is_number(Map())
    assert got["p"].shape == (2, 3, 2, 4)
    assert got["k"].shape == (2, 2)
    assert not got["p"].any()
    assert not got["k"].any()
