"""Mixtures that tokens share: a dictionary of the maps that they choose, and its gradient.

Where there are few mixtures there is no need for kernels that keep no matrix: all are there,
``[H, V, N, N]``, and autograd differentiates the softmax that stands for the choice.
"""

import torch

from pdssm_compiler.arguments import check_tensor, without_autocast
from pdssm_compiler.choices import Chosen
from pdssm_compiler.runtime.choices import check_temperature, copy_for_backward
from pdssm_compiler.runtime.errors import ArgumentError, NanLogitError
from pdssm_compiler.runtime.mixture import Mixture, mixed_map
from pdssm_compiler.runtime.sums import widest


def read_selection(
    selection: torch.Tensor, drive: torch.Tensor, soft: bool, noise: float | torch.Tensor
) -> torch.Tensor:
    """Which mixture each token has, ``[B, T, H]``; arguments as of :func:`mixture_pd_scan`.

    Raises:
        ArgumentError: another shape, or what is not of mixtures but of tokens.
    """
    if soft or isinstance(noise, torch.Tensor) or noise != 0:
        named = "choice='soft' has a matrix" if soft else "noise is drawn"
        raise ArgumentError(
            f"{named} for every token, and selection has tokens share mixtures; leave selection "
            f"out and give the weights of every token, mixture_weights[selection]"
        )
    check_tensor("selection", selection)
    if isinstance(drive, torch.Tensor) and drive.dim() >= 4:
        if selection.dim() == 2:
            selection = selection.unsqueeze(2).expand(-1, -1, drive.shape[2])
        if selection.shape != drive.shape[:3]:
            raise ArgumentError(
                f"selection must have the shape [B, T, H] = {list(drive.shape[:3])}, or [B, T], "
                f"got {list(selection.shape)}; make it agree with drive"
            )
    return selection


def choose_mixtures(mixed: Mixture, selection: torch.Tensor) -> Chosen:
    """The maps that mixtures choose, and where their gradients arrive.

    Args:
        mixed: of one sequence of ``V`` tokens, each a mixture.
        selection: integer ``[B, T, H]``.
    """
    dictionary = _maps(mixed)[0].transpose(0, 1)  # [H, V, N]
    return Chosen(dictionary, selection, _entries(mixed), _given(selection))


def _maps(mixed: Mixture) -> torch.Tensor:
    """The maps ``[1, V, H, N]``."""
    sources = (mixed.weights.detach(), mixed.dictionary.detach())
    if torch.compiler.is_compiling():
        return mixed_map(*sources, None, mixed.orientation)
    try:
        return mixed_map(*sources, None, mixed.orientation)
    except NanLogitError as error:
        raise NanLogitError(
            f"{error} (tokens share mixtures: token [0, v] is mixture v of the weights, chosen "
            f"from whether a token selects it or not)"
        ) from None


def _entries(mixed: Mixture) -> torch.Tensor:
    """What stands for the entries of all maps, ``[H, V, N, N]``: the softmax, whose gradient is
    theirs. Without one its numbers are not needed.
    """
    weights, dictionary = mixed.weights[0], mixed.dictionary
    heads, _, n, _ = dictionary.shape
    if not (torch.is_grad_enabled() and (mixed.weights.requires_grad or dictionary.requires_grad)):
        return weights.new_ones(()).expand(heads, len(weights), n, n)
    if not torch.compiler.is_compiling():
        check_temperature(mixed.temperature, dictionary.dtype)
    wide = widest(weights.dtype, weights.device)
    with without_autocast(weights.device.type):
        product = torch.bmm(
            weights.transpose(0, 1).to(wide), dictionary.flatten(2).to(wide)
        )  # [H, V, N²]
        matrices = product.to(dictionary.dtype).unflatten(2, (n, n))
        temperature = copy_for_backward(mixed.temperature).to(dictionary.dtype)
        if mixed.orientation == "column":
            return torch.softmax(matrices / temperature, -2)
        # The scan takes a map for the matrix with ones at [p[i], i].
        return torch.softmax(matrices / temperature, -1).mT


def _given(selection: torch.Tensor) -> torch.Tensor:
    """The entries of what is no choice: none; see :mod:`pdssm_compiler.runtime.ops`."""
    return torch.ones((), device=selection.device).expand(*selection.shape, 1)[..., :0]
