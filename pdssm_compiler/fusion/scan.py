"""A scan with expressions fused into it: :class:`FusedScan`."""

from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch

from pdssm_compiler.arguments import as_complex, read_drive, read_maps, truth
from pdssm_compiler.artifacts import Artifacts
from pdssm_compiler.choices import both_logits, choose
from pdssm_compiler.fusion.inputs import InputSpec
from pdssm_compiler.fusion.symbols import TraceError
from pdssm_compiler.fusion.trace import Expression, Traced, trace
from pdssm_compiler.ir.errors import shown
from pdssm_compiler.ir.passes import (
    Adjoint,
    InSegments,
    SegmentAdjoint,
    adjoint,
    in_segments,
    segment_adjoint,
)
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.ir.types import is_number
from pdssm_compiler.runtime.compile_service import backward_config, config_text
from pdssm_compiler.runtime.devices import target_of
from pdssm_compiler.runtime.dispatch import call, call_in_segments
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.tracing import constant
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Problem
from pdssm_compiler.sequences import Sequences
from pdssm_compiler.spec import ScanSpec


class FusedScan(Artifacts):
    """A compiled scan whose diagonal, or read-out, or both, are a user's expressions.

    :func:`pdssm_compiler.compile` makes it. Where gradients are wanted through a read-out, it runs
    in segments: between forward and backward only the states at their boundaries are kept.

    Attributes:
        spec: the specification.
        inputs: the expressions' parameters, by name: what each one's tensor is.
        segment_length: tokens a segment; None leaves it to the sizes of a call.
    """

    def __init__(
        self,
        spec: ScanSpec,
        diagonal: Expression | None,
        readout: Expression | None,
        inputs: Mapping[str, InputSpec] | None,
        target: Target,
        config: Any,
        program_spec: PdScan,
        segment_length: int | None,
        problem: Problem | None = None,
    ) -> None:
        self.spec = spec
        traced = trace(spec, diagonal, readout, inputs)
        self._inputs = {each.name: each for each in traced.inputs}
        self.inputs = {each.name: each.spec for each in traced.inputs}
        self._fuses_diagonal = diagonal is not None
        self._in_segments = readout is not None
        self.segment_length = segment_length
        self._config = config_text(config)
        self._text = _text_of(spec, traced)
        self._target = str(target)
        self._base = program_spec
        program = pd_scan(program_spec, traced.fusion)
        _refuse_idle(traced, program)
        # What runs in segments has other lengths.
        whole = ("forward",) if self._in_segments else ("forward", "backward")
        problems = dict.fromkeys(whole, problem) if problem else {}
        super().__init__(self._programs(program, config), target, problems)

    def _programs(self, program: Program, config: Any) -> dict[str, tuple[Program, Any]]:
        """What is compiled now: the call without gradients, and what training runs."""
        later = backward_config(config)
        if not self._in_segments:
            return {"forward": (program, config), "backward": (adjoint(program).program, later)}
        segments = in_segments(program)
        derived = _backward(segments)
        programs = {"forward": (program, config), "segment": (segments.forward, config)}
        if derived.replay is not None:
            programs["replay"] = (derived.replay, later)
        return programs | {"backward": (derived.adjoint.program, later)}

    @cached_property
    def segments(self) -> InSegments:
        """The program on one segment, which runs where gradients are wanted."""
        return in_segments(self.program)

    @cached_property
    def segment_adjoint(self) -> SegmentAdjoint:
        """The backward of a segment, for the gradients of all inputs."""
        return _backward(self.segments)

    @cached_property
    def adjoint(self) -> Adjoint:
        """The backward program, of one segment if it runs in segments."""
        return self.segment_adjoint.adjoint if self._in_segments else adjoint(self.program)

    def __call__(
        self,
        /,
        *,
        drive: torch.Tensor,
        diagonal: torch.Tensor | None = None,
        dictionary: torch.Tensor | None = None,
        selection: torch.Tensor | None = None,
        destination: torch.Tensor | None = None,
        dictionary_logits: torch.Tensor | None = None,
        selector_logits: torch.Tensor | None = None,
        temperature: float | torch.Tensor = 1.0,
        surrogate: str = "active",
        initial_state: torch.Tensor | None = None,
        output_final_state: bool = False,
        reverse: bool = False,
        cu_seqlens: torch.Tensor | None = None,
        **inputs: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run the scan.

        Differentiable in every real and complex tensor, once; in logits by a surrogate.

        Args:
            drive: ``b``, ``[B, T, H, N]`` complex or ``[B, T, H, N, 2]`` real, in the dtype of the
                specification.
            diagonal: likewise, where it is not an expression.
            dictionary: as in :func:`pdssm_compiler.pd_scan`.
            selection: likewise.
            destination: likewise.
            dictionary_logits: real ``[H, K, N, N]``, which choose the dictionary in its place, as
                in :func:`pdssm_compiler.flash_pd_scan`; with ``selector_logits``.
            selector_logits: real ``[B, T, H, K]``, which choose the selection in its place.
            temperature: likewise, of the logits' surrogate.
            surrogate: likewise.
            initial_state: as in ``pd_scan``.
            output_final_state: likewise; not of packed sequences with a read-out, whose states are
                not written.
            reverse: likewise.
            cu_seqlens: likewise; with a ``payload_dtype``, without initial and final states.
            **inputs: the expressions' parameters by name, each as its :class:`InputSpec` says.

        Returns:
            ``(output, final_state)``. ``output`` is the read-out at every token, ``[B, T, H, N]``
            or, of one number a token, ``[B, T, H]``, in float32 or float64, or in the
            specification's ``payload_dtype``; without one it is the states, in the form and dtype
            of ``drive``. A complex read-out has the form of ``drive`` too. ``final_state`` is as
            in ``pd_scan``.

        Raises:
            ArgumentError: a missing or unknown input, or a wrong shape, dtype or device.
            IndexRangeError, OffsetError, PromiseError: as in ``pd_scan``. On a GPU a token may be
                counted from the start of its segment; the message says so.
            NanLogitError: as in ``flash_pd_scan``.
        """
        self._refuse_missing(inputs, diagonal)
        drive, as_pairs = read_drive(drive, self.spec.dtype, self.spec.payload_dtype)
        entries: dict[str, torch.Tensor] = {}
        if dictionary_logits is not None or selector_logits is not None:
            integers = (dictionary, selection, destination)
            logits = both_logits(dictionary_logits, selector_logits, integers)
            choice = choose(*logits, drive, temperature, surrogate, self.spec.orientation)
            dictionary, selection = choice.dictionary, choice.selection
            entries = {"dictionary": choice.maps_used, "selection": choice.tokens_used}
        elif surrogate != "active" or isinstance(temperature, torch.Tensor) or temperature != 1:
            raise ArgumentError(
                "temperature and surrogate are of logits; pass dictionary_logits and "
                "selector_logits, or leave them out"
            )
        maps, chosen = self._read_maps(dictionary, selection, destination)
        read: dict[str, torch.Tensor] = {"drive": drive}
        sizes = dict(zip("BTHN", (*drive.shape[:3], self.spec.state_size), strict=True))
        if diagonal is not None:
            read["diagonal"] = self._complex("diagonal", diagonal, 4)
        for name, each in self._inputs.items():
            tensor = each.read(inputs[name])
            each.check_shape(tensor, sizes)
            read[each.input.name] = tensor
        given = {"dictionary": dictionary, "selection": selection, "destination": destination}
        read |= {name: tensor for name, tensor in given.items() if tensor is not None}
        self._check_device(drive)
        final = truth("output_final_state", output_final_state)
        kind = _Kind(maps, chosen, truth("reverse", reverse))
        if cu_seqlens is not None:
            sequences = Sequences(cu_seqlens, drive, kind.reverse)
            outputs = self._run_packed(sequences, kind, read, entries, initial_state, final)
        else:
            if initial_state is not None:
                read["initial_state"] = self._complex("initial_state", initial_state, 3)
            outputs = self._run(kind, read, entries, final)
        return self._results(outputs, as_pairs, final)

    def _run(
        self,
        kind: "_Kind",
        read: Mapping[str, torch.Tensor],
        entries: Mapping[str, torch.Tensor],
        final: bool,
    ) -> list[Any]:
        """The results of a program on its tensors, and the entries of its choices, by name."""
        text = self._text(kind, "initial_state" in read, final, "follows" in read)
        # A program's inputs stand in the order of their names.
        tensors = [read[name] for name in sorted(read)]
        used = [entries[name] for name in sorted(entries)]
        if self._in_segments:
            return call_in_segments(text, tensors, self._config, self.segment_length, used)
        return call(text, tensors, self._config, used)

    def _run_packed(
        self,
        sequences: Sequences,
        kind: "_Kind",
        read: dict[str, torch.Tensor],
        entries: dict[str, torch.Tensor],
        initial_state: torch.Tensor | None,
        final: bool,
    ) -> list[torch.Tensor]:
        """The results for packed sequences; see :class:`Sequences`."""
        drive = read["drive"]
        if final and self._in_segments:
            raise ArgumentError(
                "a scan with a readout writes no states, so packed sequences have no final ones; "
                "leave out output_final_state, or compile the scan without a readout"
            )
        if self.spec.payload_dtype is not None and (final or initial_state is not None):
            raise ArgumentError(
                f"packed sequences with a payload_dtype have no initial and final states here; "
                f"leave them out, or compile with payload_dtype=None, not "
                f"{self.spec.payload_dtype}"
            )
        start = None if initial_state is None else sequences.start(initial_state, drive)
        if start is not None and drive.shape[1] > 0:
            by_token = {"diagonal", "drive", "selection", "destination"}
            by_token |= {e.input.name for e in self._inputs.values() if e.input.role == "token"}
            first = {
                name: sequences.first_tokens(tensor) if name in by_token else tensor
                for name, tensor in read.items()
            }
            first["drive"] = drive.new_zeros(()).expand(first["drive"].shape)
            used = {
                name: sequences.first_tokens(entry) if name in by_token else entry
                for name, entry in entries.items()
            }
            first["initial_state"] = sequences.moving(start)
            moved = self._run(kind, first, used, True)[1]
            drive = sequences.begun(drive, moved)
        if entries:
            entries = entries | {"follows": sequences.entry(entries["selection"])}
        whole = read | {"drive": drive, "follows": sequences.follows}
        outputs = self._run(kind, whole, entries, False)
        if not final:
            return outputs
        start = sequences.zero(drive) if start is None else start
        return [outputs[0], sequences.final(outputs[0], start)]

    def _refuse_missing(
        self, inputs: Mapping[str, torch.Tensor], diagonal: torch.Tensor | None
    ) -> None:
        for name in self._inputs:
            if name not in inputs:
                raise ArgumentError(f"{name} is missing; pass it by name, the expressions read it")
        for name in inputs:
            if name not in self._inputs:
                known = ", ".join(self._inputs) or "none"
                raise ArgumentError(
                    f"{name} is no input of the expressions; they have {known}; leave it out"
                )
        if self._fuses_diagonal and diagonal is not None:
            raise ArgumentError(
                "diagonal is computed by the scan's expression; leave it out, or compile the scan "
                "without one"
            )
        if not self._fuses_diagonal and diagonal is None:
            raise ArgumentError(
                "diagonal is missing; pass it, or compile the scan with diagonal=function"
            )

    def _read_maps(
        self,
        dictionary: torch.Tensor | None,
        selection: torch.Tensor | None,
        destination: torch.Tensor | None,
    ) -> tuple[str, str]:
        """The integer storages of the maps and of the selection."""
        source, size, maps, chosen = read_maps(dictionary, selection, destination)
        wanted = (self._base.map_source, self._base.dictionary_size)
        for name, mine, given in zip(
            ("map_source", "dictionary_size"), wanted, (source, size), strict=True
        ):
            if mine != given:
                raise ArgumentError(
                    f"the tensors have {name} {given!r}, but the scan was compiled for {mine!r}; "
                    f"compile another specification"
                )
        return maps, chosen

    def _complex(self, name: str, tensor: torch.Tensor, rank: int) -> torch.Tensor:
        tensor = as_complex(name, tensor, rank)
        if tensor.dtype != self.spec.dtype:
            raise ArgumentError(
                f"{name} must be {self.spec.dtype}, or pairs of that precision, got "
                f"{tensor.dtype}; convert it with .to()"
            )
        return tensor

    def _check_device(self, drive: torch.Tensor) -> None:
        here = _target_at(str(drive.device))
        if here != self._target:
            raise ArgumentError(
                f"the tensors are on {drive.device} ({here}), but the scan was compiled for "
                f"{self.target}; move them, or compile for target={str(drive.device)!r}"
            )

    @staticmethod
    def _results(
        outputs: list[torch.Tensor], as_pairs: bool, final: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        # The output of tokens comes before the final one.
        found = [
            torch.view_as_real(output) if as_pairs and output.is_complex() else output
            for output in outputs[: 1 + final]
        ]
        return found[0], found[1] if final else None

    def __repr__(self) -> str:
        fused = ", ".join(self._inputs)
        return f"FusedScan({self.spec}, inputs=({fused}), target={self.target})"


class _Kind(NamedTuple):
    """What a call's tensors and options ask of the program, besides states and sequences.

    Attributes:
        maps, selection: the storages of the integers.
        reverse: the way of time.
    """

    maps: str
    selection: str
    reverse: bool


def _text_of(spec: ScanSpec, traced: Traced) -> Callable[[_Kind, bool, bool, bool], str]:
    """The program's text by what a call may choose."""

    @lru_cache(maxsize=64)
    def built(kind: _Kind, initial: bool, final: bool, packed: bool) -> str:
        program_spec = spec.program_spec(
            initial_state=initial, final_state=final, packed=packed, **kind._asdict()
        )
        return pd_scan(program_spec, traced.fusion).text

    def text(kind: _Kind, initial: bool, final: bool, packed: bool) -> str:
        return built(kind, initial, final, packed)

    return constant(text)


@constant
def _target_at(device: str) -> str:
    """What kernels for a device are compiled for."""
    return str(target_of(torch.device(device)))


def _backward(segments: InSegments) -> SegmentAdjoint:
    """The backward of a segment for all its numbers."""
    starts = {boundary.start for boundary in segments.boundaries if not boundary.given}
    forward = segments.forward
    wrt = [i.name for i in forward.inputs if is_number(i.type) and i.name not in starts]
    return segment_adjoint(segments, wrt, [out.name for out in forward.token_outputs])


def _refuse_idle(traced: Traced, program: Program) -> None:
    """Refuse an input that the simplified program does not read."""
    read = {input_.name for input_ in program.inputs}
    for each in traced.inputs:
        if each.input.name not in read:
            raise TraceError(
                f"{each.name} cancels out of the expressions, so it has no effect; leave it out"
            )


def segment_length_of(value: Any) -> int | None:
    """A segment's length as an int.

    Raises:
        ArgumentError: not a whole number of at least 1.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(
            f"segment_length must be a whole number of at least 1, got {shown(value)}; pass an int"
        )
    return value
