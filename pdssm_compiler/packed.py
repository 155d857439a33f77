"""Scans over packed sequences: several, of any lengths, one after the other along ``T``.

A program that is packed begins anew, from zero, where a sequence does
(:class:`~pdssm_compiler.ir.programs.PdScan`), so every template and every derived adjoint runs it
as any other. What a sequence starts from is added to the drive of its first token, and what it
ends in is read from the states of its last one: both in torch, a row a sequence.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from pdssm_compiler.arguments import PdCall, as_complex, check_tensor, read_call, truth
from pdssm_compiler.runtime.binding import check
from pdssm_compiler.runtime.dispatch import call
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.ops import slots_of
from pdssm_compiler.runtime.packing import follows
from pdssm_compiler.runtime.plan import check_layouts, one_device
from pdssm_compiler.spec import PAYLOADS

Results = tuple[torch.Tensor, torch.Tensor | None]


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


class _Edges(NamedTuple):
    """Where sequences begin and end in the order of time, each ``[S]``; an empty one, anywhere."""

    first: torch.Tensor
    last: torch.Tensor
    empty: torch.Tensor


def scan_packed(
    given: PackedCall, entries: Sequence[torch.Tensor] = (), config: str = ""
) -> Results:
    """States, and the final states ``[S, H, N]`` or None.

    Args:
        given: the call.
        entries: where gradients of hard choices arrive, of the dictionary and the selection.
        config: an explicit schedule, or "".

    Raises:
        ArgumentError: a wrong shape, dtype, device or option.
        OffsetError: offsets that do not cut ``T`` tokens into sequences; on a GPU raised by a
            later call, or by :func:`pdssm_compiler.check`.
    """
    given = _checked(given)
    shape = given.diagonal.shape[:3]
    begins = follows(given.cu_seqlens, shape[1], given.reverse)
    begins = begins[None, :, None].expand(shape)  # [1, T, H]
    request = _read(given, begins)
    drive, ends = given.drive, given.initial_state is not None or given.output_final_state
    edges: _Edges | None = None
    if ends and shape[1] > 0:
        edges = _edges(given)
        if not torch.compiler.is_compiling():
            _check_sizes(request)
        # States that are carried on are not rounded to what the others are stored in.
        drive = _widened(drive)
        if given.initial_state is not None:
            drive = _started(given, drive, edges, entries)
    tensors = request if drive is given.drive else _read(given._replace(drive=drive), begins)
    # In the order of the program's inputs: dictionary, follows, selection.
    choices = [entries[0], drive.new_ones(()).real.expand(shape), entries[1]] if entries else ()
    states = call(tensors.text, tensors.tensors, config, choices)[0]
    final = _final(given, states, edges) if given.output_final_state else None
    if request.as_pairs:
        if states.is_complex():
            states = torch.view_as_real(states).to(given.drive.dtype)
        final = None if final is None else torch.view_as_real(final)
    return states, final


def _check_sizes(request: PdCall) -> None:
    """What the operator checks, before torch meets what does not fit and has words of its own."""
    check_layouts(request.text, request.tensors)
    one_device(request.text, request.tensors)
    check(slots_of(request.text)[0], request.tensors)


def _read(given: PackedCall, begins: torch.Tensor) -> PdCall:
    """The program and its inputs; the states at the ends of sequences are none of them."""
    return read_call(*given[:7], None, False, given.reverse, begins)


def _checked(given: PackedCall) -> PackedCall:
    """What is particular to packed sequences, checked; numbers as complex ones."""
    diagonal = as_complex("diagonal", given.diagonal, 4)
    check_offset_tensor(given.cu_seqlens, diagonal)
    start = given.initial_state
    if start is not None:
        start = as_complex("initial_state", start, 3)
        want = (given.cu_seqlens.shape[0] - 1, *diagonal.shape[2:])
        if start.shape != want:
            raise ArgumentError(
                f"initial_state of packed sequences must have the shape [S, H, N] = "
                f"{list(want)}, got {list(start.shape)}; cu_seqlens has S + 1 entries"
            )
        if start.dtype != diagonal.dtype or start.device != diagonal.device:
            raise ArgumentError(
                f"initial_state must be {diagonal.dtype} on {diagonal.device} like diagonal, got "
                f"{start.dtype} on {start.device}; convert it with .to()"
            )
    return given._replace(
        diagonal=diagonal,
        initial_state=start,
        output_final_state=truth("output_final_state", given.output_final_state),
        reverse=truth("reverse", given.reverse),
    )


def check_offset_tensor(cu_seqlens: torch.Tensor, tokens: torch.Tensor) -> None:
    """Refuse what cannot hold the offsets of a scan's tokens ``[1, T, H, …]``.

    Raises:
        ArgumentError: another dtype, shape or device, or a batch.
    """
    check_tensor("cu_seqlens", cu_seqlens)
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ArgumentError(
            f"cu_seqlens must be int32 or int64, got {cu_seqlens.dtype}; convert it with .to()"
        )
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ArgumentError(
            f"cu_seqlens must have the shape [S + 1] for S sequences, got "
            f"{list(cu_seqlens.shape)}; it holds where each begins, and behind them T"
        )
    if cu_seqlens.device != tokens.device:
        raise ArgumentError(
            f"cu_seqlens is on {cu_seqlens.device} and diagonal on {tokens.device}; move it there"
        )
    if tokens.shape[0] != 1:
        raise ArgumentError(
            f"packed sequences lie along T of one row, so B must be 1, got {tokens.shape[0]}; "
            f"reshape [B, T, …] to [1, B * T, …] and give each row its offsets"
        )


def _edges(given: PackedCall) -> _Edges:
    """Offsets that are wrong give places within ``T`` all the same."""
    offsets, tokens = given.cu_seqlens.long(), given.diagonal.shape[1]
    begin, end = offsets[:-1], offsets[1:]
    ends = (begin.clamp(0, tokens - 1), (end - 1).clamp(0, tokens - 1))
    return _Edges(*(ends[::-1] if given.reverse else ends), end <= begin)


def _widened(drive: torch.Tensor) -> torch.Tensor:
    """A low-precision drive as complex64; others as they are."""
    if drive.dtype not in PAYLOADS:
        return drive
    return torch.view_as_complex(drive.float().contiguous())


def _started(
    given: PackedCall, drive: torch.Tensor, edges: _Edges, entries: Sequence[torch.Tensor]
) -> torch.Tensor:
    """The drive, with what each sequence's first token makes of its initial state.

    That token alone, for all sequences: a scan of ``[S, 1, H, N]``.
    """
    drive = as_complex("drive", drive, 4)

    def at_first(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor[0].index_select(0, edges.first).unsqueeze(1)

    diagonal = at_first(given.diagonal)
    assert diagonal is not None
    request = read_call(
        diagonal,
        drive.new_zeros(()).expand(diagonal.shape),
        given.dictionary,
        at_first(given.selection),
        at_first(given.destination),
        given.map_class,
        given.orientation,
        given.initial_state,
        False,
    )
    choices = [entries[0], at_first(entries[1])] if entries else ()
    moved = call(request.text, request.tensors, "", choices)[0].squeeze(1)  # [S, H, N]
    moved = torch.where(edges.empty[:, None, None], 0, moved)
    return drive.index_add(1, edges.first, moved.unsqueeze(0))


def _final(given: PackedCall, states: torch.Tensor, edges: _Edges | None) -> torch.Tensor:
    """The state after each sequence; of an empty one, its initial state."""
    start = given.initial_state
    if start is None:
        heads, size = given.diagonal.shape[2:]
        sequences = given.cu_seqlens.shape[0] - 1
        start = given.diagonal.new_zeros(()).expand(sequences, heads, size)
    if edges is None:
        return start.clone(memory_format=torch.contiguous_format)
    reached = states[0].index_select(0, edges.last)
    return torch.where(edges.empty[:, None, None], start, reached)
