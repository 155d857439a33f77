"""The arguments of a PD scan: what a call means, found from its tensors.

Every check a user can trip over before a kernel runs is here or in
:mod:`pdssm_compiler.runtime.binding`, which compares the sizes.
"""

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import torch

from pdssm_compiler.ir.errors import shown
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.ir.types import MAP_CLASSES
from pdssm_compiler.runtime.binding import check_layout
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.tracing import constant
from pdssm_compiler.spec import ELEMENTS, MAP_DTYPES, PAYLOADS, one_of

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

# The complex dtype of pairs of reals. (Dynamo does not trace a dtype's own to_complex.)
PAIRS = {torch.float32: torch.complex64, torch.float64: torch.complex128}


class PdCall(NamedTuple):
    """A checked call.

    Attributes:
        spec: the program it needs.
        text: the program's text form.
        tensors: the program's inputs, in order.
        as_pairs: whether the results go back as real ``[..., 2]``.
    """

    spec: PdScan
    text: str
    tensors: list[torch.Tensor]
    as_pairs: bool


@lru_cache(maxsize=4096)
def _text(spec: PdScan) -> str:
    return pd_scan(spec).text


@constant
def _constant_text(*fields: int | str | bool | None) -> str:
    """The text for a traced call."""
    return _text(PdScan(*fields))  # type: ignore[arg-type]


def _static(size: int) -> int:
    """A size that is compiled in, as a constant: multiplying a list makes Dynamo guard on it."""
    return len([None] * size)


def text_of(spec: PdScan) -> str:
    """The text form of a PD scan's program."""
    if torch.compiler.is_compiling():
        return _constant_text(
            _static(spec.state_size),
            None if spec.dictionary_size is None else _static(spec.dictionary_size),
            spec.element,
            spec.map_source,
            spec.map_class,
            spec.orientation,
            spec.initial_state,
            spec.final_state,
            spec.diagonal_storage,
            spec.payload_storage,
            spec.map_storage,
            spec.selection_storage,
            None,
            spec.reverse,
            spec.packed,
            spec.states_storage,
        )
    return _text(spec)


# What a call with these dtypes, ranks, sizes and options needs; complex tensors only.
_seen: dict[tuple[Hashable, ...], tuple[PdScan, str]] = {}


def read_call(
    diagonal: torch.Tensor,
    drive: torch.Tensor,
    dictionary: torch.Tensor | None,
    selection: torch.Tensor | None,
    destination: torch.Tensor | None,
    map_class: str,
    orientation: str,
    initial_state: torch.Tensor | None,
    output_final_state: bool,
    reverse: bool = False,
    follows: torch.Tensor | None = None,
    states_storage: str | None = None,
) -> PdCall:
    """Check a call and say what it needs; a call like an earlier one is recognised.

    Args: as :func:`pdssm_compiler.pd_scan`, and
        follows: of packed sequences, int32 ``[1, T, H]``.
        states_storage: how the states of a low-precision drive are stored; None for as the drive.

    Raises:
        ArgumentError: what is wrong, with which argument, and the remedy.
    """
    key: tuple[Hashable, ...] | None = None
    if not torch.compiler.is_compiling():
        try:
            key = (
                diagonal.dtype,
                diagonal.shape[3:],
                drive.dtype,
                drive.dim(),
                None if dictionary is None else (dictionary.dtype, dictionary.shape[1:]),
                None if selection is None else (selection.dtype, selection.dim()),
                None if destination is None else (destination.dtype, destination.dim()),
                None if initial_state is None else (initial_state.dtype, initial_state.dim()),
                map_class,
                orientation,
                output_final_state,
                reverse,
                follows is None,
                states_storage,
            )
            seen = _seen.get(key)
        except (AttributeError, TypeError, RuntimeError):
            # Not tensors, or not dense ones: said properly below.
            key = seen = None
        if seen is not None:
            spec, text = seen
            given = (diagonal, drive, dictionary, selection, destination, initial_state, follows)
            return PdCall(spec, text, _in_order(*given), False)
    given = (diagonal, drive, dictionary, selection, destination, initial_state, follows)
    diagonal, drive, payload, as_pairs = _numbers(diagonal, drive)
    map_class = one_of("map_class", map_class, MAP_CLASSES)
    orientation = one_of("orientation", orientation, ("column", "row"))
    source, size, maps, chosen = read_maps(dictionary, selection, destination)
    if initial_state is not None:
        initial_state = as_complex("initial_state", initial_state, 3)
    spec = PdScan(
        diagonal.shape[3],
        size,
        ELEMENTS[diagonal.dtype],
        source,  # type: ignore[arg-type]
        map_class if source != "none" else "general",  # type: ignore[arg-type]
        orientation,  # type: ignore[arg-type]
        initial_state is not None,
        truth("output_final_state", output_final_state),
        "",
        payload,
        maps,
        chosen,
        None,
        truth("reverse", reverse),
        follows is not None,
        states_storage if payload else None,
    )
    read = (diagonal, drive, dictionary, selection, destination, initial_state, follows)
    request = PdCall(spec, text_of(spec), _in_order(*read), as_pairs)
    unchanged = all(mine is theirs for mine, theirs in zip(read, given, strict=True))
    if key is not None and unchanged and not as_pairs:
        _seen[key] = (spec, request.text)
    return request


