"""The fused core on whole projections: two torch operators, forward and backward.

``mixer_core(str program, Tensor projection, Tensor[] others, Tensor[] entries, Tensor temperature,
bool dense) -> Tensor[]`` runs the program of :mod:`pdssm_compiler.nn.core` on ``projection``,
``[B, T, 6·d + H·K]``: a token's drive, read-out, ``δ``, ``φ`` and selector's logits beside one
another, as one matrix product leaves them. ``others`` are the program's other inputs, by name in
order; their gradients arrive at them, or at ``entries``: those of the dictionary's choices
(:mod:`pdssm_compiler.runtime.ops`), and, if there are more, of ``u`` and of the gate
(:mod:`pdssm_compiler.nn.convolution_op`). It gives the program's outputs, the boundaries of its
segments (:mod:`pdssm_compiler.runtime.segments`), and the selection, int32 ``[B, T, H]``.

The parts are read where they are, and ``mixer_core_backward`` writes their gradients into one
tensor, where the product's own backward reads them. As operators of their own each would leave a
tensor, which are then copied together: at 14 bytes a component, read and written, as much as the
backward of the scan moves.
"""

from collections.abc import Sequence
from typing import Any

import torch

from pdssm_compiler.ir.passes.adjoint import Surrogate
from pdssm_compiler.ir.program import Program
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.choices import (
    chosen_along_last,
    copy_for_backward,
    surrogate_gradient,
)
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.one_line import lines_of, of_one_line, one_line
from pdssm_compiler.runtime.operators import on_every_device, refuse_vmap
from pdssm_compiler.runtime.segmented import Named, Segmented, Tensors, segmented

# The inputs that stand in a projection, in order, and how many reals a component has of each.
PARTS = {"drive": 2, "in_c_": 2, "in_delta_": 1, "in_phase_": 1}
SELECTION = "selection"
# States of a segment on a GPU, 64 MiB of scratch in its backward: a quarter of what a scan by
# itself takes. At a width of 1024 and 32768 tokens it decides what a layer's step has at its peak,
# and costs it 4 % of its time.
_STATES_AT_ONCE = 1 << 23
# The inputs whose gradients may arrive at entries, in the order of those.
_WITH_ENTRIES = ("dictionary", "in_u_", "in_gate_")

_library = torch.library.Library("pdssm_compiler", "FRAGMENT")
for _definition in (
    "mixer_core(str program, Tensor projection, Tensor[] others, Tensor[] entries, "
    "Tensor temperature, bool dense) -> Tensor[]",
    "mixer_core_backward(str program, Tensor projection, Tensor[] others, Tensor[] boundaries, "
    "Tensor selection, Tensor?[] grads, str wrt, Tensor temperature, bool dense) -> Tensor[]",
):
    _library.define(_definition, tags=(torch.Tag.pt2_compliant_tag,))

mixer_core = torch.ops.pdssm_compiler.mixer_core.default
mixer_core_backward = torch.ops.pdssm_compiler.mixer_core_backward.default


def other_names(scan: Segmented) -> list[str]:
    """The program's inputs that do not stand in a projection, in order."""
    return [name for name in scan.input_slots if name not in PARTS and name != SELECTION]


def programs_of(text: str, sizes: Sizes, device: torch.device) -> tuple[list[Program], int]:
    """What a step of training runs, where every parameter is trained: forward, the states of a
    segment again, adjoint, by the active surrogate; and the tokens of a segment.

    Args:
        text: the core's program.
        sizes: of the call.
        device: where.
    """
    scan = segmented(text)
    trained = [name for name in other_names(scan) if name not in _WITH_ENTRIES]
    wanted = (*trained, *_WITH_ENTRIES, *PARTS, SELECTION)
    derived = scan.adjoint(wanted, frozenset({"readout"}))
    found = (scan.segments.forward, derived.replay, derived.adjoint.program)
    length = scan.length(sizes, None, device, _STATES_AT_ONCE)
    return [program for program in found if program is not None], min(length, sizes.length)


