"""PD-SSM's own maps: a PD-SSM scan whose maps a soft mixture of a dictionary chooses."""

import torch

from pdssm_compiler.arguments import read_call
from pdssm_compiler.choices import CHOSEN_ALONG
from pdssm_compiler.chosen_mixtures import choose_mixtures, read_selection
from pdssm_compiler.functional import results
from pdssm_compiler.mixture_arguments import check_numbers, read_mixture, read_noise
from pdssm_compiler.packed import PackedCall, scan_packed
from pdssm_compiler.runtime.dispatch import call, refuse_transforms
from pdssm_compiler.runtime.mixture import call_mixed, mixed_map
from pdssm_compiler.spec import one_of


def mixture_pd_scan(
    dictionary_logits: torch.Tensor,
    mixture_weights: torch.Tensor,
    diagonal: torch.Tensor,
    drive: torch.Tensor,
    *,
    selection: torch.Tensor | None = None,
    temperature: float | torch.Tensor = 1.0,
    choice: str = "hard",
    noise: float | torch.Tensor = 0.0,
    seed: int | torch.Tensor | None = None,
    orientation: str = "column",
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """:func:`pdssm_compiler.pd_scan` with the maps that a mixture of a dictionary chooses.

    With ``M_t = Σ_k mixture_weights[b, t, h, k] dictionary_logits[h, k]``, column ``j`` of the
    map of a token has its one in row ``argmax_i M_t[i, j]``: another map at every token. ``M_t``
    is added up in float32 over ``k = 0 … K-1`` in that order with fused multiply-adds, on every
    device, so every device chooses the same maps. Ties go to the lowest index. No ``M_t`` is kept,
    and none is in memory: a kernel adds it up where it looks for its largest entries.

    Differentiable in ``diagonal``, ``drive``, ``initial_state``, and straight through a softmax in
    dictionary and weights: their gradients are what autograd gives for ``(hard - soft).detach() +
    soft`` in the place of every map. With ``ρ = softmax_i(M_t / τ)``, ``g_t`` the gradient of
    state ``x_t`` and ``∂P_t[i, j] = Re(conj(g_t[i]) D_t[j] x_{t-1}[j])``,

    - ``∂M_t[i, j] = ρ[i, j] (∂P_t[i, j] - Σ_l ρ[l, j] ∂P_t[l, j]) / τ``,
    - ``mixture_weights[b, t, h, k]`` has ``Σ_ij ∂M_t[i, j] dictionary_logits[h, k, i, j]``,
    - ``dictionary_logits[h, k]`` has ``Σ_{b, t} mixture_weights[b, t, h, k] ∂M_t``.

    The backward computes ``M_t`` again: it costs ``O(K N²)`` a token, as the forward does, and
    memory for a few vectors a token. In row orientation, ``x_t[i] = D_t[i] x_{t-1}[p_t[i]] +
    b_t[i]``, it is the same with ``∂P_t[i, j] = Re(conj(g_t[i]) D_t[i] x_{t-1}[j])`` and softmaxes
    over ``j``.

    **Mixtures that tokens share.** With ``selection`` there are ``V`` mixtures, and a token has
    the map of mixture ``selection[b, t, h]``: exactly what weights ``mixture_weights[selection]``
    give, by ``V`` matrices in the place of ``B T``, which are all there in the backward,
    ``[H, V, N, N]``. The scan is then one with a dictionary of ``V`` maps. It pays where there are
    fewer mixtures than tokens: a layer's that reads symbols, say.

    **Noise.** With ``noise > 0``, ``noise`` times standard Gumbel noise is added to every entry of
    every ``M_t``, in choice and gradient alike: with ``noise = τ``, a column's choice is a draw
    from ``softmax_i(M_t / τ)``. It is drawn by Philox from the seed and its place
    (:mod:`pdssm_compiler.ir.ops.noise`) wherever it is needed, and never kept. Without a seed one
    is drawn by the device's default generator, so ``torch.manual_seed`` repeats it, and a graph of
    ``torch.compile`` draws one at each call. (Its logarithms may differ by a rounding from device
    to device, and so may a near-tie.)

    **Soft.** With ``choice="soft"`` the matrices are ``softmax(M_t / τ)`` themselves, and no maps:
    the exact soft scan, a product with a dense matrix a token, by plain torch
    (:func:`pdssm_compiler.reference.mixture_pd_scan`), whose matrices are all kept. It is there to
    compare with: nothing of it is fused.

    Args:
        dictionary_logits: ``M``, float16, bfloat16, float32 or float64 ``[H, K, N, N]``, or
            ``[K, N, N]`` for all heads. Computed in float32, or float64 if it is.
        mixture_weights: ``s``, likewise, ``[B, T, H, K]``, or ``[B, T, K]`` for all heads; a
            softmax's, or any others.
        diagonal: ``D``, as in ``pd_scan``.
        drive: ``b``, as in ``pd_scan``.
        selection: uint8, int16, int32 or int64 ``[B, T, H]``, or ``[B, T]`` for all heads, in
            ``[0, V)``: which mixture a token has, of weights ``[V, H, K]``, or ``[V, K]`` for all
            heads; None where each has its own. Without noise, and with hard choices: both are of
            a token.
        temperature: ``τ``, a positive number, or a tensor of one, on the CPU or beside the logits.
            On a GPU a tensor is not looked at; on a CPU the backward looks, and ``"soft"``.
        choice: ``"hard"`` or ``"soft"``; see above.
        noise: how much; a number, or a tensor of one, looked at on a CPU alone.
        seed: of the noise, an integer in ``[0, 2³¹)``, or an int64 tensor of one, looked at on a
            CPU alone; None for a new one.
        orientation: ``"column"``, or ``"row"``: rows are one-hot, row ``i`` in column
            ``argmax_j M_t[i, j]``.
        initial_state: ``x_0``, as in ``pd_scan``.
        output_final_state: whether the last state is wanted as well.
        reverse: whether time runs from the last token to the first.
        cu_seqlens: offsets of packed sequences, as in ``pd_scan``.

    Returns:
        ``(states, final_state)``, as ``pd_scan``.

    Raises:
        ArgumentError: a wrong shape, dtype, device or option.
        IndexRangeError: a selection out of range; on a GPU raised by a later call, or by
            :func:`pdssm_compiler.check`.
        NanLogitError: a NaN in a mixture, which ``"soft"`` goes on with; on a GPU raised by a
            later call or by :func:`pdssm_compiler.check`, which name it by ``destination``, or
            ``dictionary`` where tokens share mixtures.
        OffsetError: offsets that start elsewhere, decrease or end elsewhere; likewise.

    Source: arXiv 2509.22284 (PD-SSM).
    """
    orientation = one_of("orientation", orientation, tuple(CHOSEN_ALONG))
    soft = one_of("choice", choice, ("hard", "soft")) == "soft"
    if selection is not None:
        selection = read_selection(selection, drive, soft, noise)
    elif soft:
        # It reads this module.
        from pdssm_compiler import reference

        return reference.mixture_pd_scan(
            dictionary_logits,
            mixture_weights,
            diagonal,
            drive,
            temperature=temperature,
            choice="soft",
            noise=noise,
            orientation=orientation,
            initial_state=initial_state,
            output_final_state=output_final_state,
            reverse=reverse,
            cu_seqlens=cu_seqlens,
        )
    mixed = read_mixture(
        dictionary_logits,
        mixture_weights,
        drive,
        temperature,
        orientation,
        shared=selection is not None,
    )
    # Before the operators, whose gradient torch would refuse in words of its own, and whose
    # tangents it would take for 0.
    if not torch.compiler.is_compiling():
        refuse_transforms((mixed.dictionary, mixed.weights))
    check_numbers(diagonal, drive, initial_state, cu_seqlens is not None)
    options = ("general", orientation, initial_state, output_final_state, reverse)
    if selection is not None:
        chosen = choose_mixtures(mixed, selection)
        entries = (chosen.maps_used, chosen.tokens_used)
        maps_of = (diagonal, drive, chosen.dictionary, chosen.selection, None, *options)
        if cu_seqlens is not None:
            return scan_packed(PackedCall(*maps_of, cu_seqlens), entries)
        request = read_call(*maps_of)
        return results(request, call(request.text, request.tensors, "", entries))
    mixed = mixed._replace(noise=read_noise(noise, seed, mixed.weights, choice))
    sources = (mixed.weights.detach(), mixed.dictionary.detach())
    maps = mixed_map(*sources, list(mixed.noise) or None, orientation)
    given = (diagonal, drive, None, None, maps, *options)
    if cu_seqlens is not None:
        return scan_packed(PackedCall(*given, cu_seqlens), mixed=mixed)
    request = read_call(*given)
    return results(request, call_mixed(request.text, request.tensors, mixed))
