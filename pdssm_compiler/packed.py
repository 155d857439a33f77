"""``pd_scan`` over packed sequences; see :mod:`pdssm_compiler.sequences`."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from pdssm_compiler.arguments import PdCall, as_complex, read_call, truth
from pdssm_compiler.runtime.binding import check
from pdssm_compiler.runtime.dispatch import call, refuse_unsupported
from pdssm_compiler.runtime.mixture import Mixture, call_mixed
from pdssm_compiler.runtime.ops import slots_of
from pdssm_compiler.runtime.plan import one_device
from pdssm_compiler.sequences import Sequences
from pdssm_compiler.spec import PAYLOADS


class PackedCall(NamedTuple):
    """The arguments of a call; see :func:`pdssm_compiler.pd_scan`."""

    diagonal: torch.Tensor
    drive: torch.Tensor
    dictionary: torch.Tensor | None
    selection: torch.Tensor | None
    destination: torch.Tensor | None
    map_class: str
    orientation: str
    initial_state: torch.Tensor | None
    output_final_state: bool
    reverse: bool
    cu_seqlens: torch.Tensor


def scan_packed(
    given: PackedCall,
    entries: Sequence[torch.Tensor] = (),
    config: str = "",
    mixed: Mixture | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """States, and the final states ``[S, H, N]`` or None.

    Args:
        given: the call.
        entries: where gradients of hard choices arrive, of the dictionary and the selection.
        config: an explicit schedule, or "".
        mixed: what the maps a token are mixed from, where they are.

    Raises:
        ArgumentError: a wrong shape, dtype, device or option.
        OffsetError: offsets that do not cut ``T`` tokens into sequences; on a GPU raised by a
            later call, or by :func:`pdssm_compiler.check`.
    """
    reverse = truth("reverse", given.reverse)
    wants_final = truth("output_final_state", given.output_final_state)
    given = given._replace(diagonal=as_complex("diagonal", given.diagonal, 4), reverse=reverse)
    sequences = Sequences(given.cu_seqlens, given.diagonal, reverse)
    start = given.initial_state
    start = None if start is None else sequences.start(start, given.diagonal)
    request = as_told = _read(given, sequences)
    if (start is not None or wants_final) and given.diagonal.shape[1] > 0:
        if not torch.compiler.is_compiling():
            _check_sizes(request)
        # States that are carried on are not rounded to what the others are stored in.
        if start is None:
            drive = _widened(given.drive)
        else:
            drive = given.drive
            drive = drive if drive.dtype in PAYLOADS else as_complex("drive", drive, 4)
            drive = sequences.begun(drive, _moved(given, start, sequences, entries, mixed))
        request = _read(given._replace(drive=drive), sequences)
    if entries:
        # In the order of the program's inputs: dictionary, follows, selection.
        entries = (entries[0], sequences.entry(entries[1]), entries[1])
    if mixed is None:
        states = call(request.text, request.tensors, config, entries)[0]
    else:
        states = call_mixed(request.text, request.tensors, mixed)[0]
    final: torch.Tensor | None = None
    if wants_final:
        start = sequences.zero(given.diagonal) if start is None else start
        final = sequences.final(states, start)
    if not as_told.as_pairs:
        return states, final
    if states.is_complex():
        states = torch.view_as_real(states).to(given.drive.dtype)
    return states, None if final is None else torch.view_as_real(final)


def _read(given: PackedCall, sequences: Sequences) -> PdCall:
    """The program and its inputs; the states at the ends of sequences are none of them."""
    return read_call(*given[:7], None, False, given.reverse, sequences.follows)


def _check_sizes(request: PdCall) -> None:
    """What the operator checks, before torch meets what does not fit and has words of its own."""
    refuse_unsupported(request.text, request.tensors)
    one_device(request.text, request.tensors)
    check(slots_of(request.text)[0], request.tensors)


def _widened(drive: torch.Tensor) -> torch.Tensor:
    """A low-precision drive as complex64; others as they are."""
    if drive.dtype not in PAYLOADS:
        return drive
    return torch.view_as_complex(drive.float().contiguous())


def _moved(
    given: PackedCall,
    start: torch.Tensor,
    sequences: Sequences,
    entries: Sequence[torch.Tensor],
    mixed: Mixture | None,
) -> torch.Tensor:
    """What the first token of each sequence makes of its initial state, ``[S, H, N]``.

    That token alone, for all sequences: a scan of ``[S, 1, H, N]``.
    """

    def at_first(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else sequences.first_tokens(tensor)

    diagonal = sequences.first_tokens(given.diagonal)
    request = read_call(
        diagonal,
        diagonal.new_zeros(()).expand(diagonal.shape),
        given.dictionary,
        at_first(given.selection),
        at_first(given.destination),
        given.map_class,
        given.orientation,
        sequences.moving(start),
        False,
    )
    if mixed is not None:
        first = mixed._replace(weights=sequences.first_tokens(mixed.weights))
        if mixed.noise:
            scale, seed, draw = mixed.noise
            first = first._replace(noise=(scale, seed, sequences.first_tokens(draw)))
        return call_mixed(request.text, request.tensors, first)[0].squeeze(1)
    choices = (entries[0], sequences.first_tokens(entries[1])) if entries else ()
    return call(request.text, request.tensors, "", choices)[0].squeeze(1)
