"""Compiling a specification ahead of its first call."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict, Unpack, overload

import torch

from pdssm_compiler.arguments import read_call, truth
from pdssm_compiler.artifacts import Artifacts, alignments
from pdssm_compiler.functional import results
from pdssm_compiler.fusion.inputs import InputSpec
from pdssm_compiler.fusion.scan import FusedScan, segment_length_of
from pdssm_compiler.fusion.trace import Expression
from pdssm_compiler.ir import Program
from pdssm_compiler.ir.errors import shown
from pdssm_compiler.ir.passes import Adjoint, Summary, adjoint, summarise
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.packed import PackedCall, scan_packed
from pdssm_compiler.runtime.compile_service import backward_config, config_text
from pdssm_compiler.runtime.devices import find_target, target_of
from pdssm_compiler.runtime.dispatch import call
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.inventory import WantedKernel
from pdssm_compiler.runtime.key import key_of
from pdssm_compiler.runtime.saving import needed
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Problem
from pdssm_compiler.spec import MAP_DTYPES, OPTIONS, ScanSpec, one_of


class _Options(TypedDict, total=False):
    """The options of :func:`compile` that do not change what it gives."""

    inputs: Mapping[str, InputSpec] | None
    segment_length: int | None
    config: Any
    sizes: tuple[int, int, int] | None
    initial_state: bool
    output_final_state: bool
    reverse: bool
    packed: bool
    map_dtype: torch.dtype
    selection_dtype: torch.dtype


@overload
def compile(
    spec: ScanSpec,
    target: str | Path | torch.device | Target | None = None,
    *,
    diagonal: None = None,
    readout: None = None,
    **options: Unpack[_Options],
) -> "CompiledScan": ...


@overload
def compile(
    spec: ScanSpec,
    target: str | Path | torch.device | Target | None = None,
    *,
    diagonal: Expression,
    readout: Expression | None = None,
    **options: Unpack[_Options],
) -> FusedScan: ...


@overload
def compile(
    spec: ScanSpec,
    target: str | Path | torch.device | Target | None = None,
    *,
    readout: Expression,
    **options: Unpack[_Options],
) -> FusedScan: ...


def compile(
    spec: ScanSpec,
    target: str | Path | torch.device | Target | None = None,
    *,
    diagonal: Expression | None = None,
    readout: Expression | None = None,
    inputs: Mapping[str, InputSpec] | None = None,
    segment_length: int | None = None,
    config: Any = None,
    sizes: tuple[int, int, int] | None = None,
    initial_state: bool = False,
    output_final_state: bool = False,
    reverse: bool = False,
    packed: bool = False,
    map_dtype: torch.dtype = torch.int32,
    selection_dtype: torch.dtype = torch.int32,
) -> "CompiledScan | FusedScan":
    """Compile the forward and backward kernels of a scan.

    With ``diagonal`` or ``readout``, functions of the user's, the result is a
    :class:`FusedScan`: its kernels compute them as well, and no tensor of diagonals or, where
    there is a read-out, of states is written or kept. The functions are traced once: they are
    called with stand-ins for tensors, and may use operators and those functions of torch that
    have a meaning in a kernel, so the same functions run on tensors.

    Args:
        spec: the scan. Batch, length and heads stay symbolic.
        target: a torch device (``"cpu"``, ``"cuda:0"``); a GPU's architecture or model
            (``"sm_90"``, ``"h200"``, ``"gfx942"``) or the path of a file that describes one
            (``"my-gpu.toml"``: see ``docs/targets.md``), which need not be there: the kernels are
            then made but cannot be called here; or None for this machine's GPU if it has one and
            its CPU otherwise.
        diagonal: a function of named tensors that gives the diagonal of the transitions,
            ``[..., N]`` real or complex, ``[..., 1]`` or a number.
        readout: a function of the state ``x`` ``[..., N]``, its first parameter, and of named
            tensors, that gives what is written in the states' place: ``[..., N]`` or ``[...]``,
            real or complex.
        inputs: what the named tensors are, where they are not ``[B, T, H, N]`` in the scan's own
            precision, real. A parameter of both functions is one tensor.
        segment_length: with a readout, tokens between the states that are kept for the backward;
            None for as many as give all rows together 65536 tokens, but at least 256.
        config: a template's config for the forward kernel, instead of the one the resolution
            order finds; or a template's name, such as ``"triton-chunks"``, for both kernels.
        sizes: ``(B, T, H)`` of the calls to choose the kernels for that are compiled now; None
            where they are not known. Calls of other sizes choose their own.
        initial_state: whether to compile for one now; calls may do otherwise, and compile that
            when met.
        output_final_state: likewise.
        reverse: whether to compile for time from the last token to the first; likewise.
        packed: whether to compile for packed sequences; likewise.
        map_dtype: integer dtype of the maps to compile for now.
        selection_dtype: integer dtype of the selection to compile for now.

    Raises:
        ArgumentError: a target that is neither, or a GPU that is not here; an option that does
            not fit.
        TraceError: an expression that cannot be traced; the message says where and why.
        UnknownTargetError: a name or a type of device that is not known.
        DescriptionError: a description that cannot be read, or says what is not allowed.
        NoTemplateError: no template, or not the one in ``config``, can run the scan there.
        BackendUnavailableError: what compiling needs is missing.
    """
    if not isinstance(spec, ScanSpec):
        raise ArgumentError(
            f"spec must be a ScanSpec, got {type(spec).__name__}; make one with ScanSpec(N, K)"
        )
    one_of("map_dtype", map_dtype, tuple(MAP_DTYPES))
    one_of("selection_dtype", selection_dtype, tuple(MAP_DTYPES))
    program_spec, start = _program_specs(
        spec,
        initial_state=truth("initial_state", initial_state),
        final_state=truth("output_final_state", output_final_state),
        reverse=truth("reverse", reverse),
        packed=truth("packed", packed),
        maps=MAP_DTYPES[map_dtype],
        selection=MAP_DTYPES[selection_dtype],
    )
    length = segment_length_of(segment_length)
    problem = _problem_of(sizes)
    if diagonal is None and readout is None:
        for name, given in (("inputs", inputs), ("segment_length", length)):
            if given is not None:
                raise ArgumentError(f"{name} is for expressions; pass diagonal or readout as well")
        return CompiledScan(spec, program_spec, find_target(target), config, problem, start)
    if readout is None and length is not None:
        raise ArgumentError(
            "segment_length is for a scan with a readout: states that are results are kept whole; "
            "leave it out"
        )
    return FusedScan(
        spec, diagonal, readout, inputs, find_target(target), config, program_spec, length, problem
    )


def _problem_of(sizes: Any) -> Problem | None:
    """The bucket of ``(B, T, H)``.

    Raises:
        ArgumentError: not three ints of at least 1.
    """
    if sizes is None:
        return None
    if not isinstance(sizes, tuple | list) or [type(each) for each in sizes] != [int] * 3:
        raise ArgumentError(f"sizes must be (B, T, H), three ints, got {shown(sizes)}")
    batch, length, heads = sizes
    if min(sizes) < 1:
        raise ArgumentError(f"sizes must be at least 1, got {shown(sizes)}")
    return Problem.bucket(batch * heads, length)


class CompiledScan(Artifacts):
    """A compiled scan: call it like :func:`pdssm_compiler.pd_scan`.

    Attributes:
        spec: the specification.
    """

    def __init__(
        self,
        spec: ScanSpec,
        program_spec: PdScan,
        target: Target,
        config: Any,
        problem: Problem | None = None,
        start: PdScan | None = None,
    ) -> None:
        self.spec = spec
        self._config = config_text(config)
        programs = _programs(program_spec, config, start)
        # What begins packed sequences is a step, whatever the sizes.
        of_sizes = [name for name in programs if not name.startswith("start")]
        super().__init__(programs, target, dict.fromkeys(of_sizes, problem) if problem else {})

    def __call__(
        self,
        diagonal: torch.Tensor,
        drive: torch.Tensor,
        *,
        dictionary: torch.Tensor | None = None,
        selection: torch.Tensor | None = None,
        destination: torch.Tensor | None = None,
        map_class: str | None = None,
        orientation: str | None = None,
        initial_state: torch.Tensor | None = None,
        output_final_state: bool = False,
        reverse: bool = False,
        cu_seqlens: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See :func:`pdssm_compiler.pd_scan`; ``map_class`` and ``orientation`` are the
        specification's.

        Raises:
            ArgumentError: besides what ``pd_scan`` raises, tensors that do not fit the
                specification or the target.
        """
        for name, given in (("map_class", map_class), ("orientation", orientation)):
            mine = getattr(self.spec, name)
            if given is not None and one_of(name, given, OPTIONS[name]) != mine:
                raise ArgumentError(
                    f"{name}={given!r}, but the scan was compiled for {mine!r}; compile another "
                    f"specification"
                )
        arguments = (
            diagonal,
            drive,
            dictionary,
            selection,
            destination,
            self.spec.map_class,
            self.spec.orientation,
            initial_state,
            output_final_state,
            reverse,
        )
        request = read_call(*arguments)
        self._check(request.spec, diagonal)
        if cu_seqlens is not None:
            return scan_packed(PackedCall(*arguments, cu_seqlens), config=self._config)
        outputs = call(request.text, request.tensors, self._config)
        return results(request, outputs)

    def _check(self, found: PdScan, diagonal: torch.Tensor) -> None:
        wanted = self.spec.program_spec(initial_state=False, final_state=False)
        for name in (
            "state_size",
            "dictionary_size",
            "element",
            "map_source",
            "payload_storage",
        ):
            mine, given = getattr(wanted, name), getattr(found, name)
            if mine != given:
                raise ArgumentError(
                    f"the tensors have {name} {given!r}, but the scan was compiled for {mine!r}; "
                    f"compile another specification"
                )
        here = target_of(diagonal.device)
        if str(here) != str(self.target):
            raise ArgumentError(
                f"the tensors are on {diagonal.device} ({here}), but the scan was compiled for "
                f"{self.target}; move them, or compile for target={str(diagonal.device)!r}"
            )

    @cached_property
    def adjoint(self) -> Adjoint:
        """The backward program and where its inputs come from."""
        return adjoint(self.program)

    @cached_property
    def summary(self) -> Summary:
        """The programs of a chunked scan."""
        return summarise(self.program)

    def __repr__(self) -> str:
        return f"CompiledScan({self.spec}, target={self.target})"


