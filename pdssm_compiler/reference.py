"""The scan as a plain loop: what every kernel must agree with, readable in a minute."""

import torch


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
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """:func:`pdssm_compiler.pd_scan`, token by token in torch; ``map_class`` changes nothing.

    Shapes, dtypes and results as there. It runs on any device, in any float precision, and
    autograd differentiates it.
    """
    as_pairs = not drive.is_complex()
    d = diagonal if diagonal.is_complex() else torch.view_as_complex(diagonal.contiguous())
    b = drive
    if as_pairs:
        b = torch.view_as_complex(drive.to(d.real.dtype).contiguous())
    batch, length, heads, size = b.shape
    state = b.new_zeros(batch, heads, size)
    if initial_state is not None:
        state = initial_state
        if not state.is_complex():
            state = torch.view_as_complex(state.contiguous())

    head = torch.arange(heads, device=b.device)
    states = []
    for t in range(length):
        if dictionary is not None and selection is not None:
            p = dictionary[head, selection[:, t].long()].long()  # [B, H, N]
        elif destination is not None:
            p = destination[:, t].long()  # [B, H, N]
        else:
            p = torch.arange(size, device=b.device).expand(batch, heads, size)
        if orientation == "column":
            moved = torch.zeros_like(state).scatter_add(-1, p, d[:, t] * state)
        else:
            moved = d[:, t] * state.gather(-1, p)
        state = moved + b[:, t]
        states.append(state)

    out = torch.stack(states, dim=1) if states else b.new_zeros(batch, 0, heads, size)
    final = state if output_final_state else None
    if as_pairs:
        out = torch.view_as_real(out).to(drive.dtype)
        final = None if final is None else torch.view_as_real(final)
    return out, final
