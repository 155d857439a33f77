"""Flash PD-SSM: a PD-SSM scan whose maps are chosen by trainable logits."""

import torch

from pdssm_compiler.arguments import read_call
from pdssm_compiler.functional import results
from pdssm_compiler.packed import PackedCall, scan_packed
from pdssm_compiler.runtime.binding import check_layout
from pdssm_compiler.runtime.choices import hard_choice
from pdssm_compiler.runtime.dispatch import call, refuse_transforms
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.spec import one_of

# What the last axes of the dictionary's logits are, and which of them is chosen along.
_CHOSEN_ALONG = {"column": -2, "row": -1}
SURROGATES = ("active", "dense")
_LOGITS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
    orientation = one_of("orientation", orientation, tuple(_CHOSEN_ALONG))
    dense = one_of("surrogate", surrogate, SURROGATES) == "dense"
    _check_logits("dictionary_logits", dictionary_logits, "[H, K, N, N]")
    _check_logits("selector_logits", selector_logits, "[B, T, H, K]")
    _check_sizes(dictionary_logits, selector_logits, drive)
    # Before the choices, whose gradient torch would refuse in words of its own.
    if not torch.compiler.is_compiling():
        refuse_transforms()
    along = _CHOSEN_ALONG[orientation]
    tau = _temperature(temperature, selector_logits)
    maps_used, dictionary = hard_choice(dictionary_logits, along, tau, "dictionary_logits", dense)
    tokens_used, selection = hard_choice(selector_logits, -1, tau, "selector_logits", dense)
    if dense and orientation == "row":
        # The scan takes a map for the matrix with ones at [p[i], i].
        maps_used = maps_used.mT
    # In the order of the program's inputs: dictionary, selection.
    entries = (maps_used, tokens_used)
    given = (
        diagonal,
        drive,
        dictionary,
        selection,
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


def _check_logits(name: str, logits: torch.Tensor, axes: str) -> None:
    if not isinstance(logits, torch.Tensor):
        raise ArgumentError(
            f"{name} must be a torch.Tensor, got {type(logits).__name__}; torch.as_tensor makes "
            f"one"
        )
    check_layout(name, logits)
    if logits.dtype not in _LOGITS:
        raise ArgumentError(
            f"{name} has the unsupported dtype {logits.dtype}: use a real floating-point one, "
            f"by .to()"
        )
    if logits.dim() != 4:
        raise ArgumentError(
            f"{name} must have the shape {axes}, got {list(logits.shape)}; reshape it"
        )


def _check_sizes(dictionary: torch.Tensor, selector: torch.Tensor, drive: torch.Tensor) -> None:
    """Sizes of the two logits, before an argmax of theirs has another name."""
    _, maps, rows, columns = dictionary.shape
    if rows != columns or maps == 0 or rows == 0:
        raise ArgumentError(
            f"dictionary_logits must have the shape [H, K, N, N] with K and N of at least 1, got "
            f"{list(dictionary.shape)}; reshape it"
        )
    if selector.shape[3] != maps:
        raise ArgumentError(
            f"selector_logits choose from {selector.shape[3]} maps and dictionary_logits hold "
            f"{maps}; give both the same K"
        )
    if isinstance(drive, torch.Tensor) and drive.dim() >= 4:
        wanted = (*drive.shape[:3], maps)
        if selector.shape != wanted:
            raise ArgumentError(
                f"selector_logits must have the shape [B, T, H, K] = {list(wanted)}, got "
                f"{list(selector.shape)}; make it agree with drive"
            )
        wanted = (drive.shape[2], maps, drive.shape[3], drive.shape[3])
        if dictionary.shape != wanted:
            raise ArgumentError(
                f"dictionary_logits must have the shape [H, K, N, N] = {list(wanted)}, got "
                f"{list(dictionary.shape)}; make it agree with drive"
            )


def _temperature(temperature: float | torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """A tensor of one number beside the logits, which the host never waits for."""
    if isinstance(temperature, torch.Tensor):
        if temperature.numel() != 1 or not temperature.is_floating_point():
            raise ArgumentError(
                f"temperature must be one real number, got {temperature.dtype} "
                f"{list(temperature.shape)}; pass a float or a tensor of one"
            )
        if temperature.requires_grad:
            raise ArgumentError(
                "temperature has no gradient here; pass temperature.detach(), or divide the "
                "logits by it yourself"
            )
        return temperature.reshape(())
    if not isinstance(temperature, int | float) or not 0 < temperature < float("inf"):
        raise ArgumentError(
            f"temperature must be a positive number, got {temperature!r}; pass a float or a tensor"
        )
    wide = torch.float64 if logits.dtype is torch.float64 else torch.float32
    range_ = torch.finfo(wide)
    if not range_.tiny <= temperature <= range_.max:
        raise ArgumentError(
            f"temperature is 0 or infinite in {wide}, in which the softmax is computed, got "
            f"{temperature!r}; pass one between {range_.tiny:.3g} and {range_.max:.3g}"
        )
    return torch.full((), float(temperature), dtype=wide, device=logits.device)
