"""The scans as plain loops: what every kernel must agree with, readable in a minute."""

import itertools
from typing import Any

import torch

from pdssm_compiler.arguments import (
    PAIRS,
    PdCall,
    as_complex,
    read_call,
    widened,
    without_autocast,
)
from pdssm_compiler.choices import (
    CHOSEN_ALONG,
    SURROGATES,
    check_logits,
    check_sizes,
    one_temperature,
)
from pdssm_compiler.chosen_mixtures import read_selection
from pdssm_compiler.ir.ops.noise import gumbel_noise
from pdssm_compiler.mixture_arguments import check_numbers, read_mixture, read_noise
from pdssm_compiler.runtime.binding import check
from pdssm_compiler.runtime.choices import check_temperature
from pdssm_compiler.runtime.errors import ArgumentError, IndexRangeError, PromiseError
from pdssm_compiler.runtime.mixture import mixed_map
from pdssm_compiler.runtime.ops import slots_of
from pdssm_compiler.runtime.packing import check_offsets
from pdssm_compiler.runtime.plan import check_layouts, one_device
from pdssm_compiler.sequences import check_offset_tensor
from pdssm_compiler.spec import one_of

# (Dynamo does not trace a dtype's own to_real.)
_REAL = {pairs: real for real, pairs in PAIRS.items()}


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
    numbers: dict[str, Any] = {"diagonal": diagonal, "drive": drive}
    maps: dict[str, Any] = {"selection": selection, "destination": destination}
    others: dict[str, Any] = {
        "dictionary": dictionary,
        "map_class": map_class,
        "orientation": orientation,
        "output_final_state": output_final_state,
        "reverse": reverse,
    }
    if cu_seqlens is not None:
        return _one_by_one(cu_seqlens, numbers, maps, initial_state, **others)
    return _scan(**numbers, **maps, **others, initial_state=initial_state)


