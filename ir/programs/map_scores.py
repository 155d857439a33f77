"""Scores of maps: what the dense surrogate gives an index for each map it could have chosen.

Source: Flash PD-SSM (arXiv 2605.19150), straight through a softmax over the dictionary.
"""

from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import Element, Map, Vector, is_complex


def map_scores(state_size: int, maps: int, element: Element) -> Program:
    """The program that holds a token's gradient against maps, several at a time.

    Inputs are ``left`` and ``right``, vectors a token, and ``map_0``, ``map_1``, … a head; outputs
    ``score_0``, …: ``Σ_j Re(conj(left[p[j]]) right[j])`` for each map ``p``. There is no carry, so
    tokens may be laid out as rows of any length.

    Args:
        state_size: ``N``.
        maps: how many.
        element: of the vectors, real or complex.
    """
    build = b.ProgramBuilder(state_size)
    left, right = (build.input(name, Vector(element)) for name in ("left", "right"))
    for number in range(maps):
        moved = b.gather(left, build.input(f"map_{number}", Map(), "head"))
        product = b.mul(b.conj(moved), right)
        if is_complex(product.type):
            product = b.real(product)
        build.emit(f"score_{number}", b.total(product))
    return build.build()
