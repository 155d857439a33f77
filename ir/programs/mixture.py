"""Maps of a soft mixture: from coefficients and matrices to the map that their sum chooses.

Source: arXiv 2509.22284 (PD-SSM), the generation of ``P_t``.
"""

from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import Coefficients, Element, Index, Matrices, Scalar

# The inputs that have gradients.
LEARNED = ("dictionary_logits", "mixture_weights")
# Seeds, and numbers of tokens.
_SEEDS, _DRAWS = 2**31, 2**62


def mixture(
    state_size: int, entries: int, element: Element, orientation: str, noisy: bool = False
) -> Program:
    """The program that chooses a map for each token.

    Inputs are ``mixture_weights``, ``K`` numbers a token, and ``dictionary_logits``, ``K``
    matrices a head; the output is ``mixed_map``: ``argmax_i Σ_k weights[k] logits[k, i, j]`` of
    each column ``j``, or, by rows, ``argmax_j`` of each row ``i``. There is no carry.

    A noisy one adds ``noise_scale`` times Gumbel noise to the sum, of ``noise_seed``, an index a
    head, and ``noise_draw``, an index a token, the number of its draw.

    Args:
        state_size: ``N``.
        entries: ``K``.
        element: ``f32`` or ``f64``: what is computed.
        orientation: ``column`` or ``row``.
        noisy: whether there is noise.
    """
    build = b.ProgramBuilder(state_size)
    weights = build.input("mixture_weights", Coefficients(entries, element))
    matrices = build.input("dictionary_logits", Matrices(entries, element), "head")
    mixed = b.mix(matrices, weights)
    if noisy:
        scale = build.input("noise_scale", Scalar(element), "head")
        seed = build.input("noise_seed", Index(_SEEDS), "head", "i64")
        draw = build.input("noise_draw", Index(_DRAWS), storage="i64")
        mixed = b.gumbel(mixed, scale, seed, draw, orientation)
    build.emit("mixed_map", b.argmax(mixed, orientation))
    return build.build()
