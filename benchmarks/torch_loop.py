"""The plain torch loop every kernel is compared with."""

import torch


def torch_loop(diagonal: torch.Tensor, drive: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """One multiply, one scatter_add and one add a token, over all rows.

    Args:
        diagonal: complex ``[B, T, H, N]``.
        drive: likewise.
        maps: int64 ``[B, T, H, N]``, looked up beforehand, which the kernels do themselves.

    Returns:
        States ``[B, T, H, N]``.
    """
    state = torch.zeros_like(drive[:, 0])
    states = []
    for t in range(drive.shape[1]):
        moved = torch.zeros_like(state).scatter_add(-1, maps[:, t], diagonal[:, t] * state)
        state = moved + drive[:, t]
        states.append(state)
    return torch.stack(states, dim=1)
