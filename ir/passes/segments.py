"""in_segments: from one scan to scans of its segments, so that no state need be kept.

before → after: a program → ``forward``, the program on one segment: every carry starts from a row
input and ends in a final output, so that segments follow one another. :func:`segment_adjoint`
derives the segment's backward: ``replay``, which writes what the forward would have saved, and the
adjoint, whose carries pass from a segment to the one before it.
reason: a backward that runs the segments from the last to the first needs the carries at their
boundaries alone; what lies between is computed again, one segment at a time. A segment is a
stretch of neighbouring tokens, those run together.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from pdssm_compiler.ir.errors import PassError
from pdssm_compiler.ir.passes.adjoint import Adjoint, Surrogate, adjoint, cotangent_carry
from pdssm_compiler.ir.passes.rewrite import prune
from pdssm_compiler.ir.program import Carry, FinalOutput, Input, Program
from pdssm_compiler.ir.types import default_storage
from pdssm_compiler.ir.verify import verify


@dataclass(frozen=True)
class Boundary:
    """How a carry gets into a segment and out of it.

    Attributes:
        carry: its name.
        start: the row input of ``forward`` that it starts from.
        end: the final output of ``forward`` that it ends in.
        given: whether the program itself starts the carry from ``start``.
        returned: whether ``end`` is an output of the program itself.
    """

    carry: str
    start: str
    end: str
    given: bool
    returned: bool


@dataclass(frozen=True)
class InSegments:
    """A program on one segment.

    Attributes:
        forward: the program. What the given one reads and writes has its names.
        boundaries: one for each carry, in order.
    """

    forward: Program
    boundaries: tuple[Boundary, ...]


@dataclass(frozen=True)
class SegmentAdjoint:
    """The backward of one segment.

    Attributes:
        replay: writes the carries after each token that the adjoint reads; None if it reads none.
        adjoint: of ``forward``. Its program reads ``grad_<end>`` and writes ``grad_<start>`` of
            each boundary in ``passed``.
        passed: the boundaries whose gradient goes from a segment to the one before it.
    """

    replay: Program | None
    adjoint: Adjoint
    passed: tuple[Boundary, ...]


@lru_cache(maxsize=256)
def in_segments(program: Program) -> InSegments:
    """The program on one segment.

    Raises:
        PassError: a carry that starts from a constant other than zero, a final output that is
            stored in fewer bits than its carry has, or a lagged input.
    """
    verify(program)
    for input_ in program.inputs:
        if input_.role == "lagged":
            raise PassError(f"%{input_.name} is lagged, and would reach into the next segment")
    carries: list[Carry] = []
    inputs, finals = list(program.inputs), list(program.final_outputs)
    boundaries: list[Boundary] = []
    for carry in program.carries:
        start, given = carry.start_input, carry.start_input is not None
        if start is None:
            if carry.start != "zero":
                raise PassError(f"carry %{carry.name} starts from {carry.start}, not from zero")
            start = f"before_{carry.name}"
            inputs.append(Input(start, carry.type, "row"))
        end = next((f.name for f in finals if _ends(f, carry)), None)
        returned = end is not None
        if end is None:
            end = f"after_{carry.name}"
            finals.append(FinalOutput(end, carry.name, default_storage(carry.type)))
        carries.append(replace(carry, start=f"%{start}"))
        boundaries.append(Boundary(carry.name, start, end, given, returned))
    forward = replace(
        program, inputs=tuple(inputs), carries=tuple(carries), final_outputs=tuple(finals)
    )
    verify(forward)
    return InSegments(forward, tuple(boundaries))


def _ends(final: FinalOutput, carry: Carry) -> bool:
    """Whether an output is a carry after the last token."""
    if final.carry != carry.name:
        return False
    if final.storage != default_storage(carry.type):
        raise PassError(f"%{final.name} rounds %{carry.name}, which the next segment starts from")
    return True


def segment_adjoint(
    segments: InSegments,
    wrt: Iterable[str],
    cotangents: Iterable[str],
    surrogate: Surrogate | None = None,
) -> SegmentAdjoint:
    """The backward of a segment.

    Args:
        segments: the program on one segment.
        wrt: names of the inputs whose gradients are wanted.
        cotangents: names of the token outputs, and of the sums, that a gradient arrives at. Final
            outputs are reached from the segment after.
        surrogate: what stands for the gradient of maps, tables and indices in ``wrt``. A table's
            is the segment's share of the sum over all tokens.

    Raises:
        PassError: see :func:`~pdssm_compiler.ir.passes.adjoint.adjoint`.
    """
    wanted = set(wrt)
    arriving = {*cotangents, *(boundary.end for boundary in segments.boundaries)}
    derived = adjoint(segments.forward, wanted, arriving, surrogate)
    # A carry of the adjoint is one that the tokens before need; what starts it is passed on.
    needed = {carry.name for carry in derived.program.carries}
    passed = tuple(b for b in segments.boundaries if cotangent_carry(b.carry) in needed)
    if passed:
        wanted |= {b.start for b in passed}
        derived = adjoint(segments.forward, wanted, arriving, surrogate)
    return SegmentAdjoint(_replay(derived), derived, passed)


def _replay(derived: Adjoint) -> Program | None:
    """The forward with nothing written but what the backward reads."""
    saved = set(derived.saved.values())
    if not saved:
        return None
    kept = tuple(out for out in derived.forward.token_outputs if out.name in saved)
    return prune(
        replace(derived.forward, token_outputs=kept, final_outputs=(), sum_outputs=(), checks=())
    )
