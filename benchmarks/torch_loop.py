"""The plain torch loop every kernel is compared with."""

import torch


def torch_loop(diagonal: torch.Tensor, drive: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """One multiply, one scatter_add and one add a token, over all rows.

    Tokens are taken by ``unbind``: indexing them one by one would make autograd fill a whole
    gradient for each token, and the backward quadratic in T.

    Args:
        diagonal: complex ``[B, T, H, N]``.
        drive: likewise.
        maps: int64 ``[B, T, H, N]``, looked up beforehand, which the kernels do themselves.

    Returns:
        States ``[B, T, H, N]``.
    """
    state = torch.zeros_like(drive[:, 0])
    states = []
    for d, b, p in zip(diagonal.unbind(1), drive.unbind(1), maps.unbind(1), strict=True):
        state = torch.zeros_like(state).scatter_add(-1, p, d * state) + b
        states.append(state)
    return torch.stack(states, dim=1)