def parts_of(scan: Segmented, projection: torch.Tensor, heads: int) -> tuple[Named, torch.Tensor]:
    """Views of a projection: the program's inputs by name, and the selector's logits.

    Raises:
        ArgumentError: a projection of another width.
    """
    n = scan.program.state_size
    widths = [heads * n * reals for reals in PARTS.values()]
    maps = scan.program.input(SELECTION).type.bound  # type: ignore[union-attr]
    if projection.dim() != 3 or projection.shape[2] != sum(widths) + heads * maps:
        raise ArgumentError(
            f"projection must have the shape [B, T, {sum(widths) + heads * maps}], got "
            f"{list(projection.shape)}; it holds drive, read-out, δ, φ and the selector's logits"
        )
    found: Named = {}
    at = 0
    for (name, reals), width in zip(PARTS.items(), widths, strict=True):
        own = (heads, n, 2) if reals == 2 else (heads, n)
        found[name] = projection.narrow(2, at, width).unflatten(2, own)
        at += width
    return found, projection.narrow(2, at, heads * maps).unflatten(2, (heads, maps))


def _length(scan: Segmented, projection: torch.Tensor, heads: int) -> int:
    """Tokens a segment."""
    sizes = Sizes(projection.shape[0], projection.shape[1], heads)
    return scan.length(sizes, None, projection.device, _STATES_AT_ONCE)