def _scan(
    diagonal: torch.Tensor,
    drive: torch.Tensor,
    dictionary: torch.Tensor | None = None,
    selection: torch.Tensor | None = None,
    destination: torch.Tensor | None = None,
    map_class: str = "general",
    orientation: str = "column",
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    chosen: torch.Tensor | None = None,
    matrices: torch.Tensor | None = None,
    token_matrices: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One stretch of tokens.

    Args: as :func:`pd_scan`, and where the maps are numbers with gradients
        chosen: the one-hot forms of the selection, ``[B, T, H, K]``.
        matrices: those of the dictionary, ``[H, K, N, N]``.
        token_matrices: a matrix a token, ``[B, T, H, N, N]``, one-hot or not.
    """
    call = _checked(
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
    # All at once: the gradient of d[:, t] would be as large as d, for every t.
    ds, bs = d.unbind(1), b.unbind(1)
    chosens = None if chosen is None else chosen.unbind(1)
    tokens = None if token_matrices is None else token_matrices.unbind(1)
    for t in reversed(range(length)) if reverse else range(length):
        if tokens is not None:
            state = _moved(tokens[t].to(state.dtype), ds[t], state, orientation) + bs[t]
            states.append(state)
            continue
        if chosens is not None and matrices is not None:
            matrix = torch.einsum("bhk,hkij->bhij", chosens[t], matrices).to(state.dtype)
            state = _moved(matrix, ds[t], state, orientation) + bs[t]
            states.append(state)
            continue
        if dictionary is not None and selection is not None:
            p = dictionary[head, selection[:, t].long()].long()  # [B, H, N]
        elif destination is not None:
            p = destination[:, t].long()  # [B, H, N]
        else:
            p = torch.arange(size, device=b.device).expand(batch, heads, size)
        if orientation == "column":
            moved = torch.zeros_like(state).scatter_add(-1, p, ds[t] * state)
        else:
            moved = ds[t] * state.gather(-1, p)
        state = moved + bs[t]
        states.append(state)
    states = states[::-1] if reverse else states

    out = torch.stack(states, dim=1) if states else b[:, :0].clone()
    final = state if output_final_state else None
    if not drive.is_complex():
        out = torch.view_as_real(out).to(drive.dtype)
        final = None if final is None else torch.view_as_real(final)
    return out, final


def _checked(*given: Any) -> PdCall:
    """:func:`read_call`, and what an operator checks besides."""
    call = read_call(*given)
    # Dynamo does not trace what reads a program; of what is wrong torch then speaks itself.
    if not torch.compiler.is_compiling():
        check_layouts(call.text, call.tensors)
        one_device(call.text, call.tensors)
        check(slots_of(call.text)[0], call.tensors)
    return call


def _moved(
    matrix: torch.Tensor, diagonal: torch.Tensor, state: torch.Tensor, orientation: str
) -> torch.Tensor:
    """What a token makes of the state, by its matrix ``[B, H, N, N]``."""
    if orientation == "column":
        return (matrix @ (diagonal * state).unsqueeze(-1)).squeeze(-1)
    return diagonal * (matrix @ state.unsqueeze(-1)).squeeze(-1)


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
    found = [_scan(**{name: tensor[:, :0] for name, tensor in by_token.items()}, **others)]
    offsets = cu_seqlens.tolist()
    for number, (begin, end) in enumerate(itertools.pairwise(offsets)):
        tokens = {name: tensor[:, begin:end] for name, tensor in by_token.items()}
        start = None if initial_state is None else initial_state[number : number + 1]
        found.append(_scan(**tokens, **others, initial_state=start))
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

    Choices are written as one-hot matrices and vectors that have the gradient of a softmax. The
    dense surrogate takes them as they are, so autograd keeps a matrix a token. Of the active one
    only the ones count, and those of ``P_t`` multiply the diagonal, so they are written there. (A
    NaN among the logits is not looked for.)
    """
    surrogate = one_of("surrogate", surrogate, SURROGATES)
    orientation = one_of("orientation", orientation, tuple(CHOSEN_ALONG))
    check_logits("dictionary_logits", dictionary_logits, "[H, K, N, N]")
    check_logits("selector_logits", selector_logits, "[B, T, H, K]")
    check_sizes(dictionary_logits, selector_logits, "selector_logits", drive, "[H, K, N, N]")
    one_temperature(temperature, selector_logits)
    diagonal = widened(diagonal)
    initial_state = None if initial_state is None else widened(initial_state)
    along = CHOSEN_ALONG[orientation]
    dictionary, matrices = _chosen(dictionary_logits, along, temperature)  # [H, K, N]
    selection, chosen = _chosen(selector_logits, -1, temperature)  # [B, T, H]
    numbers: dict[str, Any] = {"diagonal": diagonal, "drive": drive}
    of_tokens: dict[str, Any] = {"selection": selection}
    others: dict[str, Any] = {
        "dictionary": dictionary,
        "orientation": orientation,
        "output_final_state": output_final_state,
        "reverse": reverse,
    }
    if surrogate == "dense":
        of_tokens["chosen"] = chosen
        others["matrices"] = matrices
    else:
        # Before the diagonal is another one.
        maps = (dictionary, selection, None, "general", orientation, None, False)
        _checked(diagonal, drive, *maps)
        ones_of_maps = matrices.gather(along, dictionary.unsqueeze(along)).squeeze(along)
        ones_of_tokens = chosen.gather(-1, selection.unsqueeze(-1))  # [B, T, H, 1]
        head = torch.arange(dictionary.shape[0], device=dictionary.device)
        ones = ones_of_tokens * ones_of_maps[head, selection]  # [B, T, H, N]
        numbers["diagonal"] = _complex(diagonal, diagonal.dtype) * ones
    if cu_seqlens is not None:
        return _one_by_one(cu_seqlens, numbers, of_tokens, initial_state, **others)
    return _scan(**numbers, **of_tokens, **others, initial_state=initial_state)


def _chosen(
    logits: torch.Tensor, dim: int, temperature: float | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The place of the largest logit, and its one-hot form, straight through a softmax."""
    place = logits.argmax(dim)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    soft = torch.softmax(logits.to(wide) / temperature, dim)
    hard = torch.zeros_like(soft).scatter(dim, place.unsqueeze(dim), 1.0)
    # Zeros and ones exactly, which (hard - soft).detach() + soft is but for rounding.
    return place, soft - soft.detach() + hard


def mixture_pd_scan(
    dictionary_logits: torch.Tensor,
    mixture_weights: torch.Tensor,
    diagonal: torch.Tensor,
    drive: torch.Tensor,
    *,
    selection: torch.Tensor | None = None,
    temperature: float | torch.Tensor = 1.0,
    choice: str = "hard",
    noise: float | torch.Tensor = 0.0,
    seed: int | torch.Tensor | None = None,
    orientation: str = "column",
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """:func:`pdssm_compiler.mixture_pd_scan`, token by token in torch, its matrices written out.

    ``M_t`` of all tokens is there, ``[B, T, H, N, N]``, and autograd keeps it; noise is drawn by
    NumPy and added to it. With ``selection`` every token's weights are looked up. (A NaN is not
    looked for.)

    Args: as there, and
        choice: ``"hard"``, or ``"soft"``: the matrices are ``softmax(M_t / τ)`` themselves, and no
            maps; every token multiplies the state by one, and the gradient is theirs.
    """
    choice = one_of("choice", choice, ("hard", "soft"))
    diagonal = widened(diagonal)
    initial_state = None if initial_state is None else widened(initial_state)
    if selection is not None:
        selection = read_selection(selection, drive, choice == "soft", noise)
        _in_range("selection", selection, len(mixture_weights))
        head = torch.arange(selection.shape[2], device=selection.device)
        by_head = mixture_weights.dim() == 3
        mixture_weights = (
            mixture_weights[selection.long(), head]
            if by_head
            else mixture_weights[selection.long()]
        )
    mixed = read_mixture(dictionary_logits, mixture_weights, drive, temperature, orientation)
    check_numbers(diagonal, drive, initial_state, cu_seqlens is not None)
    mixed = mixed._replace(noise=read_noise(noise, seed, mixed.weights, choice))
    along = -2 if orientation == "column" else -1
    # What is traced has no value to look at.
    if choice == "soft" and not torch.compiler.is_compiling():
        check_temperature(mixed.temperature, mixed.weights.dtype)
    # Autocast would round both to bfloat16 first.
    with without_autocast(mixed.weights.device.type):
        product = torch.einsum("bthk,hkij->bthij", mixed.weights, mixed.dictionary)
    if mixed.noise:
        scale, drawn, draw = mixed.noise
        gumbel = gumbel_noise(
            product.shape[-1], orientation, drawn.cpu().numpy(), draw.cpu().numpy()
        )
        product = product + scale * torch.as_tensor(gumbel).to(product)
    matrices = torch.softmax(product / mixed.temperature, along)
    if choice == "hard":
        place = mixed_map(
            mixed.weights.detach(),
            mixed.dictionary.detach(),
            list(mixed.noise) or None,
            orientation,
        )
        place = place.long().unsqueeze(along)
        hard = torch.zeros_like(matrices).scatter(along, place, 1.0)
        matrices = matrices - matrices.detach() + hard
    numbers: dict[str, Any] = {"diagonal": diagonal, "drive": drive}
    of_tokens: dict[str, Any] = {"token_matrices": matrices}
    others: dict[str, Any] = {
        "orientation": orientation,
        "output_final_state": output_final_state,
        "reverse": reverse,
    }
    if cu_seqlens is not None:
        return _one_by_one(cu_seqlens, numbers, of_tokens, initial_state, **others)
    return _scan(**numbers, **of_tokens, **others, initial_state=initial_state)


def _complex(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Real pairs ``[..., 2]``, in the precision of a dtype, as complex numbers."""
    if tensor.is_complex():
        return tensor
    return torch.view_as_complex(tensor.to(_REAL.get(dtype, dtype)).contiguous())


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
