"""The scans as plain loops: what every kernel must agree with, readable in a minute."""

import itertools
from typing import Any

import torch

from pdssm_compiler.arguments import as_complex, read_call, widened
from pdssm_compiler.runtime.binding import check
from pdssm_compiler.runtime.errors import ArgumentError, IndexRangeError, PromiseError
from pdssm_compiler.runtime.ops import slots_of
from pdssm_compiler.runtime.packing import check_offsets
from pdssm_compiler.runtime.plan import check_layouts, one_device
from pdssm_compiler.sequences import check_offset_tensor


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
    """:func:`pdssm_compiler.pd_scan`, token by token in torch.

    Shapes, dtypes, results and errors as there. It runs on any device, and autograd
    differentiates it. ``map_class`` is verified and changes nothing else.
    """
    diagonal = widened(diagonal)
    initial_state = None if initial_state is None else widened(initial_state)
    if cu_seqlens is not None:
        return _one_by_one(
            cu_seqlens,
            {"diagonal": diagonal, "drive": drive},
            {"selection": selection, "destination": destination},
            initial_state,
            dictionary=dictionary,
            map_class=map_class,
            orientation=orientation,
            output_final_state=output_final_state,
            reverse=reverse,
        )
    call = read_call(
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
    check_layouts(call.text, call.tensors)
    one_device(call.text, call.tensors)
    check(slots_of(call.text)[0], call.tensors)
    for name, maps in (("dictionary", dictionary), ("destination", destination)):
        if maps is not None:
            _in_range(name, maps, call.spec.state_size)
            _as_promised(name, maps, map_class)
    if dictionary is not None and selection is not None:
        _in_range("selection", selection, dictionary.shape[1])

    d, b = _complex(diagonal, diagonal.dtype), _complex(drive, diagonal.dtype)
    batch, length, heads, size = b.shape
    state = b.new_zeros(batch, heads, size)
    if initial_state is not None:
        state = _complex(initial_state, diagonal.dtype)
    head = torch.arange(heads, device=b.device)
    states: list[torch.Tensor] = []
    for t in reversed(range(length)) if reverse else range(length):
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
    states = states[::-1] if reverse else states

    out = torch.stack(states, dim=1) if states else b.new_zeros(batch, 0, heads, size)
    final = state if output_final_state else None
    if not drive.is_complex():
        out = torch.view_as_real(out).to(drive.dtype)
        final = None if final is None else torch.view_as_real(final)
    return out, final


def _one_by_one(
    cu_seqlens: torch.Tensor,
    numbers: dict[str, torch.Tensor],
    maps: dict[str, torch.Tensor | None],
    initial_state: torch.Tensor | None,
    **others: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Packed sequences: each is a call of its own."""
    diagonal = as_complex("diagonal", numbers["diagonal"], 4)
    check_offset_tensor(cu_seqlens, diagonal)
    check_offsets(cu_seqlens, diagonal.shape[1])
    of_maps = {name: tensor for name, tensor in maps.items() if tensor is not None}
    by_token: dict[str, Any] = {**numbers, **of_maps}
    sequences = cu_seqlens.shape[0] - 1
    if initial_state is not None and initial_state.shape[0] != sequences:
        raise ArgumentError(
            f"initial_state must have one state a sequence, {sequences}, got "
            f"{list(initial_state.shape)}; cu_seqlens has S + 1 entries"
        )
    # One of no token, so that there is a result even where there is no sequence.
    found = [pd_scan(**{name: tensor[:, :0] for name, tensor in by_token.items()}, **others)]
    offsets = cu_seqlens.tolist()
    for number, (begin, end) in enumerate(itertools.pairwise(offsets)):
        tokens = {name: tensor[:, begin:end] for name, tensor in by_token.items()}
        start = None if initial_state is None else initial_state[number : number + 1]
        found.append(pd_scan(**tokens, **others, initial_state=start))
    states = torch.cat([states for states, _ in found], dim=1)
    finals = [final for _, final in found if final is not None]
    return states, torch.cat([finals[0][:0], *finals[1:]]) if finals else None


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
    """:func:`pdssm_compiler.flash_pd_scan`, token by token in torch.

    The ones of ``P_t`` multiply the diagonal, so they are written there: as numbers that are 1 and
    have the gradient of a softmax. (A NaN among the logits is not looked for.)
    """
    if surrogate != "active":
        raise ArgumentError(f"surrogate must be 'active', got {surrogate!r}")
    along = -2 if orientation == "column" else -1
    dictionary, ones_of_maps = _chosen(dictionary_logits, along, temperature)  # [H, K, N]
    selection, ones_of_tokens = _chosen(selector_logits, -1, temperature)  # [B, T, H]
    head = torch.arange(dictionary.shape[0], device=dictionary.device)
    ones = ones_of_tokens.unsqueeze(-1) * ones_of_maps[head, selection]  # [B, T, H, N]
    return pd_scan(
        _complex(diagonal, diagonal.dtype) * ones,
        drive,
        dictionary=dictionary,
        selection=selection,
        orientation=orientation,
        initial_state=initial_state,
        output_final_state=output_final_state,
        reverse=reverse,
        cu_seqlens=cu_seqlens,
    )


def _chosen(
    logits: torch.Tensor, dim: int, temperature: float | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The place of the largest logit, and a one with the gradient of its softmax."""
    place = logits.argmax(dim)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    soft = torch.softmax(logits.to(wide) / temperature, dim)
    soft = soft.gather(dim, place.unsqueeze(dim)).squeeze(dim)
    return place, soft - soft.detach() + 1


def _complex(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Real pairs ``[..., 2]``, in the precision of a dtype, as complex numbers."""
    if tensor.is_complex():
        return tensor
    return torch.view_as_complex(tensor.to(dtype.to_real()).contiguous())


def _in_range(name: str, entries: torch.Tensor, bound: int) -> None:
    # In the entries' own dtype the bound may wrap: 256 is 0 in uint8.
    wide = entries.long()
    wrong = ((wide < 0) | (wide >= bound)).nonzero()
    if len(wrong):
        at = wrong[0].tolist()
        raise IndexRangeError(
            f"{name}{at} = {entries[tuple(at)].item()}: entries must lie in [0, {bound})"
        )


def _as_promised(name: str, maps: torch.Tensor, map_class: str) -> None:
    found = maps.sort(dim=-1).values if map_class == "permutation" else maps
    one_to_one = torch.arange(maps.shape[-1], device=maps.device)
    if map_class != "general" and not (found == one_to_one).all():
        raise PromiseError(
            f"{name} is not the {map_class} that map_class promised; give maps that are, or pass "
            f"map_class='general'"
        )
