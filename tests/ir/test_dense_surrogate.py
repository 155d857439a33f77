"""``adjoint(surrogate="dense")``: the factors of the gradients of all entries."""

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdssm_compiler.ir import Program, ProgramBuilder, interpret
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.errors import PassError
from pdssm_compiler.ir.passes import Adjoint, Factors, adjoint, specialise
from pdssm_compiler.ir.programs import PdScan, map_scores, pd_scan
from pdssm_compiler.ir.types import Index, Map, Table, Vector, is_number
from tests.ir.agreement import assert_close, cotangents_for, run_adjoint
from tests.ir.one_hot_oracle import gradients
from tests.strategies import Sizes, arrays_for, pd_specs, seeds, sizes

CHOICES = ("dictionary", "selection")
NUMBERS = ("diagonal", "drive", "initial_state")
SPEC = PdScan(5, 3, "c128", initial_state=True, final_state=True)
VECTOR = Vector("f64")


def completed(
    derived: Adjoint, found: dict[str, np.ndarray], arrays: dict[str, np.ndarray], n: int
) -> dict[str, np.ndarray]:
    """The gradients, those of choices made from the factors as :class:`Factors` says."""
    wanted = {n for n in found if not n.startswith(("left_", "right_"))}
    result = {name: found[name] for name in wanted}
    for use in derived.factors:
        left, right = (found[name.removeprefix("grad_")] for name in (use.left, use.right))
        of_p = np.einsum("bthi,bthj->bthij", left.conj(), right).real
        table, index = arrays[use.table], arrays[use.index]
        chosen = np.eye(table.shape[1])[index]
        matrices = np.swapaxes(np.eye(n)[table], -1, -2)  # 1 at [p[j], j]
        of_use = {
            use.table: np.einsum("bthk,bthij->hkij", chosen, of_p),
            use.index: np.einsum("bthij,hkij->bthk", of_p, matrices),
        }
        for name, grad in of_use.items():
            result[name] = result[name] + grad if name in result else grad
    return result


def assert_dense(program: Program, shape: Sizes, seed: int, wrt: Iterable[str]) -> None:
    """What the factors give is what autograd gives for one-hot matrices."""
    arrays, cotangents = arrays_for(program, shape, seed), cotangents_for(program, shape, seed)
    derived = adjoint(program, wrt, surrogate="dense")
    got = completed(derived, run_adjoint(derived, arrays, cotangents), arrays, program.state_size)
    want = gradients(program, arrays, shape, cotangents, list(wrt), dense=True)
    assert_close(got, want, wrt)


@given(pd_specs(elements=("c128", "f64")), sizes(max_length=7), seeds())
def test_random_pd_scans(spec: PdScan, shape: Sizes, seed: int) -> None:
    program = pd_scan(spec)
    names = {input_.name for input_ in program.inputs}
    wrt = [name for name in (*NUMBERS, *CHOICES) if name in names]
    assert_dense(program, shape, seed, sorted(wrt))


@pytest.mark.parametrize("orientation", ["column", "row"])
@pytest.mark.parametrize("wrt", [("dictionary",), ("selection",), ("selection", "diagonal")])
def test_only_some(wrt: tuple[str, ...], orientation: str) -> None:
    program = pd_scan(PdScan(5, 3, "c128", orientation=orientation, packed=True))
    derived = adjoint(program, wrt, surrogate="dense")
    assert {f.table for f in derived.factors} == {"dictionary"}
    shape = Sizes(2, 6, 3)
    arrays, cotangents = arrays_for(program, shape, 1), cotangents_for(program, shape, 1)
    got = completed(derived, run_adjoint(derived, arrays, cotangents), arrays, 5)
    want = gradients(program, arrays, shape, cotangents, sorted(wrt), dense=True)
    assert_close(got, want, wrt)


def test_a_vector_that_is_written_already_is_written_once() -> None:
    """In column orientation the left factor is the gradient of the drive."""
    derived = adjoint(pd_scan(SPEC), [*NUMBERS, *CHOICES], surrogate="dense")
    assert derived.factors == (Factors("dictionary", "selection", "grad_drive", "right_0"),)
    written = [output.name for output in derived.program.token_outputs]
    assert written == ["grad_diagonal", "grad_drive", "right_0"]
    assert derived.summed == ()
    # As it is computed, not as a drive of low precision is stored.
    low = pd_scan(PdScan(5, 3, payload_storage="cb32"))
    derived = adjoint(low, ["drive", *CHOICES], surrogate="dense")
    assert [(o.name, o.storage) for o in derived.program.token_outputs] == [
        ("grad_drive", "cb32"), ("left_0", "c64"), ("right_0", "c64"),
    ]  # fmt: skip


