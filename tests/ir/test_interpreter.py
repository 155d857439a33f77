"""The interpreter against a second implementation, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from pdssm_compiler.ir import IRError, Program, ProgramBuilder, interpret
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.program import Input, TokenOutput
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.ir.types import Index, Map, Scalar, Table, Vector
from tests.ir import torch_oracle
from tests.ir.agreement import assert_close
from tests.strategies import Sizes, arrays_for, programs, seeds, sizes

PD = pd_scan(PdScan(3, 2, "c128", initial_state=True, final_state=True))


@given(programs(starts=("zero", "one", "input")), sizes(), seeds())
def test_random_programs_agree_with_torch(program: Program, shape: Sizes, seed: int) -> None:
    arrays = arrays_for(program, shape, seed)
    got = interpret(program, arrays)
    assert_close(got, torch_oracle.outputs(program, arrays, shape))


def running_sum(direction: str, start: str = "zero") -> Program:
    build = ProgramBuilder(2, direction)
    x = build.input("x", Vector("f64"))
    total = build.carry("total", Vector("f64"), start)
    build.next("total", b.add(total, x))
    build.emit("before", total)
    build.emit("after", b.add(total, x))
    build.final("last", "total")
    return build.build()


def test_direction_start_and_order_of_outputs() -> None:
    x = np.arange(6.0).reshape(1, 3, 1, 2)
    forward = interpret(running_sum("forward", "one"), {"x": x})
    np.testing.assert_array_equal(forward["before"], 1 + x.cumsum(1) - x)
    np.testing.assert_array_equal(forward["after"], 1 + x.cumsum(1))
    np.testing.assert_array_equal(forward["last"], 1 + x.sum(1))
    backward = interpret(running_sum("backward"), {"x": x})
    np.testing.assert_array_equal(backward["after"], x[:, ::-1].cumsum(1)[:, ::-1])
    np.testing.assert_array_equal(backward["before"], backward["after"] - x)
    np.testing.assert_array_equal(backward["last"], x.sum(1))


@pytest.mark.parametrize("length", [0, 4])
def test_sums_over_tokens(length: int) -> None:
    """Of every token, or of those with an index; of what is one for all tokens as well."""
    build = ProgramBuilder(2)
    x, gain = build.input("x", Vector("f64")), build.input("gain", Scalar("f64"), "head")
    kind = build.input("kind", Index(3))
    build.sum("total", x)
    build.sum("by_kind", x, kind)
    build.sum("gains", gain, kind)
    program, shape = build.build(), Sizes(2, length, 3)
    arrays = arrays_for(program, shape, 1)
    got = interpret(program, arrays)
    here = arrays["kind"][..., None] == np.arange(3)  # [B, T, H, K]
    want = {
        "total": arrays["x"].sum(1),
        "by_kind": np.einsum("bthk,bthn->bhkn", here.astype(float), arrays["x"]),
        "gains": here.sum(1) * arrays["gain"][:, None],
    }
    assert_close(got, want)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("boundary", [None, "edge"])
def test_lagged_reads_the_following_step(direction: str, boundary: str | None) -> None:
    lagged = Input("s", Vector("f64"), "lagged", boundary=boundary)
    edge = (Input("edge", Vector("f64"), "row"),) if boundary else ()
    program = Program(
        2,
        (lagged, *edge),
        (),
        token_outputs=(TokenOutput("y", lagged.value),),
        direction=direction,
    )
    s, e = np.arange(12.0).reshape(2, 3, 1, 2), np.full((2, 1, 2), 50.0)
    got = interpret(program, {"s": s, "edge": e})["y"]
    last = (e if boundary else np.zeros_like(e))[:, None]
    # A forward program runs into the later token, a backward one into the earlier.
    parts = [s[:, 1:], last] if direction == "forward" else [last, s[:, :-1]]
    np.testing.assert_array_equal(got, np.concatenate(parts, axis=1))


def test_roles_say_where_an_input_varies() -> None:
    build = ProgramBuilder(2)
    parts = [build.input(role, Scalar("f64"), role) for role in ("token", "row", "head")]
    build.emit("y", b.add(b.add(parts[0], parts[1]), parts[2]))
    token = np.arange(12.0).reshape(2, 3, 2)
    row, head = 100 * np.arange(4.0).reshape(2, 2), 1000 * np.arange(2.0)
    got = interpret(build.build(), {"token": token, "row": row, "head": head})["y"]
    np.testing.assert_array_equal(got, token + row[:, None] + head)


def test_derived_inputs_are_computed() -> None:
    table = Input("table", Table(2, "permutation"), "head")
    inverse = Input("inverse", table.type, "head", inverse_of="table")
    index = Input("index", Index(2))
    y = b.compose(b.select(table.value, index.value), b.select(inverse.value, index.value))
    x = b.select(inverse.value, index.value)
    outputs = (TokenOutput("identity", y), TokenOutput("inverse", x))
    program = Program(4, (table, inverse, index), (), token_outputs=outputs)
    arrays = arrays_for(program, Sizes(2, 5, 3), seed=3)
    assert sorted(arrays) == ["index", "table"]
    got = interpret(program, arrays)
    np.testing.assert_array_equal(got["identity"], np.broadcast_to(np.arange(4), (2, 5, 3, 4)))
    assert (got["inverse"] != np.arange(4)).any()


def test_carried_maps_start_from_the_identity() -> None:
    build = ProgramBuilder(4)
    p = build.input("p", Map())
    so_far = build.carry("so_far", Map(), "identity")
    build.next("so_far", b.compose(p, so_far))
    build.final("map", "so_far")
    program = build.build()
    p = np.random.default_rng(0).integers(0, 4, (1, 3, 1, 4))
    first, second, third = p[0, :, 0]
    np.testing.assert_array_equal(interpret(program, {"p": p})["map"][0, 0], third[second[first]])
    np.testing.assert_array_equal(interpret(program, {"p": p[:, :0]})["map"][0, 0], np.arange(4))


def test_without_tokens_the_last_state_is_the_first() -> None:
    arrays = arrays_for(PD, Sizes(2, 0, 3), seed=5)
    got = interpret(PD, arrays)
    assert got["states"].shape == (2, 0, 3, 3)
    assert got["states"].dtype == np.complex128
    np.testing.assert_array_equal(got["final_state"], arrays["initial_state"])


def test_results_are_the_callers() -> None:
    arrays = arrays_for(PD, Sizes(1, 0, 1), seed=5)
    before = arrays["initial_state"].copy()
    interpret(PD, arrays)["final_state"][...] = 7.0
    np.testing.assert_array_equal(arrays["initial_state"], before)


def _with(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    return arrays_for(PD, Sizes(2, 4, 2), seed=1) | {name: array}


REFUSED = {
    "axes": ("drive", np.zeros((2, 4, 3)), r"%drive has the shape \(2, 4, 3\)"),
    "state size": ("drive", np.zeros((2, 4, 2, 5)), r"%drive has the shape \(2, 4, 2, 5\)"),
    "batch": ("drive", np.zeros((1, 4, 2, 3)), r"%drive has the shape \(1, 4, 2, 3\)"),
    "length": ("drive", np.zeros((2, 5, 2, 3)), r"%drive has the shape \(2, 5, 2, 3\)"),
    "row": ("initial_state", np.zeros((1, 2, 3)), r"%initial_state has the shape \(1, 2, 3\)"),
    "head": ("dictionary", np.zeros((1, 2, 3), int), r"%dictionary has the shape \(1, 2, 3\)"),
    "index": ("selection", np.full((2, 4, 2), 2), r"%selection has an index outside \[0, 2\)"),
    "negative": ("selection", np.full((2, 4, 2), -1), r"%selection has an index outside"),
    "map": ("dictionary", np.full((2, 2, 3), 3), r"%dictionary has an index outside \[0, 3\)"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_inputs_are_checked(case: tuple[str, np.ndarray, str]) -> None:
    name, array, message = case
    with pytest.raises(IRError, match=message):
        interpret(PD, _with(name, array))


def test_missing_input() -> None:
    arrays = arrays_for(PD, Sizes(2, 4, 2), seed=1, exclude=("drive",))
    with pytest.raises(IRError, match="no array for %drive"):
        interpret(PD, arrays)


def test_failing_check_names_the_promise() -> None:
    build = ProgramBuilder(3)
    p = build.input("p", Map())
    build.check("p", "identity", p)
    program = build.build()
    identity = np.broadcast_to(np.arange(3), (1, 4, 2, 3)).copy()
    assert interpret(program, {"p": identity}) == {}
    identity[0, 3, 1, 0] = 1
    with pytest.raises(IRError, match="%p is not the identity it was promised"):
        interpret(program, {"p": identity})


def test_storage_and_precision_do_not_matter_to_the_oracle() -> None:
    low = pd_scan(replace(PdScan(3, 2), initial_state=True, final_state=True))
    arrays = arrays_for(PD, Sizes(2, 4, 2), seed=1)
    want = interpret(PD, arrays)
    for name, got in interpret(low, arrays).items():
        np.testing.assert_array_equal(got, want[name])
