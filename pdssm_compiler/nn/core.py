"""The core of :class:`pdssm_compiler.nn.FlashPDSSM` in one kernel: diagonal, scan, read-out, gate.

What :func:`pdssm_compiler.compile` makes of :func:`diagonal` and :func:`readout`, for any device
and under ``torch.compile``. Neither diagonals nor states are written; for the backward the states
before segments of tokens are kept, and no others. See ``docs/fusion.md``.
"""

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch.nn import functional

from pdssm_compiler.arguments import PAIRS, as_complex, read_drive
from pdssm_compiler.choices import choose
from pdssm_compiler.fusion.inputs import InputSpec, input_name
from pdssm_compiler.fusion.trace import trace
from pdssm_compiler.ir.programs import pd_scan
from pdssm_compiler.nn.packed_core import mixer_core
from pdssm_compiler.nn.precision import wide
from pdssm_compiler.runtime.choices import hard_choice
from pdssm_compiler.runtime.dispatch import call_in_segments, refuse_transforms
from pdssm_compiler.runtime.one_line import one_line
from pdssm_compiler.runtime.tracing import constant
from pdssm_compiler.sequences import Sequences
from pdssm_compiler.spec import PAYLOADS, ScanSpec


def diagonal(delta, phase, bias, rate):  # type: ignore[no-untyped-def]
    """``D``, from tensors or from what stands in for them; ``rate`` is ``exp(a_log)``."""
    return torch.polar(torch.exp(-functional.softplus(delta + bias) * rate), phase)


def readout(x, c, skip, u, gate):  # type: ignore[no-untyped-def]
    """What the states give: read-out, skip and gate."""
    return ((c * x).real + skip * u) * functional.silu(gate)


