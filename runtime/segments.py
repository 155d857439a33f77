"""Scans that keep no states: the torch operator ``pdssm_compiler::scan_in_segments``.

``scan_in_segments(str program, Tensor[] inputs, Tensor[]? entries, str config, int? length) ->
Tensor[]`` runs a program a segment of ``length`` tokens at a time; None leaves that to the sizes.
``entries`` are those of hard choices, as in :mod:`pdssm_compiler.runtime.ops`. Besides the
program's outputs it gives, for each carry, its values before the segments, ``[B, G, H, ...]`` for
fewer than ``G`` segments in the order they run, and zeros behind them. They and the inputs are all
that is kept for the backward, ``pdssm_compiler::scan_in_segments_backward``, which takes the
segments from the last to the first: it computes the states within one again, into scratch that the
next one reuses, and runs the derived adjoint on it. What is summed over tokens, such as the
gradient of a dictionary, is summed within each segment and then over them, in the order they run.
"""

from collections.abc import Sequence
from typing import Any

import torch

from pdssm_compiler.ir.passes.adjoint import Surrogate
from pdssm_compiler.runtime.compile_service import backward_config, config_text, read_config
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.one_line import lines_of, of_one_line, one_line
from pdssm_compiler.runtime.operators import on_every_device, refuse_vmap
from pdssm_compiler.runtime.ops import check_entries, chosen_inputs, hard_choices, surrogate_of
from pdssm_compiler.runtime.segmented import Tensors, segmented

_library = torch.library.Library("pdssm_compiler", "FRAGMENT")
_library.define(
    "scan_in_segments(str program, Tensor[] inputs, Tensor[]? entries, str config, int? length) "
    "-> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "scan_in_segments_backward(str program, Tensor[] inputs, Tensor[] boundaries, "
    "Tensor?[] grads, str wrt, str surrogate, str config, int? length) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@of_one_line
def _forward(
    program: str, inputs: Tensors, entries: Tensors | None, config: str, length: int | None
) -> list[torch.Tensor]:
    check_entries(program, entries)
    return segmented(program).forward(inputs, config, length, hard_choices(program, entries))


@of_one_line
def _backward(
    program: str,
    inputs: Tensors,
    boundaries: Tensors,
    grads: Sequence[torch.Tensor | None],
    wrt: str,
    surrogate: Surrogate,
    config: str,
    length: int | None,
) -> list[torch.Tensor]:
    names = tuple(wrt.split())
    scan = segmented(program)
    return scan.backward(inputs, boundaries, grads, names, surrogate, config, length)


on_every_device(_library, "scan_in_segments", _forward)
on_every_device(_library, "scan_in_segments_backward", _backward)
refuse_vmap(_library, "scan_in_segments", "scan_in_segments_backward")

scan_in_segments = torch.ops.pdssm_compiler.scan_in_segments.default
scan_in_segments_backward = torch.ops.pdssm_compiler.scan_in_segments_backward.default


@of_one_line
def _fake(
    program: str, inputs: Tensors, entries: Tensors | None, config: str, length: int | None
) -> list[torch.Tensor]:
    check_entries(program, entries)
    scan = segmented(program)
    _, sizes, device = scan.read(inputs)
    outputs, boundaries = scan.allocate(sizes, device, scan.length(sizes, length, device))
    return [*outputs.values(), *boundaries.values()]


@of_one_line
def _fake_backward(
    program: str,
    inputs: Tensors,
    boundaries: Tensors,
    grads: Sequence[torch.Tensor | None],
    wrt: str,
    surrogate: Surrogate,
    config: str,
    length: int | None,
) -> list[torch.Tensor]:
    return segmented(program).gradients(inputs, tuple(wrt.split()), surrogate)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[torch.Tensor]) -> None:
    program, tensors, entries, config, length = inputs
    program = lines_of(program)
    ctx.program, ctx.length = program, length
    ctx.config = config_text(backward_config(read_config(config)))
    ctx.count = len(tensors)
    ctx.entries = None if entries is None else [entry.dtype for entry in entries]
    ctx.surrogate = surrogate_of(program, entries)
    # An absent gradient costs nothing; a tensor of zeros would be read.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[len(segmented(program).output_slots) :])


def _gradients(
    ctx: Any, grads: Sequence[torch.Tensor | None]
) -> tuple[None, list[Any], list[Any] | None, None, None]:
    _, needed, chosen, _, _ = ctx.needs_input_grad
    scan = segmented(ctx.program)
    choices = [input_.name for input_ in chosen_inputs(scan.program)] if ctx.entries else []
    chosen = chosen if ctx.entries else []
    names = [name for name, need in zip(scan.input_slots, needed, strict=True) if need]
    names += [name for name, need in zip(choices, chosen, strict=True) if need]
    if not names or all(grad is None for grad in grads):
        nothing = None if ctx.entries is None else [None] * len(choices)
        return None, [None] * ctx.count, nothing, None, None
    tensors = list(ctx.saved_tensors)
    inputs, boundaries = tensors[: ctx.count], tensors[ctx.count :]
    found = scan_in_segments_backward(
        one_line(ctx.program),
        inputs,
        boundaries,
        list(grads),
        " ".join(names),
        ctx.surrogate,
        ctx.config,
        ctx.length,
    )
    results = iter(found)
    of_inputs = [next(results) if need else None for need in needed]
    of_entries = [
        next(results).to(dtype) if need else None
        for dtype, need in zip(ctx.entries or (), chosen, strict=True)
    ]
    return None, of_inputs, None if ctx.entries is None else of_entries, None, None


def _no_second_gradient(*_: Any) -> Any:
    raise ArgumentError(
        "the gradient of a scan in segments has no gradient of its own; for second derivatives "
        "differentiate the expressions and pdssm_compiler.reference.pd_scan"
    )


torch.library.register_fake("pdssm_compiler::scan_in_segments", _fake)
torch.library.register_fake("pdssm_compiler::scan_in_segments_backward", _fake_backward)
torch.library.register_autograd(
    "pdssm_compiler::scan_in_segments", _gradients, setup_context=_setup_context
)
torch.library.register_autograd("pdssm_compiler::scan_in_segments_backward", _no_second_gradient)

__all__ = ["scan_in_segments", "scan_in_segments_backward"]
