"""The functional interface."""

import torch

from pdssm_compiler.arguments import PdCall, read_call
from pdssm_compiler.packed import PackedCall, scan_packed
from pdssm_compiler.runtime.dispatch import call


def pd_scan(
    diagonal: torch.Tensor,
    drive: torch.Tensor,
    *,
    dictionary: torch.Tensor | None = None,
    selection: torch.Tensor | None = None,
    destination: torch.Tensor | None = None,
    map_class: str = "general",
    orientation: str = "column",
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The PD-SSM scan: ``x_t = P_t (D_t x_{t-1}) + b_t``.

    ``P_t`` is column one-hot: column ``j`` has its one in row ``p_t[j]``, so
    ``x_t[i] = b_t[i]`` plus the sum of ``D_t[j] x_{t-1}[j]`` over all ``j`` with ``p_t[j] = i``.
    With ``orientation="row"`` rows are one-hot instead:
    ``x_t[i] = D_t[i] x_{t-1}[p_t[i]] + b_t[i]``.

    With ``reverse=True`` time runs from the last token to the first: ``x_t`` comes from
    ``x_{t+1}``, the initial state stands behind the last token, and the final state is that of
    the first.

    Differentiable in ``diagonal``, ``drive`` and ``initial_state``, from both outputs, by
    PyTorch's convention for complex numbers.

    Args:
        diagonal: ``D``, complex64 or complex128 ``[B, T, H, N]``, or float32 or float64
            ``[B, T, H, N, 2]``. Expanded (stride 0) axes cost no memory. Under ``torch.autocast``
            bfloat16 and float16 pairs are widened to float32, and so is ``initial_state``.
        drive: ``b``, like ``diagonal``; or bfloat16 or float16 ``[B, T, H, N, 2]`` beside a
            float32 diagonal.
        dictionary: uint8, int16, int32 or int64 ``[H, K, N]``; entry ``[h, k, j]`` in
            ``[0, N)`` is the row of the one in column ``j`` (in row orientation: the column of the
            one in row ``j``).
        selection: integer ``[B, T, H]`` in ``[0, K)``: the map of each token.
        destination: integer ``[B, T, H, N]`` in ``[0, N)``: a map a token, instead of the two
            above. With neither, the scan is diagonal.
        map_class: a promise that makes the scan cheaper, verified like a range: ``"general"``,
            ``"permutation"`` (every map is one-to-one) or ``"identity"``.
        orientation: ``"column"`` or ``"row"``.
        initial_state: ``x_0``, ``[B, H, N]`` complex or ``[B, H, N, 2]`` real; zero if absent.
        output_final_state: whether the last state is wanted as well.
        reverse: whether time runs from the last token to the first.
        cu_seqlens: offsets of packed sequences, int32 or int64 ``[S + 1]``, with ``B = 1``:
            sequence ``s`` has the tokens from ``cu_seqlens[s]`` up to ``cu_seqlens[s + 1]``, the
            first offset is 0 and the last ``T``. Each is scanned as if it were alone, an empty one
            too; states of sequences, first and last, are ``[S, H, N]`` in the place of
            ``[B, H, N]``.

    Returns:
        ``(states, final_state)``. ``states`` ``[B, T, H, N]`` holds ``x_1 … x_T`` in the form and
        dtype of ``drive``; ``final_state`` ``[B, H, N]`` is ``x_T`` (``x_0`` if ``T = 0``), in
        float32 or float64 parts, None unless asked for.

    Raises:
        ArgumentError: a wrong shape, dtype, device or option.
        IndexRangeError: an index out of range; on a GPU raised by a later call, or by
            :func:`pdssm_compiler.check`.
        OffsetError: offsets that start elsewhere, decrease or end elsewhere; likewise.
        PromiseError: maps that are not of the promised class; likewise.

    Source: arXiv 2509.22284 (PD-SSM), arXiv 2605.19150 (dictionary and selection).
    """
    given = (
        diagonal,
        drive,
        dictionary,
        selection,
        destination,
        map_class,
        orientation,
        initial_state,
        output_final_state,
        reverse,
    )
    if cu_seqlens is not None:
        return scan_packed(PackedCall(*given, cu_seqlens))
    request = read_call(*given)
    return results(request, call(request.text, request.tensors))


def results(
    request: PdCall, outputs: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The operator's results as the caller wants them."""
    states = outputs[0]
    final = outputs[1] if request.spec.final_state else None
    if request.as_pairs:
        if states.is_complex():
            states = torch.view_as_real(states)
        final = None if final is None else torch.view_as_real(final)
    return states, final
