"""``summarise``: chunks folded, combined and applied in any grouping are the scan."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdssm_compiler.ir import Program, interpret
from pdssm_compiler.ir.passes import Summary, adjoint, specialise, summarise
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.ir.types import Map, Vector
from tests.ir.agreement import assert_close, cotangents_for
from tests.ir.chunks import assert_chunks_give_the_scan, combine, fold
from tests.ir.pd_reference import all_specs, spec_id
from tests.strategies import Sizes, affine_programs, arrays_for, pd_specs, seeds

LENGTH = 6
SHAPE = Sizes(2, LENGTH, 2)
CUTS = (0, 1, 4, LENGTH)
SPECS = [spec for spec in all_specs() if spec.initial_state]
Arrays = dict[str, np.ndarray]


def cuts() -> st.SearchStrategy[list[int]]:
    """Chunk boundaries of a sequence of LENGTH tokens, every chunk of at least one."""
    inner = st.sets(st.integers(1, LENGTH - 1))
    return inner.map(lambda found: sorted({0, LENGTH} | found))


def linear_adjoint(program: Program) -> tuple[Program, Arrays]:
    """The backward program of a PD scan for the drive alone, and inputs for it."""
    wrt = ["drive", "initial_state"] if program.carries[0].start_input else ["drive"]
    backward = adjoint(program, wrt).program
    cotangents = cotangents_for(program, SHAPE, seed=5)
    arrays = arrays_for(program, SHAPE, seed=5)
    return backward, arrays | {f"grad_{name}": array for name, array in cotangents.items()}


@given(affine_programs(), seeds(), cuts())
def test_random_chunks_give_the_scan(program: Program, seed: int, bounds: list[int]) -> None:
    arrays = arrays_for(program, SHAPE, seed)
    assert_chunks_give_the_scan(program, summarise(program), arrays, bounds)


@given(affine_programs(starts=["input"]), seeds(), cuts())
def test_random_adjoints_in_chunks(program: Program, seed: int, bounds: list[int]) -> None:
    """The read-out is not affine, so its cotangent, which needs saved states, is left out."""
    derived = adjoint(program, wrt=["start"], cotangents=["last", "states"])
    assert derived.saved == {}
    arrays = arrays_for(derived.program, SHAPE, seed)
    summary = summarise(derived.program)
    assert_chunks_give_the_scan(derived.program, summary, arrays, bounds)


@pytest.mark.parametrize("spec", SPECS, ids=spec_id)
def test_chunks_of_every_pd_scan(spec: PdScan) -> None:
    program = pd_scan(spec)
    arrays = arrays_for(program, SHAPE, seed=1)
    assert_chunks_give_the_scan(program, summarise(program), arrays, CUTS)


@pytest.mark.parametrize("spec", SPECS, ids=spec_id)
def test_chunks_of_every_pd_adjoint(spec: PdScan) -> None:
    backward, arrays = linear_adjoint(pd_scan(spec))
    assert_chunks_give_the_scan(backward, summarise(backward), arrays, CUTS)


@given(pd_specs(map_classes=("permutation", "identity")))
def test_chunks_of_specialised_scans(spec: PdScan) -> None:
    program = specialise(pd_scan(spec))
    arrays = arrays_for(program, SHAPE, seed=1)
    assert_chunks_give_the_scan(program, summarise(program), arrays, CUTS)


FORMS = [
    ("dictionary", "column", "column", "row"),
    ("dictionary", "row", "row", "column"),
    ("token", "column", "column", "row"),
    ("token", "row", "row", "column"),
    ("none", "column", "diagonal", "diagonal"),
]


@pytest.mark.parametrize(("source", "orientation", "form", "adjoint_form"), FORMS)
def test_form(source: str, orientation: str, form: str, adjoint_form: str) -> None:
    size = 3 if source == "dictionary" else None
    program = pd_scan(PdScan(4, size, map_source=source, orientation=orientation))
    summary = summarise(program)
    assert summary.form == form
    assert summarise(adjoint(program, ["drive"]).program).form == adjoint_form
    parts = {"diagonal", "drive"} | ({"map"} if form != "diagonal" else set())
    assert {f.name for f in summary.fold.final_outputs} == parts
    assert {f.name for f in summary.combine.final_outputs} == parts
    assert {i.name for i in summary.combine.inputs} == parts
    assert {i.name for i in summary.apply.inputs} == parts | {"initial"}
    assert [o.name for o in summary.apply.token_outputs] == ["states"]
    assert [f.name for f in summary.apply.final_outputs] == ["final"]


def summaries_of(spec: PdScan, *, backward: bool) -> tuple[Summary, Program, Arrays]:
    program = pd_scan(spec)
    arrays = arrays_for(program, SHAPE, seed=2)
    if backward:
        program, arrays = linear_adjoint(program)
    return summarise(program), program, arrays


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("spec", SPECS, ids=spec_id)
def test_combine_is_associative_and_folds_concatenations(spec: PdScan, backward: bool) -> None:
    summary, _, arrays = summaries_of(spec, backward=backward)
    first, second, third = (fold(summary, arrays, begin, end) for begin, end in pairwise(CUTS))
    whole = fold(summary, arrays, 0, LENGTH)
    left = combine(summary, combine(summary, first, second), third)
    right = combine(summary, first, combine(summary, second, third))
    for got in (left, right, combine(summary, first, second, third)):
        assert_close(got, whole)


@given(affine_programs(), seeds())
def test_combine_of_random_summaries_is_associative(program: Program, seed: int) -> None:
    summary = summarise(program)
    a, b, c = (
        {name: array[:, 0] for name, array in arrays_for(summary.combine, SHAPE, seed + i).items()}
        for i in range(3)
    )
    left = combine(summary, combine(summary, a, b), c)
    assert_close(left, combine(summary, a, combine(summary, b, c)))


@pytest.mark.parametrize("orientation", ["column", "row"])
def test_combine_does_not_commute(orientation: str) -> None:
    spec = PdScan(4, 3, "c128", orientation=orientation)
    summary, _, arrays = summaries_of(spec, backward=False)
    first, second = fold(summary, arrays, 0, 3), fold(summary, arrays, 3, 6)
    ahead, behind = combine(summary, first, second), combine(summary, second, first)
    assert (ahead["map"] != behind["map"]).any()


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("spec", SPECS, ids=spec_id)
def test_fold_of_no_tokens_is_neutral(spec: PdScan, backward: bool) -> None:
    summary, _, arrays = summaries_of(spec, backward=backward)
    empty, some = fold(summary, arrays, 2, 2), fold(summary, arrays, 0, 4)
    np.testing.assert_array_equal(empty["diagonal"], np.ones_like(empty["diagonal"]))
    np.testing.assert_array_equal(empty["drive"], np.zeros_like(empty["drive"]))
    assert_close(combine(summary, empty, some), some)
    assert_close(combine(summary, some, empty), some)


def test_combine_is_the_rule_of_the_paper() -> None:
    """``p'' = p'[p]``, ``d'' = d'[p] d``, ``β'' = P'(d' β) + β'`` (arXiv 2509.22284)."""
    summary, _, _ = summaries_of(PdScan(4, 3, "c128"), backward=False)
    arrays = arrays_for(summary.combine, Sizes(1, 2, 1), seed=3)
    p, d, beta = (arrays[name][0, 0, 0] for name in ("map", "diagonal", "drive"))
    p2, d2, beta2 = (arrays[name][0, 1, 0] for name in ("map", "diagonal", "drive"))
    got = {name: array[0, 0] for name, array in interpret(summary.combine, arrays).items()}
    pushed = beta2.copy()
    np.add.at(pushed, p2, d2 * beta)
    assert_close(got, {"map": p2[p], "diagonal": d2[p] * d, "drive": pushed})