def _in_order(
    diagonal: torch.Tensor,
    drive: torch.Tensor,
    dictionary: torch.Tensor | None,
    selection: torch.Tensor | None,
    destination: torch.Tensor | None,
    initial_state: torch.Tensor | None,
    follows: torch.Tensor | None,
) -> list[torch.Tensor]:
    """The program's inputs, which stand in alphabetical order."""
    tensors = [destination, diagonal, dictionary, drive, follows, initial_state, selection]
    return [tensor for tensor in tensors if tensor is not None]


def _numbers(
    diagonal: torch.Tensor, drive: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, str, bool]:
    """The two as the program reads them, the storage of the drive, and whether it is pairs."""
    diagonal = as_complex("diagonal", diagonal, 4)
    if diagonal.shape[3] == 0:
        raise ArgumentError(
            "the state size N is 0: diagonal needs at least one state, [B, T, H, N]"
        )
    if isinstance(drive, torch.Tensor) and drive.dtype in PAYLOADS:
        check_layout("drive", drive)
        _rank("drive", drive, 5)
        if diagonal.dtype != torch.complex64:
            raise ArgumentError(
                f"a {drive.dtype} drive goes with a float32 diagonal, got {diagonal.dtype}; "
                f"convert one with .to()"
            )
        return diagonal, drive, PAYLOADS[drive.dtype], True
    as_pairs = isinstance(drive, torch.Tensor) and not drive.is_complex()
    drive = as_complex("drive", drive, 4)
    if drive.dtype != diagonal.dtype:
        raise ArgumentError(
            f"diagonal and drive must have one precision, got {diagonal.dtype} and "
            f"{drive.dtype}; convert one with .to()"
        )
    return diagonal, drive, "", as_pairs


def read_drive(
    drive: torch.Tensor, dtype: torch.dtype, payload: torch.dtype | None
) -> tuple[torch.Tensor, bool]:
    """The drive of a scan of these dtypes as the program reads it, and whether it is pairs.

    Raises:
        ArgumentError: not a dense tensor, another dtype, or another rank.
    """
    if payload is None:
        as_pairs = isinstance(drive, torch.Tensor) and not drive.is_complex()
        drive = as_complex("drive", drive, 4)
        if drive.dtype != dtype:
            raise ArgumentError(
                f"drive must be {dtype}, or pairs of that precision, got {drive.dtype}; convert "
                f"it with .to()"
            )
        return drive, as_pairs
    check_tensor("drive", drive)
    if drive.dtype != payload:
        raise ArgumentError(
            f"drive must be {payload}, the payload_dtype, got {drive.dtype}; convert it with .to()"
        )
    _rank("drive", drive, 5)
    return drive, True


def truth(name: str, value: object) -> bool:
    """An option that is on or off: what is equal to neither, such as a word, is refused."""
    try:
        if value in (False, True):
            return bool(value)
        told = shown(value)
    except (ValueError, RuntimeError, TypeError):
        # An array has no truth value.
        told = type(value).__name__
    raise ArgumentError(f"{name} must be True or False, got {told}; pass one of the two")


def check_tensor(name: str, value: object) -> None:
    """Refuse what is no tensor, or none with strides.

    Raises:
        ArgumentError: names the argument.
    """
    if not isinstance(value, torch.Tensor):
        raise ArgumentError(
            f"{name} must be a torch.Tensor, got {type(value).__name__}; torch.as_tensor makes one"
        )
    check_layout(name, value)


@constant
def has_autocast(device: str) -> bool:
    """Whether a type of device has autocast. Torch 2.11 does not trace its own function for it."""
    return torch.amp.is_autocast_available(device)


def under_autocast(device: str) -> bool:
    """Whether there is autocast on a type of device now."""
    return has_autocast(device) and torch.is_autocast_enabled(device)


