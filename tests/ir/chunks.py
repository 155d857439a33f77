"""A chunked scan put together from a summary's programs, by the interpreter."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from pdssm_compiler.ir import Program, interpret
from pdssm_compiler.ir.passes import Summary
from pdssm_compiler.ir.passes.adjoint import save_carries
from tests.ir.agreement import assert_close

Arrays = dict[str, np.ndarray]


def part_of(program: Program, arrays: Mapping[str, np.ndarray], begin: int, end: int) -> Arrays:
    """What the program reads of the tokens from ``begin`` to ``end``."""
    return {
        i.name: arrays[i.name][:, begin:end] if i.role == "token" else arrays[i.name]
        for i in program.inputs
        if i.inverse_of is None
    }


def fold(summary: Summary, arrays: Mapping[str, np.ndarray], begin: int, end: int) -> Arrays:
    """The summary of a chunk."""
    return interpret(summary.fold, part_of(summary.fold, arrays, begin, end))


def as_tokens(summaries: Sequence[Mapping[str, np.ndarray]]) -> Arrays:
    """Summaries of neighbouring chunks, in the order of time, as token inputs."""
    return {name: np.stack([s[name] for s in summaries], axis=1) for name in summaries[0]}


def combine(summary: Summary, *summaries: Mapping[str, np.ndarray]) -> Arrays:
    """Their summary."""
    return interpret(summary.combine, as_tokens(summaries))


def assert_chunks_give_the_scan(
    program: Program, summary: Summary, arrays: Mapping[str, np.ndarray], cuts: Sequence[int]
) -> None:
    """Folding between the cuts, then applying from chunk to chunk, gives the scan's states.

    Args:
        program: the scan, with one carry.
        summary: of the program.
        arrays: the program's inputs.
        cuts: chunk boundaries in ascending order, the first 0 and the last ``T``.
    """
    carry = program.carries[0]
    saving, saved = save_carries(program)
    states = interpret(saving, arrays)[saved[carry.name]]  # [B, T, H, N]
    batch, _, heads, n = states.shape
    first = np.zeros((batch, heads, n), dtype=states.dtype)
    if carry.start_input is not None:
        first = arrays[carry.start_input]
    folded = [fold(summary, arrays, begin, end) for begin, end in pairwise(cuts)]
    got = interpret(summary.apply, as_tokens(folded) | {"initial": first})
    # A forward scan leaves a chunk at its end, a backward one at its beginning.
    forward = program.direction == "forward"
    ends = [cut - 1 for cut in cuts[1:]] if forward else list(cuts[:-1])
    want = {"states": states[:, ends], "final": states[:, -1 if forward else 0]}
    assert_close(got, want)