def test_combine_of_a_backward_is_the_rule_of_the_adjoint() -> None:
    """``p'' = p[p']``, ``d'' = d' d[p']``, ``β'' = β' + d' β[p']``, the later token first."""
    summary, _, _ = summaries_of(PdScan(4, 3, "c128"), backward=True)
    arrays = arrays_for(summary.combine, Sizes(1, 2, 1), seed=3)
    # Run backward: token 1 is applied first.
    p, d, beta = (arrays[name][0, 1, 0] for name in ("map", "diagonal", "drive"))
    p2, d2, beta2 = (arrays[name][0, 0, 0] for name in ("map", "diagonal", "drive"))
    got = {name: array[0, 0] for name, array in interpret(summary.combine, arrays).items()}
    assert_close(got, {"map": p[p2], "diagonal": d2 * d[p2], "drive": beta2 + d2 * beta[p2]})


@pytest.mark.parametrize(
    ("map_class", "carried"),
    [("general", "general"), ("permutation", "permutation"), ("identity", "permutation")],
)
def test_a_summary_keeps_the_class_of_its_maps(map_class: str, carried: str) -> None:
    """A carry that starts from the identity is no more than a permutation."""
    summary = summarise(pd_scan(PdScan(4, 3, map_class=map_class)))
    assert summary.fold.carry("summary_map").type == Map(carried)
    assert summary.apply.input("map").type == Map(map_class)


def test_the_carry_decides_the_types() -> None:
    summary = summarise(pd_scan(PdScan(4, map_source="none", element="c128")))
    assert summary.fold.carry("summary_diagonal").type == Vector("c128")
    assert summary.apply.input("initial").type == Vector("c128")
    assert summary.apply.input("initial").role == "row"
