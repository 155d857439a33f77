"""Maps of a soft mixture: from coefficients and matrices to the map that their sum chooses.

Source: arXiv 2509.22284 (PD-SSM), the generation of ``P_t``.
"""

from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import Coefficients, Element, Matrices


def mixture(state_size: int, entries: int, element: Element, orientation: str) -> Program:
    """The program that chooses a map for each token.

    Inputs are ``mixture_weights``, ``K`` numbers a token, and ``dictionary_logits``, ``K``
    matrices a head; the output is ``mixed_map``: ``argmax_i Σ_k weights[k] logits[k, i, j]`` of
    each column ``j``, or, by rows, ``argmax_j`` of each row ``i``. There is no carry.

    Args:
        state_size: ``N``.
        entries: ``K``.
        element: ``f32`` or ``f64``: what is computed.
        orientation: ``column`` or ``row``.
    """
    build = b.ProgramBuilder(state_size)
    weights = build.input("mixture_weights", Coefficients(entries, element))
    matrices = build.input("dictionary_logits", Matrices(entries, element), "head")
    build.emit("mixed_map", b.argmax(b.mix(matrices, weights), orientation))
    return build.build()
