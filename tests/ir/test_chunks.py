"""``in_chunks``: its three programs, one after the other, write what the program writes."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdssm_compiler.ir import Program, interpret
from pdssm_compiler.ir.errors import PassError
from pdssm_compiler.ir.passes import InChunks, adjoint, in_chunks, specialise
from pdssm_compiler.ir.programs import PdScan, pd_scan
from tests.ir.agreement import assert_close
from tests.ir.chunks import Arrays, as_tokens, part_of
from tests.ir.pd_reference import all_specs, spec_id
from tests.strategies import Sizes, affine_programs, arrays_for, seeds

LENGTH = 6
SHAPE = Sizes(2, LENGTH, 2)


def run_in_chunks(program: Program, parts: InChunks, arrays: Arrays, cuts: list[int]) -> Arrays:
    """What the three programs write, put together."""
    spans = list(pairwise(cuts))
    folds = [interpret(parts.fold, part_of(parts.fold, arrays, *span)) for span in spans]
    start = {i.name: arrays[i.name] for i in parts.carry.inputs if i.role == "row"}
    incoming = interpret(parts.carry, as_tokens(folds) | start)[parts.incoming]
    resumed = []
    for chunk, span in enumerate(spans):
        reads = arrays | {parts.incoming: incoming[:, chunk]}
        resumed.append(interpret(parts.resume, part_of(parts.resume, reads, *span)))
    last = resumed[-1 if program.direction == "forward" else 0]
    written = {f.name: last[f.name] for f in program.final_outputs}
    for name, partial in parts.partials.items():
        written[name] = sum(chunk[partial] for chunk in resumed)
    for output in program.token_outputs:
        written[output.name] = np.concatenate([chunk[output.name] for chunk in resumed], axis=1)
    return written


@given(affine_programs(), seeds(), st.sets(st.integers(1, LENGTH - 1)))
def test_random_programs(program: Program, seed: int, inner: set[int]) -> None:
    arrays = arrays_for(program, SHAPE, seed)
    got = run_in_chunks(program, in_chunks(program), arrays, sorted({0, LENGTH} | inner))
    assert_close(got, interpret(program, arrays))


@pytest.mark.parametrize("spec", all_specs(), ids=spec_id)
def test_every_pd_scan(spec: PdScan) -> None:
    for program in (pd_scan(spec), specialise(pd_scan(spec))):
        arrays = arrays_for(program, SHAPE, seed=2)
        got = run_in_chunks(program, in_chunks(program), arrays, [0, 1, 4, LENGTH])
        assert_close(got, interpret(program, arrays))


def assert_neighbours_join(
    program: Program, parts: InChunks, seed: int, stretch: tuple[int, int]
) -> None:
    """A stretch of neighbouring chunks, joined by ``combine``, leads to the same carries before it
    and before all other chunks.
    """
    arrays = arrays_for(program, SHAPE, seed)
    chunks = [(0, 1), (1, 3), (3, 4), (4, LENGTH)]
    folds = [interpret(parts.fold, part_of(parts.fold, arrays, *span)) for span in chunks]
    first, last = stretch
    joined = interpret(parts.combine, as_tokens(folds[first:last]))
    of_carry = {final.carry: joined[final.name] for final in parts.combine.final_outputs}
    whole = {final.name: of_carry[final.carry] for final in parts.fold.final_outputs}
    start = {i.name: arrays[i.name] for i in parts.carry.inputs if i.role == "row"}

    def incoming(summaries: list[Arrays]) -> np.ndarray:
        return interpret(parts.carry, as_tokens(summaries) | start)[parts.incoming]

    # Of the stretch, the chunk that is run first.
    entered = first if program.direction == "forward" else last - 1
    left = [at for at in range(len(chunks)) if at == entered or not first <= at < last]
    got = incoming([*folds[:first], whole, *folds[last:]])
    assert_close({"incoming": got}, {"incoming": incoming(folds)[:, left]})


STRETCHES = [(0, 1), (0, 2), (1, 3), (2, 4), (1, 4), (0, 4)]


@given(affine_programs(), seeds(), st.sampled_from(STRETCHES))
def test_neighbours_of_random_programs_join(
    program: Program, seed: int, stretch: tuple[int, int]
) -> None:
    assert_neighbours_join(program, in_chunks(program), seed, stretch)


@pytest.mark.parametrize("spec", all_specs(), ids=spec_id)
def test_neighbours_of_every_pd_scan_join(spec: PdScan) -> None:
    for program in (pd_scan(spec), adjoint(pd_scan(spec)).program):
        for stretch in STRETCHES:
            assert_neighbours_join(program, in_chunks(program), 3, stretch)


def test_names_of_what_passes_between() -> None:
    parts = in_chunks(pd_scan(PdScan(4, 3, initial_state=True)))
    assert parts.incoming == "incoming_state"
    assert parts.summaries == ("chunk_diagonal", "chunk_drive", "chunk_map")
    assert [i.name for i in parts.carry.inputs] == [*parts.summaries, "initial_state"]
    assert parts.resume.carries[0].start == "%incoming_state"


def test_a_program_without_a_summary() -> None:
    with pytest.raises(PassError, match="exactly one carry"):
        in_chunks(in_chunks(pd_scan(PdScan(4, 3))).fold)
