"""What logits choose: maps and selections, of ``flash_pd_scan`` and of fused scans."""

from collections.abc import Iterable
from typing import NamedTuple

import torch

from pdssm_compiler.runtime.binding import check_layout
from pdssm_compiler.runtime.choices import hard_choice
from pdssm_compiler.runtime.dispatch import refuse_transforms
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.spec import one_of

# What the last axes of the dictionary's logits are, and which of them is chosen along.
CHOSEN_ALONG = {"column": -2, "row": -1}
SURROGATES = ("active", "dense")
_LOGITS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Chosen(NamedTuple):
    """What logits choose, and where gradients of the choices arrive.

    Attributes:
        dictionary: int32 ``[H, K, N]``.
        selection: int32 ``[B, T, H]``.
        maps_used: the entries of the dictionary's choices; see
            :mod:`pdssm_compiler.runtime.ops`.
        tokens_used: of the selection's.
    """

    dictionary: torch.Tensor
    selection: torch.Tensor
    maps_used: torch.Tensor
    tokens_used: torch.Tensor


def both_logits(
    dictionary_logits: torch.Tensor | None,
    selector_logits: torch.Tensor | None,
    integers: Iterable[torch.Tensor | None],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both logits, of a call that takes them in the place of integers.

    Raises:
        ArgumentError: one without the other, or beside what they choose.
    """
    if dictionary_logits is None or selector_logits is None:
        missing = "dictionary_logits" if dictionary_logits is None else "selector_logits"
        raise ArgumentError(
            f"{missing} is missing: maps are chosen by dictionary_logits and selector_logits; "
            f"pass both, or dictionary and selection"
        )
    if any(each is not None for each in integers):
        raise ArgumentError(
            "dictionary_logits and selector_logits choose dictionary and selection; pass the "
            "logits or the integers"
        )
    return dictionary_logits, selector_logits


def choose(
    dictionary_logits: torch.Tensor,
    selector_logits: torch.Tensor,
    drive: torch.Tensor,
    temperature: float | torch.Tensor,
    surrogate: str,
    orientation: str,
) -> Chosen:
    """Choose maps and selection; arguments as of :func:`pdssm_compiler.flash_pd_scan`.

    Raises:
        ArgumentError: a wrong shape, dtype or option.
        NanLogitError: a NaN among logits on a CPU; on a GPU the scan that reads the choice reports
            it.
    """
    dense = one_of("surrogate", surrogate, SURROGATES) == "dense"
    check_logits("dictionary_logits", dictionary_logits, "[H, K, N, N]")
    check_logits("selector_logits", selector_logits, "[B, T, H, K]")
    check_sizes(dictionary_logits, selector_logits, "selector_logits", drive, "[H, K, N, N]")
    # Before the choices, whose gradient torch would refuse in words of its own, and whose tangents
    # it would take for 0.
    if not torch.compiler.is_compiling():
        refuse_transforms((dictionary_logits, selector_logits))
    along = CHOSEN_ALONG[orientation]
    tau = one_temperature(temperature, selector_logits)
    maps_used, dictionary = hard_choice(dictionary_logits, along, tau, "dictionary_logits", dense)
    tokens_used, selection = hard_choice(selector_logits, -1, tau, "selector_logits", dense)
    if dense and orientation == "row":
        # The scan takes a map for the matrix with ones at [p[i], i].
        maps_used = maps_used.mT
    return Chosen(dictionary, selection, maps_used, tokens_used)


def check_logits(name: str, logits: torch.Tensor, axes: str) -> None:
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


def check_sizes(
    dictionary: torch.Tensor,
    of_tokens: torch.Tensor,
    name: str,
    drive: torch.Tensor,
    axes: str,
    shared: bool = False,
) -> None:
    """Hold a dictionary's logits, and what goes with them by token, to the drive, before a choice
    of theirs has another name.

    Args:
        dictionary: ``[H, K, N, N]``.
        of_tokens: ``[B, T, H, K]``.
        name: of those, for messages.
        drive: the call's; what it is by itself others look at.
        axes: what the dictionary may have.
        shared: whether ``of_tokens`` is of what tokens share: ``[1, V, H, K]``.

    Raises:
        ArgumentError: says which does not agree, and with what.
    """
    _, maps, rows, columns = dictionary.shape
    if rows != columns or maps == 0 or rows == 0:
        raise ArgumentError(
            f"dictionary_logits must have the shape {axes} with K and N of at least 1, got "
            f"{list(dictionary.shape)}; reshape it"
        )
    if of_tokens.shape[3] != maps:
        raise ArgumentError(
            f"{name} are of {of_tokens.shape[3]} maps and dictionary_logits hold {maps}; give "
            f"both the same K"
        )
    if not isinstance(drive, torch.Tensor):
        return
    check_layout("drive", drive)
    if drive.dim() >= 4:
        first = 1 if shared else 0
        leading = of_tokens.shape[:2] if shared else drive.shape[:2]
        wanted = (*leading, drive.shape[2], maps)
        if of_tokens.shape != wanted:
            named = "[V, H, K]" if shared else "[B, T, H, K]"
            raise ArgumentError(
                f"{name} must have the shape {named} = {list(wanted[first:])}, got "
                f"{list(of_tokens.shape[first:])}; make it agree with drive"
            )
        wanted = (drive.shape[2], maps, drive.shape[3], drive.shape[3])
        if dictionary.shape != wanted:
            raise ArgumentError(
                f"dictionary_logits must have the shape [H, K, N, N] = {list(wanted)}, got "
                f"{list(dictionary.shape)}; make it agree with drive"
            )


def one_temperature(temperature: float | torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
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
    if torch.compiler.is_compiling():
        # A number that fills a tensor is compiled in; as a factor it stays an input of the graph.
        return torch.ones((), dtype=wide, device=logits.device) * temperature
    return torch.full((), float(temperature), dtype=wide, device=logits.device)
