"""One token of a scan: what a model that generates runs for each token it makes."""

import torch

from pdssm_compiler.arguments import check_tensor, read_call, widened
from pdssm_compiler.functional import results
from pdssm_compiler.runtime.dispatch import call
from pdssm_compiler.runtime.errors import ArgumentError

_BITS = {torch.complex64: 32, torch.float32: 32, torch.complex128: 64, torch.float64: 64}


def pd_scan_step(
    state: torch.Tensor,
    diagonal: torch.Tensor,
    drive: torch.Tensor,
    *,
    dictionary: torch.Tensor | None = None,
    selection: torch.Tensor | None = None,
    destination: torch.Tensor | None = None,
    map_class: str = "general",
    orientation: str = "column",
) -> torch.Tensor:
    """One step of :func:`pdssm_compiler.pd_scan`: ``x_t = P_t (D_t x_{t-1}) + b_t``.

    Token by token it gives what ``pd_scan`` gives for them all. It is the same operator, run on
    one token, so what holds of that one holds here: it is differentiable in ``state``,
    ``diagonal`` and ``drive``, and can be compiled and captured. On a GPU it is one short kernel.

    Args:
        state: ``x_{t-1}``, complex64 or complex128 ``[B, H, N]``, or float32 or float64
            ``[B, H, N, 2]``.
        diagonal: ``D_t``, likewise.
        drive: ``b_t``, likewise; or bfloat16 or float16 ``[B, H, N, 2]`` beside a float32
            diagonal.
        dictionary: the maps, integers ``[H, K, N]``, as in ``pd_scan``.
        selection: integers ``[B, H]`` in ``[0, K)``: the map of the token.
        destination: integers ``[B, H, N]`` in ``[0, N)``: the map of the token, instead of the two
            above. With neither, the step is diagonal.
        map_class: a promise about the maps, as in ``pd_scan``.
        orientation: ``"column"`` or ``"row"``, as in ``pd_scan``.

    Returns:
        ``x_t``, ``[B, H, N]`` complex if ``drive`` is, ``[B, H, N, 2]`` real if it is real: in
        float32 or float64 parts, whatever ``drive`` is stored in, since it is carried on.

    Raises:
        ArgumentError: a wrong shape, dtype, device or option.
        IndexRangeError: an index out of range; on a GPU raised by a later call, or by
            :func:`pdssm_compiler.check`. It tells the place as that of a scan of one token,
            ``t = 0``.
        PromiseError: maps that are not of the promised class; likewise.

    Source: the recurrence of arXiv 2509.22284 (PD-SSM).
    """
    diagonal, state = widened(diagonal), widened(state)
    numbers = {"diagonal": diagonal, "drive": drive, "state": state}
    sizes = _check_numbers(numbers)
    _check_state(state, diagonal)
    if selection is not None:
        _check_shape("selection", selection, "[B, H]", sizes[:2])
    if destination is not None:
        _check_shape("destination", destination, "[B, H, N]", sizes)
    request = read_call(
        diagonal.unsqueeze(1),
        drive.unsqueeze(1),
        dictionary,
        None if selection is None else selection.unsqueeze(1),
        None if destination is None else destination.unsqueeze(1),
        map_class,
        orientation,
        state,
        False,
        states_storage="",
    )
    following, _ = results(request, call(request.text, request.tensors))
    return following.squeeze(1)


def _check_numbers(numbers: dict[str, torch.Tensor]) -> torch.Size:
    """Refuse numbers whose shapes are not one; gives ``B, H, N``."""
    sizes: torch.Size | None = None
    for name, tensor in numbers.items():
        check_tensor(name, tensor)
        real = tensor.is_floating_point()
        if tensor.dim() != (4 if real else 3) or (real and tensor.shape[3] != 2):
            axes = "[B, H, N, 2]" if real else "[B, H, N]"
            raise ArgumentError(
                f"{name} must have the shape {axes} for dtype {tensor.dtype}, got "
                f"{list(tensor.shape)}; a step is of one token, without an axis T"
            )
        if sizes is None:
            sizes = tensor.shape[:3]
        elif tensor.shape[:3] != sizes:
            raise ArgumentError(
                f"{name} must have the sizes [B, H, N] = {list(sizes)}, got "
                f"{list(tensor.shape[:3])}; make it agree with diagonal"
            )
    assert sizes is not None
    return sizes


def _check_state(state: torch.Tensor, diagonal: torch.Tensor) -> None:
    """Refuse a state of another precision than the diagonal's."""
    if diagonal.dtype in _BITS and _BITS.get(state.dtype) != _BITS[diagonal.dtype]:
        raise ArgumentError(
            f"state must have the precision of diagonal, which is {diagonal.dtype}, got "
            f"{state.dtype}; convert it with .to()"
        )


def _check_shape(name: str, tensor: torch.Tensor, axes: str, want: torch.Size) -> None:
    check_tensor(name, tensor)
    if tensor.shape != want:
        raise ArgumentError(
            f"{name} must have the shape {axes} = {list(want)}, got {list(tensor.shape)}; a step "
            f"is of one token, without an axis T"
        )
