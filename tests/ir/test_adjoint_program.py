"""What the derived backward program reads, saves and refuses."""

from dataclasses import replace

import numpy as np
import pytest

from pdssm_compiler.ir import PassError, Program, ProgramBuilder, VerificationError, interpret
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.passes.adjoint import save_carries
from pdssm_compiler.ir.program import FinalOutput
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.ir.types import Index, Map, Scalar, Vector
from tests.ir.agreement import assert_adjoint_agrees, assert_close
from tests.strategies import Sizes, arrays_for

SPEC = PdScan(4, 3, "c128", initial_state=True, final_state=True, payload_storage="cb32")
PD = pd_scan(SPEC)
VECTOR = Vector("f64")


def names(program: Program) -> list[str]:
    return [input_.name for input_ in program.inputs]


def ops(program: Program) -> set[str]:
    return {value.op for value in program.body if not value.is_leaf}


def decay(*, emit: str = "after", start: str = "zero") -> ProgramBuilder:
    """``x' = tanh(a x) + u`` with a head vector ``a``."""
    build = ProgramBuilder(3)
    u, a = build.input("u", VECTOR), build.input("a", VECTOR, "head")
    state = build.carry("state", VECTOR, start)
    after = b.add(b.function("tanh", b.mul(a, state)), u)
    build.next("state", after)
    build.emit("y", {"after": after, "before": state, "function": b.function("sin", after)}[emit])
    return build


def test_signature() -> None:
    derived = adjoint(PD)
    assert derived.forward == PD
    assert derived.saved == {"saved_state": "states"}
    assert derived.summed == ()
    program = derived.program
    assert program.direction == "backward"
    assert names(program) == [
        "diagonal",
        "dictionary",
        "grad_final_state",
        "grad_states",
        "initial_state",
        "saved_state",
        "selection",
    ]
    assert {o.name: o.storage for o in program.token_outputs} == {
        "grad_diagonal": "c128",
        "grad_drive": "cb32",
    }
    assert [f.name for f in program.final_outputs] == ["grad_initial_state"]
    # A saved state is read as it was stored, and so is its cotangent.
    assert program.input("saved_state").storage == "cb32"
    assert program.input("saved_state").role == "lagged"
    assert program.input("saved_state").boundary == "initial_state"
    assert program.input("grad_states").storage == "cb32"
    assert program.carry("adjoint_state").start == "%grad_final_state"


def test_without_an_initial_state_the_boundary_is_zero() -> None:
    program = adjoint(pd_scan(PdScan(4, 3))).program
    assert program.input("saved_state").boundary is None
    assert program.carry("adjoint_state").start == "zero"


def test_the_adjoint_of_a_scatter_is_a_gather_and_of_a_gather_a_scatter() -> None:
    assert "scatter_add" not in ops(adjoint(PD).program)
    row = pd_scan(replace(SPEC, orientation="row"))
    assert "scatter_add" in ops(adjoint(row).program)


def test_nothing_is_saved_for_a_gradient_that_needs_no_state() -> None:
    derived = adjoint(PD, wrt=["drive"])
    assert derived.saved == {}
    assert [o.name for o in derived.program.token_outputs] == ["grad_drive"]
    assert "saved_state" not in names(derived.program)
    assert "initial_state" not in names(derived.program)


def gated(*, moved: bool) -> Program:
    """A read-out of the state after the token, that is scattered or not."""
    build = ProgramBuilder(3)
    u, c = build.input("u", VECTOR), build.input("c", VECTOR)
    state = build.carry("state", VECTOR)
    after = b.scatter_add(state, build.input("p", Map())) if moved else state
    build.next("state", b.add(after, u))
    build.emit("y", b.mul(c, b.add(after, u)))
    return build.build()


def test_a_moved_state_is_read_and_another_computed_again() -> None:
    derived = adjoint(gated(moved=True))
    assert derived.saved == {"next_state": "saved_state"}
    assert derived.program.input("next_state").role == "token"
    assert "scatter_add" not in ops(derived.program)
    assert adjoint(gated(moved=False)).saved == {"saved_state": "saved_state"}
    for moved in (True, False):
        program = gated(moved=moved)
        arrays = arrays_for(program, Sizes(2, 4, 2), 1)
        assert_adjoint_agrees(program, arrays, Sizes(2, 4, 2), 1)


def test_a_cotangent_left_out_is_not_read() -> None:
    derived = adjoint(PD, cotangents=["final_state"])
    assert "grad_states" not in names(derived.program)
    assert "grad_final_state" in names(derived.program)
    derived = adjoint(PD, cotangents=["states"])
    assert "grad_final_state" not in names(derived.program)
    assert derived.program.carry("adjoint_state").start == "zero"


def test_gradients_of_head_inputs_are_summed_by_the_caller() -> None:
    derived = adjoint(decay().build())
    assert derived.summed == ("grad_a",)
    assert [s.name for s in derived.program.sum_outputs] == ["grad_a"]
    assert [c.name for c in derived.program.carries] == ["adjoint_state"]


def test_gradients_of_sums_reach_every_token() -> None:
    build = decay()
    x = build.input("x", VECTOR)
    build.sum("total", b.function("sin", x))
    program = build.build()
    assert adjoint(program).program.input("grad_total").role == "row"
    assert_adjoint_agrees(program, arrays_for(program, Sizes(2, 3, 2), 1), Sizes(2, 3, 2), 1)


def test_sums_by_an_index_have_no_adjoint() -> None:
    build = decay()
    build.sum("total", build.input("x", VECTOR), build.input("k", Index(2)))
    program = build.build()
    with pytest.raises(PassError, match="no cotangent for %total"):
        adjoint(program, cotangents=["total"])
    assert adjoint(program).program == adjoint(program, cotangents=["y"]).program


