"""What compiling makes: the kernels of a scan ahead of its first call, and how they came to be."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pdssm_compiler.ir.passes import specialise
from pdssm_compiler.ir.program import Program
from pdssm_compiler.runtime import compile_service
from pdssm_compiler.runtime.backends import BACKENDS, Kernel
from pdssm_compiler.runtime.cache import default_cache
from pdssm_compiler.runtime.key import key_of
from pdssm_compiler.runtime.saving import SavedKernel, save_programs
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Problem

# Fresh torch tensors are aligned so; kernels for other pointers are compiled when met.
_ALIGNMENT = {"cpu": 0, "cuda": 16, "hip": 16, "other": 0}


def alignments(target: Target) -> set[int]:
    """What kernels are compiled for to serve every call: helper programs, and pointers that torch
    has not made, are not aligned.
    """
    return {0, _ALIGNMENT[target.kind]}


class Artifact:
    """One compiled kernel.

    Attributes:
        program: what it runs.
        source: its generated source, with how to compile it.
        schedule: template, config and the reason it was taken.
        files: what the compiler made, by file name.
        origin: ``compiled`` or ``disk``.
    """

    def __init__(
        self, program: Program, target: Target, config: Any, problem: Problem | None
    ) -> None:
        self.program = program
        self.source, self.schedule = compile_service.lower(program, target, config, problem)
        self._alignment = _ALIGNMENT[target.kind]
        key = key_of(self.source, self._alignment)
        self.files, self.origin = compile_service.obtain(
            self.source, key, self._alignment, default_cache()
        )

    def kernel(self) -> Kernel:
        """The kernel as its backend holds it.

        Raises:
            BackendUnavailableError: the backend's runtime is missing.
        """
        return BACKENDS[self.source.backend].load(self.source, self._alignment, self.files)


class Artifacts:
    """The kernels of a scan, of programs and their configs.

    Attributes:
        target: what they were compiled for.
        kernels: each by what it is for; ``forward`` and ``backward`` are always there.
        program: the forward program; its text form is ``str(program)``.
        schedule: of the forward kernel: template, config and the reason it was taken.
        source: the generated source of the forward kernel, with how to compile it.
        files: what the compiler made of it: source, object file, or Triton's stages
            (``scan.ttir``, ``scan.ttgir``, ``scan.ptx``, ``scan.cubin``, …), by file name.
        backward_schedule, backward_source, backward_files: likewise of the backward kernel.
    """

    def __init__(
        self,
        programs: Mapping[str, tuple[Program, Any]],
        target: Target,
        problems: Mapping[str, Problem],
    ) -> None:
        self.target = target
        self.kernels = {
            name: Artifact(program, target, config, problems.get(name))
            for name, (program, config) in programs.items()
        }
        forward, backward = self.kernels["forward"], self.kernels["backward"]
        self.program = forward.program
        self.source, self.schedule = forward.source, forward.schedule
        self.files, self.origin = forward.files, forward.origin
        self.backward_source, self.backward_schedule = backward.source, backward.schedule
        self.backward_files = backward.files
        self._lowered_from = programs

    @cached_property
    def specialised(self) -> Program:
        """The program after ``specialise``: what the forward kernel runs."""
        return specialise(self.program)

    def kernel(self) -> Kernel:
        """The forward kernel as the backend holds it.

        Raises:
            BackendUnavailableError: the backend's runtime is missing.
        """
        return self.kernels["forward"].kernel()

    def explain(self) -> str:
        """What was compiled, and why so."""
        return "\n".join(
            f"{name}: {kernel.schedule.template.name} {kernel.schedule.config} on {self.target}, "
            f"by {kernel.schedule.reason}"
            for name, kernel in self.kernels.items()
        )

    def save(self, folder: str | Path) -> list[SavedKernel]:
        """Save the kernels of every template that calls of some sizes take, and the helper
        programs they need, for a machine without a compiler. It has this version of
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
        programs = [
            (name, program, config) for name, (program, config) in self._lowered_from.items()
        ]
        return save_programs(programs, self.target, alignments(self.target), Path(folder))