def wanted_kernels(
    spec: ScanSpec,
    target: str | torch.device | Target | None = None,
    config: Any = None,
    *,
    initial_state: bool = False,
    output_final_state: bool = False,
    reverse: bool = False,
    packed: bool = False,
) -> list[WantedKernel]:
    """Every kernel that calls of some sizes take, as ``CompiledScan.save`` would compile them; see
    :func:`compile`. Nothing is compiled.
    """
    where = find_target(target)
    program_spec, start = _program_specs(
        spec,
        initial_state=initial_state,
        final_state=output_final_state,
        reverse=reverse,
        packed=packed,
    )
    programs = [(kind, *given) for kind, given in _programs(program_spec, config, start).items()]
    kernels = needed(programs, where, sorted(alignments(where)))
    # Not every kernel depends on how pointers are aligned.
    return list(
        dict.fromkeys(
            WantedKernel(kind, key_of(source, each), source.program.text.splitlines()[0])
            for kind, source, each in kernels
        )
    )


def _program_specs(spec: ScanSpec, **options: Any) -> tuple[PdScan, PdScan | None]:
    """The scan, and what the first tokens of packed sequences make of their initial states."""
    program_spec = spec.program_spec(**options)
    if not (options["packed"] and options["initial_state"]):
        return program_spec, None
    whole = spec.program_spec(**options | {"packed": False, "reverse": False})
    return program_spec, replace(whole, final_state=False, payload_storage="")


def _programs(
    program_spec: PdScan, config: Any, start: PdScan | None
) -> dict[str, tuple[Program, Any]]:
    """The programs of a scan, each with its config."""

    def both(spec: PdScan, config: Any, forward: str, backward: str) -> Any:
        program = pd_scan(spec)
        derived = adjoint(program).program
        return {forward: (program, config), backward: (derived, backward_config(config))}

    found = both(program_spec, config, "forward", "backward")
    # A call runs it by the schedule that the resolution order finds.
    return found | (both(start, None, "start", "start-backward") if start else {})