def test_gradient_of_an_input_nothing_reads_is_zero() -> None:
    build = decay()
    build.input("idle", VECTOR)
    build.input("idle_row", VECTOR, "row")
    program = build.build()
    arrays = arrays_for(program, Sizes(2, 3, 2), 1)
    assert_adjoint_agrees(program, arrays, Sizes(2, 3, 2), 1)
    assert_adjoint_agrees(program, arrays, Sizes(2, 3, 2), 1, ["idle", "idle_row"])


def test_save_carries_uses_an_output_that_holds_the_carry() -> None:
    program = decay(emit="after").build()
    assert save_carries(program) == (program, {"state": "y"})


@pytest.mark.parametrize("emit", ["before", "function"])
def test_save_carries_adds_the_outputs_that_are_missing(emit: str) -> None:
    program = decay(emit=emit).build()
    saving, outputs = save_carries(program)
    assert outputs == {"state": "saved_state"}
    assert [o.name for o in saving.token_outputs] == ["saved_state", "y"]
    derived = adjoint(program)
    assert derived.forward == saving
    arrays = arrays_for(program, Sizes(2, 3, 2), 1)
    results = interpret(saving, arrays)
    want = interpret(program, arrays)
    assert_close({"y": results["y"]}, want)
    if emit == "before":
        np.testing.assert_array_equal(results["saved_state"][:, :-1], want["y"][:, 1:])


def test_what_the_backward_does_not_need_is_not_saved() -> None:
    build = ProgramBuilder(3)
    u = build.input("u", VECTOR)
    total = build.carry("total", VECTOR)
    build.next("total", b.add(total, u))
    build.emit("y", b.mul(total, 2.0))
    program = build.build()
    derived = adjoint(program)
    assert derived.forward == program
    assert derived.saved == {}


def test_the_adjoint_of_the_linear_part_of_an_adjoint_is_the_scan() -> None:
    first = adjoint(PD, wrt=["drive", "initial_state"]).program
    again = adjoint(
        first,
        wrt=["grad_states", "grad_final_state"],
        cotangents=["grad_drive", "grad_initial_state"],
    ).program
    shape = Sizes(2, 5, 3)
    arrays = arrays_for(PD, shape, 4)
    renamed = {f"grad_grad_{n}": arrays[n] for n in ("drive", "initial_state")}
    got = interpret(again, arrays | renamed)
    want = interpret(PD, arrays)
    got = {name.removeprefix("grad_grad_"): array for name, array in got.items()}
    assert_close(got, want, only=["states", "final_state"])


def test_an_adjoint_that_would_read_a_lagged_input_is_refused() -> None:
    """Run the other way, it would read the step on the wrong side."""
    first = adjoint(PD).program
    with pytest.raises(
        PassError, match="%saved_state is lagged, and its adjoint would read it too"
    ):
        adjoint(first, wrt=["grad_states"], cotangents=["grad_diagonal"])


def test_names_must_be_of_numbers() -> None:
    with pytest.raises(PassError, match="no gradient for %selection: differentiable inputs are"):
        adjoint(PD, wrt=["drive", "selection"])
    with pytest.raises(PassError, match=r"no gradient for %nothing: .*diagonal, drive, initial_"):
        adjoint(PD, wrt=["nothing"])
    with pytest.raises(PassError, match=r"no cotangent for %y: outputs are \['final_state', 's"):
        adjoint(PD, cotangents=["states", "y"])
    with pytest.raises(PassError, match="no gradient for %saved_state"):
        adjoint(adjoint(PD).program, wrt=["saved_state"])


def test_something_must_be_wanted() -> None:
    with pytest.raises(PassError, match="no gradient is wanted: name a differentiable input"):
        adjoint(PD, wrt=[])


def test_carried_maps_are_refused() -> None:
    build = decay()
    p = build.input("p", Map())
    so_far = build.carry("so_far", Map(), "identity")
    build.next("so_far", b.compose(p, so_far))
    with pytest.raises(PassError, match="carry %so_far is a map, and what depends on it has no"):
        adjoint(build.build())


def test_a_start_from_one_is_refused() -> None:
    with pytest.raises(PassError, match="carry %state starts from one, not from zero"):
        adjoint(decay(start="one").build())


def test_two_final_outputs_of_one_carry_are_refused() -> None:
    """One start cannot take the cotangents of both."""
    twice = replace(PD, final_outputs=(*PD.final_outputs, FinalOutput("last", "state", "c128")))
    with pytest.raises(PassError, match="%final_state and %last both end carry %state"):
        adjoint(twice)
    shape = Sizes(2, 3, 2)
    arrays = arrays_for(PD, shape, 1)
    assert_adjoint_agrees(twice, arrays, shape, 1, ["drive"], ["states", "last"])


def test_a_carry_named_like_a_derived_one_is_refused() -> None:
    carry, build = "adjoint_x", ProgramBuilder(2)
    gain = build.input("gain", Scalar("f64"), "head")
    x = build.carry("x", Scalar("f64"))
    other = build.carry(carry, Scalar("f64"))
    token = build.input("u", Scalar("f64"))
    build.next("x", b.add(b.mul(x, gain), b.mul(other, token)))
    build.next(carry, b.add(b.mul(other, gain), token))
    build.final("last", "x")
    with pytest.raises(PassError, match=f"carry %{carry} has the name of a carry of the adjoint"):
        adjoint(build.build())


def test_an_output_named_like_a_saved_one_is_refused() -> None:
    build = decay(emit="function")
    build.emit("saved_state", build.input("v", VECTOR))
    with pytest.raises(VerificationError, match="%saved_state is declared twice"):
        adjoint(build.build())