def test_tables_and_indices_that_are_used_more_than_once() -> None:
    """Each use has factors of its own, and the gradients are their sums."""
    build = ProgramBuilder(4)
    x = build.input("x", VECTOR)
    table, other = (build.input(name, Table(3), "head") for name in ("table", "other"))
    k, m = (build.input(name, Index(3)) for name in ("k", "m"))
    moved = b.gather(b.scatter_add(x, b.select(table, k)), b.select(table, m))
    build.emit(
        "y", b.add(b.scatter_add(moved, b.select(other, k)), b.gather(x, b.select(table, k)))
    )
    program = build.build()
    wrt = ("k", "m", "other", "table", "x")
    assert len(adjoint(program, wrt, surrogate="dense").factors) == 4
    assert_dense(program, Sizes(2, 5, 3), 2, wrt)


def test_what_no_gradient_reaches_has_no_factors() -> None:
    build = ProgramBuilder(4)
    x = build.input("x", VECTOR)
    map_ = b.select(build.input("table", Table(3), "head"), build.input("k", Index(3)))
    build.emit("y", b.mul(x, 2.0))
    build.emit("moved", b.gather(x, map_))
    program = build.build()
    derived = adjoint(program, ["table", "x"], ["y"], surrogate="dense")
    assert derived.factors == ()


def _refused(kind: str) -> tuple[Program, str]:
    build = ProgramBuilder(4)
    x, k = build.input("x", VECTOR), build.input("k", Index(2))
    match kind:
        case "keep":
            build.emit("y", b.keep(x, k))
            return build.build(), "k"
        case "compose":
            map_ = b.select(build.input("p", Table(2), "head"), k)
            build.emit("y", b.gather(x, b.compose(map_, map_)))
            return build.build(), "p"
        case "row index":
            row = build.input("row", Index(2), "row")
            build.emit("y", b.gather(x, b.select(build.input("p", Table(2), "head"), row)))
            return build.build(), "row"
    raise AssertionError(kind)


@pytest.mark.parametrize(
    ("kind", "through"),
    [("keep", "keep"), ("compose", "compose"), ("row index", "select")],
)
def test_what_is_refused(kind: str, through: str) -> None:
    program, name = _refused(kind)
    message = f"the dense surrogate does not reach %{name} through {through}: only maps a token, "
    with pytest.raises(PassError, match=message):
        adjoint(program, [name], surrogate="dense")
    # A choice that is not asked for is not in the way.
    assert adjoint(program, ["x"], surrogate="dense").factors == ()


def test_an_inverted_table_is_refused() -> None:
    program = specialise(pd_scan(PdScan(5, 3, "c128", map_class="permutation")))
    with pytest.raises(PassError, match=r"%dictionary is read by its inverse.* before special"):
        adjoint(program, ["dictionary"], surrogate="dense")


@given(
    st.integers(1, 6),
    st.integers(1, 10),
    st.sampled_from(("f64", "c128")),
    sizes(max_length=4),
    seeds(),
)
def test_map_scores(n: int, maps: int, element: str, shape: Sizes, seed: int) -> None:
    program = map_scores(n, maps, element)  # type: ignore[arg-type]
    assert program.carries == ()
    assert all(is_number(output.value.type) for output in program.token_outputs)
    arrays = arrays_for(program, shape, seed)
    got = interpret(program, arrays)
    of_p = np.einsum("bthi,bthj->bthij", arrays["left"].conj(), arrays["right"]).real
    for number in range(maps):
        map_ = arrays[f"map_{number}"]  # [H, N]
        matrix = np.swapaxes(np.eye(n)[map_], -1, -2)
        want = np.einsum("bthij,hij->bth", of_p, matrix)
        np.testing.assert_allclose(got[f"score_{number}"], want, rtol=0, atol=1e-12)


@given(sizes(max_length=4), seeds(), st.sampled_from(("gather", "scatter_add")))
def test_a_map_a_token_has_the_factors_of_its_move(sizes: Sizes, seed: int, move: str) -> None:
    build = ProgramBuilder(4)
    x, p = build.input("x", VECTOR), build.input("p", Map())
    build.emit("y", b.gather(x, p) if move == "gather" else b.scatter_add(x, p))
    derived = adjoint(build.build(), ["p", "x"], surrogate="dense")
    (use,) = derived.factors
    assert (use.table, use.index) == (None, "p")
    arrays = arrays_for(derived.program, sizes, seed)
    found = interpret(derived.program, arrays)
    matrix = np.eye(4)[:, arrays["p"]].transpose(1, 2, 3, 0, 4)  # [B, T, H, i, j]
    # L = Re <grad_y, P x>, or by the transposed, whose gradient in P is linear in P's entries.
    y = arrays["grad_y"], found[use.left], found[use.right]
    of_map = (y[1].conj()[..., :, None] * y[2][..., None, :]).real
    moved = matrix if move == "scatter_add" else matrix.swapaxes(-1, -2)
    value = (y[0].conj() * (moved @ arrays["x"][..., None])[..., 0]).real.sum()
    np.testing.assert_allclose((of_map * matrix).sum(), value, rtol=1e-10, atol=1e-10)
