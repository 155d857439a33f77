"""Flash PD-SSM: a PD-SSM scan whose maps are chosen by trainable logits."""

import torch

from pdssm_compiler.arguments import read_call
from pdssm_compiler.choices import CHOSEN_ALONG, choose
from pdssm_compiler.functional import results
from pdssm_compiler.packed import PackedCall, scan_packed
from pdssm_compiler.runtime.dispatch import call
from pdssm_compiler.spec import one_of


def flash_pd_scan(
    dictionary_logits: torch.Tensor,
    selector_logits: torch.Tensor,
    diagonal: torch.Tensor,
    drive: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 1.0,
    surrogate: str = "active",
    orientation: str = "column",
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """:func:`pdssm_compiler.pd_scan` with the maps that logits choose.

    Column ``j`` of map ``k`` has its one in row ``i* = argmax_i dictionary_logits[h, k, i, j]``,
    and a token uses the map ``k_t = argmax_k selector_logits[b, t, h, k]``. Ties go to the lowest
    index.

    Differentiable in ``diagonal``, ``drive``, ``initial_state``, and by a surrogate in both
    logits. With ``g_t`` the gradient of state ``x_t``, ``π = softmax(selector_logits / τ)`` and
    ``ρ = softmax_i(dictionary_logits / τ)``, the entries of ``P_t`` have the gradients
    ``∂P_t[i, j] = Re(conj(g_t[i]) D_t[j] x_{t-1}[j])``.

    ``"active"``: only what was used has a gradient. With ``a_t[j] = ∂P_t[p_t[j], j]`` they are

    - of ``selector_logits[b, t, h, k]``: ``(Σ_j a_t[j]) π_{k_t} (δ_{k, k_t} - π_k) / τ``,
    - of ``dictionary_logits[h, k, i, j]``:
      ``(Σ_{b, t: k_t = k} a_t[j]) ρ_i* (δ_{i, i*} - ρ_i) / τ``.

    That costs ``O(N)`` a token, and the softmax over ``K``.

    ``"dense"``: every entry has one, as autograd gives for ``(hard - soft).detach() + soft`` in
    the place of both choices. With ``s_t[k] = Σ_j ∂P_t[p_k[j], j]`` for every map ``k`` and
    ``m_k[i, j] = Σ_{b, t: k_t = k} ∂P_t[i, j]`` for every entry they are

    - of ``selector_logits[b, t, h, k]``: ``π_k (s_t[k] - Σ_l π_l s_t[l]) / τ``,
    - of ``dictionary_logits[h, k, i, j]``: ``ρ_i (m_k[i, j] - Σ_l ρ_l m_k[l, j]) / τ``.

    That costs ``O(N (N + K))`` a token in the backward, ``N²`` as matrix products, and memory for
    two more vectors a token; nothing of the size ``T × N × N`` or ``T × K × N`` is ever there.
    Products of float32 are exact and summed in float64, whatever torch's own may be rounded to.

    In row orientation, ``x_t[i] = D_t[i] Σ_j P_t[i, j] x_{t-1}[j] + b_t[i]``, they are the same
    with ``∂P_t[i, j] = Re(conj(g_t[i]) D_t[i] x_{t-1}[j])``, ``a_t[i] = ∂P_t[i, p_t[i]]``,
    ``s_t[k] = Σ_i ∂P_t[i, p_k[i]]``, and ``ρ`` a softmax over ``j``.

    Args:
        dictionary_logits: float16, bfloat16, float32 or float64 ``[H, K, N, N]``.
        selector_logits: likewise, ``[B, T, H, K]``.
        diagonal: ``D``, as in ``pd_scan``.
        drive: ``b``, as in ``pd_scan``.
        temperature: ``τ``, a positive number, or a tensor of one, on the CPU or beside the logits.
            On a GPU a tensor is not looked at; on a CPU the backward looks.
        surrogate: ``"active"`` or ``"dense"``.
        orientation: ``"column"``, or ``"row"``: rows are one-hot, row ``i`` in column
            ``argmax_j dictionary_logits[h, k, i, j]``.
        initial_state: ``x_0``, as in ``pd_scan``.
        output_final_state: whether the last state is wanted as well.
        reverse: whether time runs from the last token to the first.
        cu_seqlens: offsets of packed sequences, as in ``pd_scan``.

    Returns:
        ``(states, final_state)``, as ``pd_scan``.

    Raises:
        ArgumentError: a wrong shape, dtype, device or option.
        NanLogitError: a NaN among logits; on a GPU raised by a later call or by
            :func:`pdssm_compiler.check`, which name it by ``selection`` or ``dictionary``.
        OffsetError: offsets that start elsewhere, decrease or end elsewhere; likewise.

    Source: arXiv 2605.19150.
    """
    orientation = one_of("orientation", orientation, tuple(CHOSEN_ALONG))
    chosen = choose(dictionary_logits, selector_logits, drive, temperature, surrogate, orientation)
    # In the order of the program's inputs: dictionary, selection.
    entries = (chosen.maps_used, chosen.tokens_used)
    given = (
        diagonal,
        drive,
        chosen.dictionary,
        chosen.selection,
        None,
        "general",
        orientation,
        initial_state,
        output_final_state,
        reverse,
    )
    if cu_seqlens is not None:
        return scan_packed(PackedCall(*given, cu_seqlens), entries)
    request = read_call(*given)
    outputs = call(request.text, request.tensors, "", entries)
    return results(request, outputs)
