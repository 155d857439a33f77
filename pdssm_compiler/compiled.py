"""Compiling a specification ahead of its first call."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pdssm_compiler.arguments import read_call, truth
from pdssm_compiler.functional import results
from pdssm_compiler.ir.passes import Adjoint, Summary, adjoint, specialise, summarise
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime import compile_service
from pdssm_compiler.runtime.backends import BACKENDS, Kernel
from pdssm_compiler.runtime.cache import default_cache
from pdssm_compiler.runtime.compile_service import (
    Schedule,
    backward_config,
    config_text,
    read_config,
)
from pdssm_compiler.runtime.devices import find_target, target_of
from pdssm_compiler.runtime.dispatch import call
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.key import key_of
from pdssm_compiler.runtime.saving import SavedKernel, save_programs
from pdssm_compiler.schedules.source import KernelSource
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.spec import MAP_DTYPES, OPTIONS, ScanSpec, one_of

# Fresh torch tensors are aligned so; kernels for other pointers are compiled when met.
_ALIGNMENT = {"cpu": 0, "cuda": 16, "hip": 16, "other": 0}


def compile(
    spec: ScanSpec,
    target: str | torch.device | Target | None = None,
    *,
    config: Any = None,
    initial_state: bool = False,
    output_final_state: bool = False,
    map_dtype: torch.dtype = torch.int32,
    selection_dtype: torch.dtype = torch.int32,
) -> "CompiledScan":
    """Compile the forward and backward kernels of a scan.

    Args:
        spec: the scan. Batch, length and heads stay symbolic.
        target: a torch device (``"cpu"``, ``"cuda:0"``), an architecture (``"sm_90"``,
            ``"gfx942"``: the device need not be there, the kernels are then made but cannot be
            called here), or None for this machine's GPU if it has one and its CPU otherwise.
        config: a template's config for the forward kernel, instead of the one the resolution
            order finds; or a template's name, such as ``"triton-chunks"``, for both kernels.
        initial_state: whether to compile for one now; calls may do otherwise, and compile that
            when met.
        output_final_state: likewise.
        map_dtype: integer dtype of the maps to compile for now.
        selection_dtype: integer dtype of the selection to compile for now.

    Raises:
        ArgumentError: a target that is neither, or a GPU that is not here.
        UnknownTargetError: an architecture or a type of device that is not known.
        NoTemplateError: no template, or not the one in ``config``, can run the scan there.
        BackendUnavailableError: what compiling needs is missing.
    """
    if not isinstance(spec, ScanSpec):
        raise ArgumentError(
            f"spec must be a ScanSpec, got {type(spec).__name__}; make one with ScanSpec(N, K)"
        )
    one_of("map_dtype", map_dtype, tuple(MAP_DTYPES))
    one_of("selection_dtype", selection_dtype, tuple(MAP_DTYPES))
    program_spec = spec.program_spec(
        initial_state=truth("initial_state", initial_state),
        final_state=truth("output_final_state", output_final_state),
        maps=MAP_DTYPES[map_dtype],
        selection=MAP_DTYPES[selection_dtype],
    )
    return CompiledScan(spec, program_spec, find_target(target), config)


class CompiledScan:
    """A compiled scan: call it like :func:`pdssm_compiler.pd_scan`.

    Attributes:
        spec: the specification.
        target: what it was compiled for.
        program: the scan program; its text form is ``str(program)``.
        schedule: template, config and the reason it was taken.
        source: the generated source of the forward kernel, with how to compile it.
        files: what the compiler made: source, object file, or Triton's stages (``scan.ttir``,
            ``scan.ttgir``, ``scan.ptx``, ``scan.cubin``, …), by file name.
    """

    def __init__(self, spec: ScanSpec, program_spec: PdScan, target: Target, config: Any) -> None:
        self.spec = spec
        self.target = target
        self.program: Program = pd_scan(program_spec)
        self._config = config_text(config)
        self.source, self.schedule = compile_service.lower(self.program, target, config)
        self.files, self.origin = self._obtain(self.source)
        self.backward_source, self.backward_schedule = compile_service.lower(
            self.adjoint.program, target, backward_config(config)
        )
        self.backward_files, _ = self._obtain(self.backward_source)

    def _obtain(self, source: KernelSource) -> tuple[dict[str, bytes], str]:
        alignment = _ALIGNMENT[self.target.kind]
        key = key_of(source, alignment)
        return compile_service.obtain(source, key, alignment, default_cache())

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
        request = read_call(
            diagonal,
            drive,
            dictionary,
            selection,
            destination,
            self.spec.map_class,
            self.spec.orientation,
            initial_state,
            output_final_state,
        )
        self._check(request.spec, diagonal)
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

    @cached_property
    def specialised(self) -> Program:
        """The program after ``specialise``: what the forward kernel runs."""
        return specialise(self.program)

    def kernel(self) -> Kernel:
        """The forward kernel as the backend holds it.

        Raises:
            BackendUnavailableError: the backend's runtime is missing.
        """
        alignment = _ALIGNMENT[self.target.kind]
        return BACKENDS[self.source.backend].load(self.source, alignment, self.files)

    def save(self, folder: str | Path) -> list[SavedKernel]:
        """Save the forward and backward kernels of every template that calls of some sizes take,
        and the helper programs they need, for a machine without a compiler. It has this version of
        pdssm-compiler, and ``PDSSM_KERNELS`` or :func:`pdssm_compiler.load_kernels` names the
        folder there.

        They are for what was compiled: with the initial and final states, dtypes and config given
        to :func:`compile`, and gradients of all inputs and outputs. To save what a program of
        yours runs, see :func:`pdssm_compiler.save_kernels`.

        Args:
            folder: made if it is not there; kernels that are in it are kept.

        Raises:
            ArgumentError: the folder cannot be written.
            BackendUnavailableError: what compiling needs is missing.
        """
        config = read_config(self._config)
        programs = (
            ("forward", self.program, config),
            ("backward", self.adjoint.program, backward_config(config)),
        )
        # Helper programs, and pointers that torch has not made, are not aligned.
        alignments = {0, _ALIGNMENT[self.target.kind]}
        return save_programs(programs, self.target, alignments, Path(folder))

    def explain(self) -> str:
        """What was compiled, and why so."""
        return "\n".join(
            f"{name}: {schedule.template.name} {schedule.config} on {self.target}, by "
            f"{schedule.reason}"
            for name, schedule in self._schedules()
        )

    def _schedules(self) -> tuple[tuple[str, Schedule], ...]:
        return (("forward", self.schedule), ("backward", self.backward_schedule))

    def __repr__(self) -> str:
        return f"CompiledScan({self.spec}, target={self.target})"