def without_autocast(device: str) -> AbstractContextManager[object]:
    """No autocast; on devices that have none, such as ``meta``, there is none to leave."""
    return torch.autocast(device, enabled=False) if has_autocast(device) else nullcontext()


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """Under autocast, float32 for bfloat16 and float16; everything else as it is.

    What decays and what is carried is never narrower than float32: a scan is to autocast what
    ``cumsum`` is. Without autocast such a tensor is refused, with what to do.
    """
    if not isinstance(tensor, torch.Tensor) or tensor.dtype not in PAYLOADS:
        return tensor
    return tensor.float() if under_autocast(tensor.device.type) else tensor


def as_complex(name: str, tensor: torch.Tensor, rank: int) -> torch.Tensor:
    """A complex tensor from a complex one, or from a real one of pairs ``[..., 2]``, which may be
    in low precision under autocast.

    Raises:
        ArgumentError: not a dense tensor, another dtype, or another rank.
    """
    check_tensor(name, tensor)
    tensor = widened(tensor)
    if tensor.dtype in ELEMENTS:
        if tensor.dim() != rank:
            _rank(name, tensor, rank)
        return tensor
    if tensor.dtype not in PAIRS:
        raise ArgumentError(
            f"{name} has the unsupported dtype {tensor.dtype}: use torch.complex64 or "
            f"torch.complex128, or float32 or float64 pairs [..., 2]"
        )
    if tensor.dim() != rank + 1 or tensor.shape[-1] != 2:
        _rank(name, tensor, rank + 1)
    # view_as_complex wants pairs side by side, at even offsets.
    if torch.compiler.is_compiling():
        # Dynamo knows no offsets. A compiler writes the copy where it computes the numbers.
        return torch.view_as_complex(tensor.clone(memory_format=torch.contiguous_format))
    strides = tensor.stride()
    if strides[-1] != 1 or tensor.storage_offset() % 2 or any(s % 2 for s in strides[:-1]):
        tensor = tensor.contiguous().clone()
    return torch.view_as_complex(tensor)


def _rank(name: str, tensor: torch.Tensor, rank: int) -> None:
    axes = {3: "[B, H, N]", 4: "[B, T, H, N]", 5: "[B, T, H, N, 2]"}[rank]
    if rank == 4 and name == "initial_state":
        axes = "[B, H, N, 2]"
    last_is_pair = not axes.endswith("2]") or tensor.shape[-1:] == (2,)
    if tensor.dim() != rank or not last_is_pair:
        raise ArgumentError(
            f"{name} must have the shape {axes} for dtype {tensor.dtype}, got "
            f"{list(tensor.shape)}; reshape it"
        )


def read_maps(
    dictionary: torch.Tensor | None,
    selection: torch.Tensor | None,
    destination: torch.Tensor | None,
) -> tuple[str, int | None, str, str]:
    """Where the maps come from: source, ``K``, integer storages.

    Raises:
        ArgumentError: maps of two sources, half of one, or a wrong dtype or rank.
    """
    if destination is not None:
        if dictionary is not None or selection is not None:
            raise ArgumentError(
                "destination is given instead of dictionary and selection, not with them; leave "
                "out one or the others"
            )
        return "token", None, _integer("destination", destination, 4), "i32"
    if dictionary is None and selection is None:
        return "none", None, "i32", "i32"
    if dictionary is None or selection is None:
        named = ("dictionary", "selection")
        given, missing = named if selection is None else reversed(named)
        raise ArgumentError(f"{given} is given without {missing}; a scan needs both or neither")
    maps = _integer("dictionary", dictionary, 3)
    chosen = _integer("selection", selection, 3)
    size = dictionary.shape[1]
    if size == 0:
        raise ArgumentError("dictionary has no maps: its shape is [H, K, N] with K of at least 1")
    return "dictionary", size, maps, chosen


def _integer(name: str, tensor: torch.Tensor, rank: int) -> str:
    check_tensor(name, tensor)
    storage = MAP_DTYPES.get(tensor.dtype)
    if storage is None:
        raise ArgumentError(
            f"{name} has the unsupported dtype {tensor.dtype}: use uint8, int16, int32 or int64, "
            f"by .to()"
        )
    if tensor.dim() != rank:
        axes = {"dictionary": "[H, K, N]", "selection": "[B, T, H]"}.get(name, "[B, T, H, N]")
        raise ArgumentError(
            f"{name} must have the shape {axes}, got {list(tensor.shape)}; reshape it"
        )
    return storage