def _inputs(
    scan: Segmented, projection: torch.Tensor, others: Tensors, selection: torch.Tensor | None
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The program's inputs, and the selector's logits; without a selection, one to be."""
    named = dict(zip(other_names(scan), others, strict=True))
    parts, logits = parts_of(scan, projection, named["dictionary"].shape[0])
    if selection is None:
        selection = logits.new_empty(logits.shape[:3], dtype=torch.int32)
    named |= parts | {SELECTION: selection}
    return [named[name] for name in scan.input_slots], logits


@of_one_line
def _forward(
    program: str,
    projection: torch.Tensor,
    others: Tensors,
    entries: Tensors,
    temperature: torch.Tensor,
    dense: bool,
) -> list[torch.Tensor]:
    scan = segmented(program)
    heads = dict(zip(other_names(scan), others, strict=True))["dictionary"].shape[0]
    selection = chosen_along_last(parts_of(scan, projection, heads)[1], "selector_logits")
    inputs, _ = _inputs(scan, projection, others, selection)
    length = _length(scan, projection, heads)
    return [*scan.forward(inputs, "", length, chosen=True), selection]


@of_one_line
def _backward(
    program: str,
    projection: torch.Tensor,
    others: Tensors,
    boundaries: Tensors,
    selection: torch.Tensor,
    grads: Sequence[torch.Tensor | None],
    wrt: str,
    temperature: torch.Tensor,
    dense: bool,
) -> list[torch.Tensor]:
    scan = segmented(program)
    inputs, logits = _inputs(scan, projection, others, selection)
    names = tuple(wrt.split())
    whole = "projection" in names
    wanted = tuple(name for name in names if name != "projection")
    into: Named = {}
    if whole:
        found = torch.empty_like(projection, memory_format=torch.contiguous_format)
        into, of_logits = parts_of(scan, found, logits.shape[2])
        wanted += (*PARTS, SELECTION)
    surrogate: Surrogate = "dense" if dense else "active"
    length = _length(scan, projection, logits.shape[2])
    made = scan.backward(inputs, boundaries, grads, wanted, surrogate, "", length, into)
    if not whole:
        return made
    *made, of_entries = made
    surrogate_gradient(logits, of_entries, selection, temperature, dense, of_logits)
    return [found, *made[: len(made) - len(PARTS)]]


on_every_device(_library, "mixer_core", _forward)
on_every_device(_library, "mixer_core_backward", _backward)
refuse_vmap(_library, "mixer_core", "mixer_core_backward")


@of_one_line
def _fake(
    program: str,
    projection: torch.Tensor,
    others: Tensors,
    entries: Tensors,
    temperature: torch.Tensor,
    dense: bool,
) -> list[torch.Tensor]:
    scan = segmented(program)
    inputs, logits = _inputs(scan, projection, others, None)
    _, sizes, device = scan.read(inputs)
    length = _length(scan, projection, sizes.heads)
    outputs, boundaries = scan.allocate(sizes, device, length)
    selection = logits.new_empty(logits.shape[:3], dtype=torch.int32)
    return [*outputs.values(), *boundaries.values(), selection]


@of_one_line
def _fake_backward(
    program: str,
    projection: torch.Tensor,
    others: Tensors,
    boundaries: Tensors,
    selection: torch.Tensor,
    grads: Sequence[torch.Tensor | None],
    wrt: str,
    temperature: torch.Tensor,
    dense: bool,
) -> list[torch.Tensor]:
    scan = segmented(program)
    inputs, _ = _inputs(scan, projection, others, selection)
    names = tuple(name for name in wrt.split() if name != "projection")
    found = scan.gradients(inputs, names, "dense" if dense else "active")
    if "projection" in wrt.split():
        found.insert(0, torch.empty_like(projection, memory_format=torch.contiguous_format))
    return found


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[torch.Tensor]) -> None:
    program, projection, others, entries, temperature, ctx.dense = inputs
    ctx.program = lines_of(program)
    ctx.entries = [entry.dtype for entry in entries]
    ctx.set_materialize_grads(False)
    ctx.count = len(others)
    ctx.outputs = len(segmented(ctx.program).output_slots)
    ctx.save_for_backward(
        projection, copy_for_backward(temperature), *others, *output[ctx.outputs :]
    )


def _gradients(
    ctx: Any, grads: Sequence[torch.Tensor | None]
) -> tuple[None, torch.Tensor | None, list[Any], list[Any], None, None]:
    _, whole, needed, chosen, _, _ = ctx.needs_input_grad
    scan = segmented(ctx.program)
    names = ["projection"] if whole else []
    names += [n for n, need in zip(other_names(scan), needed, strict=True) if need]
    # As many as were given.
    names += [n for n, need in zip(_WITH_ENTRIES, chosen, strict=False) if need]
    arriving = list(grads[:-1])
    if not names or all(grad is None for grad in arriving):
        return None, None, [None] * ctx.count, [None] * len(chosen), None, None
    projection, temperature, *kept = ctx.saved_tensors
    others, (*boundaries, selection) = kept[: ctx.count], kept[ctx.count :]
    results = iter(
        mixer_core_backward(
            one_line(ctx.program),
            projection,
            others,
            boundaries,
            selection,
            arriving,
            " ".join(names),
            temperature,
            ctx.dense,
        )
    )
    of_projection = next(results) if whole else None
    of_others = [next(results) if need else None for need in needed]
    of_entries = [
        next(results).to(dtype) if need else None
        for dtype, need in zip(ctx.entries, chosen, strict=True)
    ]
    return None, of_projection, of_others, of_entries, None, None


def _no_second_gradient(*_: Any) -> Any:
    raise ArgumentError(
        "the gradient of a fused core has no gradient of its own; for second derivatives "
        "differentiate the layer's formulas and pdssm_compiler.reference.pd_scan"
    )


torch.library.register_fake("pdssm_compiler::mixer_core", _fake)
torch.library.register_fake("pdssm_compiler::mixer_core_backward", _fake_backward)
torch.library.register_autograd(
    "pdssm_compiler::mixer_core", _gradients, setup_context=_setup_context
)
torch.library.register_autograd("pdssm_compiler::mixer_core_backward", _no_second_gradient)

__all__ = ["PARTS", "mixer_core", "mixer_core_backward", "other_names", "parts_of", "programs_of"]
