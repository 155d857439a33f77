"""Passes: programs to programs. Each module documents its ``before → after`` and its reason."""

from pdssm_compiler.ir.passes.adjoint import Adjoint, adjoint
from pdssm_compiler.ir.passes.chunks import InChunks, in_chunks
from pdssm_compiler.ir.passes.factors import Factors
from pdssm_compiler.ir.passes.hoist import Hoisted, hoist
from pdssm_compiler.ir.passes.inverses import computed_inverses
from pdssm_compiler.ir.passes.segments import (
    InSegments,
    SegmentAdjoint,
    in_segments,
    segment_adjoint,
)
from pdssm_compiler.ir.passes.simplify import simplify
from pdssm_compiler.ir.passes.specialise import specialise
from pdssm_compiler.ir.passes.summarise import Summary, summarise
from pdssm_compiler.ir.passes.sums import carried_sums

__all__ = [
    "Adjoint",
    "Factors",
    "Hoisted",
    "InChunks",
    "InSegments",
    "SegmentAdjoint",
    "Summary",
    "adjoint",
    "carried_sums",
    "computed_inverses",
    "hoist",
    "in_chunks",
    "in_segments",
    "segment_adjoint",
    "simplify",
    "specialise",
    "summarise",
]
