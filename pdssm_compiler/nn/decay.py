"""Which parameters an optimiser may let decay: :func:`parameter_groups`."""

from typing import Any

from torch import nn

from pdssm_compiler.ir.errors import shown
from pdssm_compiler.runtime.errors import ArgumentError


def parameter_groups(model: nn.Module, weight_decay: float = 0.1) -> list[dict[str, Any]]:
    """A model's parameters for an optimiser, in two groups: what decays and what does not.

    ``torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-3)``.

    Not decayed are

    - what a module names in its ``NO_DECAY``: of these layers what sets their memory (a decay of
      ``a_log`` and ``delta_bias`` would pull every component to one time scale), the skip, and the
      dictionary's logits (only their order chooses the maps, so a decay does nothing to the
      forward but bring the columns closer to ties);
    - every other parameter of fewer than two axes: biases, and the scales of norms;
    - the weights of ``torch.nn.Embedding``, a row of which would decay at every step in which its
      token does not occur.

    Args:
        model: any module, with any layers in it. A shared parameter is taken once, and does not
            decay if one of its owners says so.
        weight_decay: of the first group.

    Returns:
        Two groups ``{"params": […], "weight_decay": …}``, of the parameters that want gradients.

    Raises:
        ArgumentError: no module, or a decay that is negative or no number.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"model must be a torch.nn.Module, got {type(model).__name__}; several go into one "
            f"torch.nn.ModuleList"
        )
    if not isinstance(weight_decay, int | float) or not weight_decay >= 0:
        raise ArgumentError(
            f"weight_decay must be a number of at least 0, got {shown(weight_decay)}"
        )
    kept: dict[int, nn.Parameter] = {}
    every: dict[int, nn.Parameter] = {}
    for module in model.modules():
        named: frozenset[str] = getattr(type(module), "NO_DECAY", frozenset())
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            every[id(parameter)] = parameter
            if name in named or parameter.dim() < 2 or isinstance(module, nn.Embedding):
                kept[id(parameter)] = parameter
    decayed = [parameter for key, parameter in every.items() if key not in kept]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": list(kept.values()), "weight_decay": 0.0},
    ]