def mix(
    numbers: Mapping[str, torch.Tensor],
    drive: torch.Tensor,
    dictionary_logits: torch.Tensor,
    selector_logits: torch.Tensor,
    *,
    temperature: torch.Tensor,
    surrogate: str,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Everything between a token's projections and the output projection.

    Args:
        numbers: what the two expressions read, by their parameters: in the drive's dtype ``c``
            ``[B, T, H, N, 2]``, ``delta``, ``phase``, ``u`` and ``gate`` ``[B, T, H, N]``; in
            float32, or float64 of float64, ``bias``, ``rate`` and ``skip`` ``[H, N]``.
        drive: ``[B, T, H, N, 2]``.
        dictionary_logits: as in :func:`pdssm_compiler.flash_pd_scan`.
        selector_logits: likewise.
        temperature: likewise.
        surrogate: likewise.
        initial_state: float32 or float64 ``[B, H, N, 2]``; not of packed sequences.
        output_final_state: whether the last state is wanted; not of packed sequences.
        cu_seqlens: offsets of packed sequences, with ``B = 1``.

    Returns:
        ``(y, final_state)``: ``[B, T, H, N]`` in the drive's dtype, and ``[B, H, N, 2]`` or None.

    Raises:
        ArgumentError, NanLogitError, OffsetError: as ``flash_pd_scan``.
    """
    dtype = drive.dtype
    payload = dtype if dtype in PAYLOADS else None
    size, maps = drive.shape[3], selector_logits.shape[3]
    drive, _ = read_drive(drive, PAIRS[wide(dtype)], payload)
    chosen = choose(dictionary_logits, selector_logits, drive, temperature, surrogate, "column")
    read = {input_name(name): tensor for name, tensor in numbers.items()}
    read |= {"drive": drive, "dictionary": chosen.dictionary, "selection": chosen.selection}
    entries = {"dictionary": chosen.maps_used, "selection": chosen.tokens_used}
    if payload is None:
        read[input_name("c")] = as_complex("c", numbers["c"], 4)
    if initial_state is not None:
        read["initial_state"] = as_complex("initial_state", initial_state, 3)
    if cu_seqlens is not None:
        sequences = Sequences(cu_seqlens, drive, False)
        read["follows"] = sequences.follows
        entries["follows"] = sequences.entry(chosen.tokens_used)
    ends = (initial_state is not None, output_final_state, cu_seqlens is not None)
    text = _constant_text(size, maps, dtype, *ends)
    tensors = [read[name] for name in sorted(read)]
    outputs = call_in_segments(
        text, tensors, "", None, [entries[name] for name in sorted(entries)]
    )
    return outputs[0], torch.view_as_real(outputs[1]) if output_final_state else None


def mix_packed(
    numbers: Mapping[str, torch.Tensor],
    projection: torch.Tensor,
    dictionary_logits: torch.Tensor,
    *,
    temperature: torch.Tensor,
    surrogate: str,
    entries: tuple[torch.Tensor, torch.Tensor] | None = None,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """:func:`mix` of a token's whole projection, whose gradient is then one tensor.

    Args:
        numbers: as there, without ``c``, ``delta`` and ``phase``.
        projection: bfloat16 or float16 ``[B, T, 6·H·N + H·K]``: drive, ``c``, ``delta``,
            ``phase`` and the selector's logits.
        dictionary_logits: as there, as the rest.
        temperature: likewise.
        surrogate: likewise.
        entries: where the gradients of ``u`` and ``gate`` arrive in their places; None for
            themselves.
        initial_state: as there.
        output_final_state: likewise.

    Returns:
        As there.

    Raises:
        ArgumentError, NanLogitError: as there.
    """
    dense = surrogate == "dense"
    # Before the choice, which would take a tangent for 0.
    if not torch.compiler.is_compiling():
        refuse_transforms((dictionary_logits, projection))
    maps_used, dictionary = hard_choice(
        dictionary_logits, -2, temperature, "dictionary_logits", dense
    )
    read = {input_name(name): tensor for name, tensor in numbers.items()}
    read["dictionary"] = dictionary
    used = [maps_used]
    if entries is not None:
        read |= {input_name(name): numbers[name].detach() for name in ("u", "gate")}
        used += entries
    if initial_state is not None:
        read["initial_state"] = as_complex("initial_state", initial_state, 3)
    _, maps, size, _ = dictionary_logits.shape
    ends = (initial_state is not None, output_final_state, False)
    text = _constant_text(size, maps, projection.dtype, *ends)
    others = [read[name] for name in sorted(read)]
    outputs = mixer_core(one_line(text), projection, others, used, temperature, dense)
    return outputs[0], torch.view_as_real(outputs[1]) if output_final_state else None


@constant
def _constant_text(
    state_size: int, maps: int, dtype: torch.dtype, initial: bool, final: bool, packed: bool
) -> str:
    """The program's text; a compiler that traces the call asks once."""
    return program_text(state_size, maps, dtype, initial, final, packed)


@lru_cache(maxsize=256)
def program_text(
    state_size: int, maps: int, dtype: torch.dtype, initial: bool, final: bool, packed: bool
) -> str:
    """The program of a core that computes on a dtype: whether it starts from a state, gives the
    last, and runs packed sequences.
    """
    payload = dtype if dtype in PAYLOADS else None
    complex_ = PAIRS[wide(dtype)]
    of_tokens, of_heads = InputSpec(dtype=dtype), InputSpec("HN", wide(dtype))
    inputs = dict.fromkeys(("delta", "phase", "u", "gate"), of_tokens)
    inputs |= dict.fromkeys(("bias", "rate", "skip"), of_heads)
    inputs["c"] = InputSpec(
        dtype=complex_ if payload is None else dtype, pairs=payload is not None
    )
    spec = ScanSpec(state_size, maps, dtype=complex_, payload_dtype=payload)
    fusion = trace(spec, diagonal, readout, inputs).fusion
    options = spec.program_spec(initial_state=initial, final_state=final, packed=packed)
    return pd_scan(options, fusion).text
