"""A program run a segment of tokens at a time, forward and backward: :class:`Segmented`.

What the operators of :mod:`pdssm_compiler.runtime.segments` do. Segments are views of the caller's
tensors, along T; nothing is copied.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch

from pdssm_compiler.ir.passes.adjoint import Surrogate
from pdssm_compiler.ir.passes.segments import SegmentAdjoint, in_segments, segment_adjoint
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import Index, Map, is_number, precision
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.binding import Slot, allocate, check, sizes_of
from pdssm_compiler.runtime.faults import Chosen
from pdssm_compiler.runtime.ops import (
    chosen_inputs,
    of_all_entries,
    slots_of,
)
from pdssm_compiler.runtime.output_pool import new_output
from pdssm_compiler.runtime.plan import caller_inputs, one_device, program_of, run
from pdssm_compiler.schedules.signature import Argument

# Tokens of a segment, all rows together, unless the caller says otherwise: scratch of a fixed
# size, and for few rows segments long enough to be cut into chunks that run side by side.
_TOKENS_AT_ONCE = 65536
# On a GPU so many numbers of a segment's states, 256 MiB of complex64: less does not keep it busy.
_STATES_AT_ONCE = 1 << 25
# Boundaries and scratch together are least where there are as many segments as tokens in one,
# which is at 65536 tokens. For fewer, shorter segments would save little, and launch more often.
_LEAST = 256
# A segment starts where a vector load may.
_STEP = 16

Named = dict[str, torch.Tensor]
Tensors = Sequence[torch.Tensor]


class Segmented:
    """A program run in segments.

    Args:
        text: the program's text form.
    """

    def __init__(self, text: str) -> None:
        self.program: Program = program_of(text)
        self.segments = in_segments(self.program)
        self.inputs = caller_inputs(self.program)
        self.input_slots = dict(zip((i.name for i in self.inputs), slots_of(text)[0], strict=True))
        self.output_slots = _output_slots(self.program)
        forward, n = self.segments.forward, self.program.state_size
        starts = [forward.input(boundary.start) for boundary in self.segments.boundaries]
        self.start_slots = {
            i.name: Slot.of(Argument(i.name, i.type, i.storage, i.role), n) for i in starts
        }
        self._choices = {i.name for i in chosen_inputs(self.program)}
        self._by_token = {i.name for i in self.inputs if i.role == "token"}
        self._written_by_token = {out.name for out in self.program.token_outputs}
        # A table is the same in every segment; maps of tokens are not.
        self._maps_of_tokens = any(isinstance(i.type, Map) for i in self.inputs)

    def adjoint(
        self, wrt: tuple[str, ...], cotangents: frozenset[str], surrogate: Surrogate = "active"
    ) -> SegmentAdjoint:
        """The backward of a segment; see :func:`segment_adjoint`."""
        return _adjoint(self, wrt, cotangents, surrogate)

    def gradient_slot(self, name: str, surrogate: Surrogate) -> Slot:
        """What an input's gradient looks like; of a choice, that of its entries."""
        slot, type_ = self.input_slots[name], self.program.input(name).type
        if is_number(type_):
            return slot
        numbers = (value.type for value in self.program.body if is_number(value.type))
        wide = max(map(precision, numbers), default=32) == 64
        own = slot.own
        if surrogate == "dense":
            own = (type_.bound,) if isinstance(type_, Index) else (*own, self.program.state_size)
        return replace(slot, dtype=torch.float64 if wide else torch.float32, own=own)

    def length(
        self,
        sizes: Sizes,
        asked: int | None,
        device: torch.device,
        states: int = _STATES_AT_ONCE,
    ) -> int:
        """Tokens a segment: as many as are asked for, or, on a GPU, as have so many states."""
        if asked is not None:
            return asked
        tokens = _TOKENS_AT_ONCE
        if device.type == "cuda":
            tokens = states // self.program.state_size
        rows = torch.sym_max(sizes.batch * sizes.heads, 1)
        return torch.sym_max(_LEAST, tokens // rows // _STEP * _STEP)

    def read(self, inputs: Tensors) -> tuple[Named, Sizes, torch.device]:
        """A call's inputs by name, checked, its sizes and its device."""
        device = one_device(self.program.text, inputs)
        sizes = check(list(self.input_slots.values()), inputs)
        return dict(zip(self.input_slots, inputs, strict=True)), sizes, device

    def allocate(
        self,
        sizes: Sizes,
        device: torch.device,
        length: int,
        empty: Callable[..., torch.Tensor] = torch.empty,
    ) -> tuple[Named, Named]:
        """Outputs, made by ``empty``, and boundaries, uninitialised."""
        outputs = {
            name: allocate(slot, sizes, device, empty) for name, slot in self.output_slots.items()
        }
        # One place more than there are segments, or two: a size that may be 1 would be asked about
        # by whoever traces this, and what was traced would hold for short sequences alone.
        count = sizes.length // length + 2
        boundaries = {
            name: torch.empty(
                (sizes.batch, count, sizes.heads, *slot.own), dtype=slot.dtype, device=device
            )
            for name, slot in self.start_slots.items()
        }
        return outputs, boundaries

    def forward(
        self, inputs: Tensors, config: str, asked: int | None, chosen: Chosen = False
    ) -> list[torch.Tensor]:
        """The program's outputs, then the boundaries; see :func:`run` for ``chosen``."""
        tensors, sizes, device = self.read(inputs)
        length = self.length(sizes, asked, device)
        outputs, boundaries = self.allocate(sizes, device, length, new_output)
        state = {
            name: tensors[name] if name in tensors else allocate(slot, sizes, device, torch.zeros)
            for name, slot in self.start_slots.items()
        }
        sums = {total.name: outputs[total.name].zero_() for total in self.program.sum_outputs}
        for number, tokens in enumerate(_cut(self.program, sizes.length, length)):
            for name, value in state.items():
                boundaries[name][:, number] = value
            reads = self._of_segment(tensors, tokens) | state
            into = {out.name: outputs[out.name][:, tokens] for out in self.program.token_outputs}
            trusted = number > 0 and not self._maps_of_tokens
            first = tokens.start
            found = _run(self.segments.forward, reads, into, config, first, trusted, chosen)
            state = {b.start: found[b.end] for b in self.segments.boundaries}
            for name, total in sums.items():
                total += found[name]
        for values in boundaries.values():
            values[:, -(-sizes.length // length) :].zero_()
        for boundary in self.segments.boundaries:
            if boundary.returned:
                outputs[boundary.end].copy_(state[boundary.start])
        return [*outputs.values(), *boundaries.values()]

    def _of_segment(self, tensors: Named, tokens: slice) -> Named:
        return {
            name: tensor[:, tokens] if name in self._by_token else tensor
            for name, tensor in tensors.items()
        }

    def backward(
        self,
        inputs: Tensors,
        boundaries: Tensors,
        grads: Sequence[torch.Tensor | None],
        wrt: tuple[str, ...],
        surrogate: Surrogate,
        config: str,
        asked: int | None,
        into: Named | None = None,
    ) -> list[torch.Tensor]:
        """The gradients of the inputs in ``wrt``, from those of the outputs and boundaries; of
        those that are choices, the gradients of their entries. Of an input that ``into`` names,
        which varies by token, the gradient is written there.
        """
        tensors, sizes, device = self.read(inputs)
        length = self.length(sizes, asked, device)
        before = dict(zip(self.start_slots, boundaries, strict=True))
        count = len(self.output_slots)
        arriving = _present(self.output_slots, grads[:count])
        of_boundaries = _present(self.start_slots, grads[count:])
        derived = self.adjoint(wrt, frozenset(arriving), surrogate)
        program = derived.adjoint.program
        given = into or {}
        found = {
            f"grad_{name}": given[name]
            if name in given
            else allocate(self.gradient_slot(name, surrogate), sizes, device, new_output)
            for name in wrt
        }
        totals = [total.name for total in program.sum_outputs]
        sums: list[torch.Tensor] = []
        written = {o.name: found[o.name] for o in program.token_outputs if o.name in found}
        if surrogate == "dense":
            # Nothing writes them: each use of a choice adds its part.
            for name in self._choices.intersection(wrt):
                found[f"grad_{name}"].zero_()
        # What arrives at the end of a segment, from the one after it.
        passed: Named = {
            f"grad_{b.end}": arriving[b.end]
            if b.end in arriving
            else allocate(self.start_slots[b.start], sizes, device, torch.zeros)
            for b in derived.passed
        }
        scratch = self._scratch(derived.replay, sizes, device, length)
        for number, tokens in reversed(list(enumerate(_cut(self.program, sizes.length, length)))):
            reads = self._of_segment(tensors, tokens)
            reads |= {name: value[:, number] for name, value in before.items()}
            reads |= _replayed(derived, reads, scratch, config, tokens)
            reads |= {
                f"grad_{name}": grad[:, tokens] if name in self._written_by_token else grad
                for name, grad in arriving.items()
            }
            into = {name: gradient[:, tokens] for name, gradient in written.items()}
            results = _run(program, reads | passed, into, config, tokens.start)
            passed = {f"grad_{b.end}": results[f"grad_{b.start}"] for b in derived.passed}
            for boundary in derived.passed:
                if boundary.start in of_boundaries:
                    passed[f"grad_{boundary.end}"] += of_boundaries[boundary.start][:, number]
            parts = [results[name] for name in totals]
            if sums:
                torch._foreach_add_(sums, parts)
            else:
                sums = parts
            for name, part in of_all_entries(derived.adjoint, results, reads, wrt):
                by_token = name.removeprefix("grad_") in self._by_token
                total = found[name][:, tokens] if by_token else found[name]
                total += part
        if not sums:
            for name in totals:
                found[name].zero_()
        else:
            for name, total in zip(totals, sums, strict=True):
                found[name].copy_(total.sum(dim=0) if name in derived.adjoint.summed else total)
        for boundary in derived.passed:
            if f"grad_{boundary.start}" in found:
                found[f"grad_{boundary.start}"].copy_(passed[f"grad_{boundary.end}"])
        return list(found.values())

    def gradients(
        self, inputs: Tensors, wrt: tuple[str, ...], surrogate: Surrogate
    ) -> list[torch.Tensor]:
        """The gradients of the inputs in ``wrt``, uninitialised."""
        _, sizes, device = self.read(inputs)
        return [allocate(self.gradient_slot(name, surrogate), sizes, device) for name in wrt]

    def _scratch(
        self, replay: Program | None, sizes: Sizes, device: torch.device, length: int
    ) -> Named:
        """Room for the states of one segment."""
        if replay is None:
            return {}
        room = Sizes(sizes.batch, min(length, sizes.length), sizes.heads)
        slots = _output_slots(replay)
        return {name: allocate(slot, room, device, new_output) for name, slot in slots.items()}


@lru_cache(maxsize=1024)
def segmented(text: str) -> Segmented:
    """A program run in segments, by its text."""
    return Segmented(text)


@lru_cache(maxsize=1024)
def _adjoint(
    scan: Segmented, wrt: tuple[str, ...], cotangents: frozenset[str], surrogate: Surrogate
) -> SegmentAdjoint:
    ends = {boundary.end for boundary in scan.segments.boundaries}
    return segment_adjoint(scan.segments, wrt, cotangents - ends, surrogate)


def _replayed(
    derived: SegmentAdjoint, reads: Named, scratch: Named, config: str, tokens: slice
) -> Named:
    """What the forward would have saved of a segment, computed again."""
    if derived.replay is None:
        return {}
    states = {name: room[:, : tokens.stop - tokens.start] for name, room in scratch.items()}
    _run(derived.replay, reads, states, config, tokens.start)
    return {name: states[output] for name, output in derived.adjoint.saved.items()}


def _present(names: Iterable[str], grads: Sequence[torch.Tensor | None]) -> Named:
    named = zip(names, grads, strict=True)
    return {name: grad for name, grad in named if grad is not None}


def _output_slots(program: Program) -> dict[str, Slot]:
    return _interface(program.text).outputs


def _cut(program: Program, tokens: int, length: int) -> list[slice]:
    """The segments of a sequence, in the order that a program runs them."""
    found = [slice(at, min(at + length, tokens)) for at in range(0, tokens, length)]
    return found if program.direction == "forward" else found[::-1]


def _run(
    program: Program,
    reads: Named,
    into: Named,
    config: str,
    first: int,
    trusted: bool = True,
    chosen: Chosen = False,
) -> Named:
    """Run a program on one segment, which starts at a token ``first``; what ``into`` names is
    written there.
    """
    face = _interface(program.text)
    given = [reads[name] for name in face.inputs]
    # Whether they fit is asked where they are bound.
    sizes = sizes_of(face.slots, given)
    out = [
        into[name] if name in into else allocate(slot, sizes, given[0].device)
        for name, slot in face.outputs.items()
    ]
    run(program.text, given, config, trusted, out, first, chosen)
    return dict(zip(face.outputs, out, strict=True))


class _Interface(NamedTuple):
    """What a program takes and gives, kept: looking it up took as long as a launch."""

    inputs: tuple[str, ...]
    slots: list[Slot]
    outputs: dict[str, Slot]


@lru_cache(maxsize=1024)
def _interface(text: str) -> _Interface:
    names = tuple(input_.name for input_ in caller_inputs(program_of(text)))
    inputs, outputs = slots_of(text)
    return _Interface(names, inputs, {slot.name: slot for slot in outputs})
