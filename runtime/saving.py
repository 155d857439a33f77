"""Saving kernels to a folder, for machines that compile none.

Each is an entry (:mod:`pdssm_compiler.runtime.entries`) with a name to read; what its key says is
what finds it again (:mod:`pdssm_compiler.runtime.deployed`).
"""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pdssm_compiler.ir.passes import specialise
from pdssm_compiler.ir.program import Program
from pdssm_compiler.runtime.backends import BACKENDS
from pdssm_compiler.runtime.bundles import Choice, Choices, Manifest
from pdssm_compiler.runtime.cache import default_cache
from pdssm_compiler.runtime.compile_service import choices, obtain
from pdssm_compiler.runtime.entries import Files, write_entry
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.key import KernelKey, generator_hash, key_of
from pdssm_compiler.runtime.plan import Plan, inverting_programs, plans, promise_programs
from pdssm_compiler.schedules.registry import candidates
from pdssm_compiler.schedules.source import KernelSource
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Problem


@dataclass(frozen=True)
class SavedKernel:
    """A kernel in a folder.

    Attributes:
        kind: ``forward``, ``backward``, or ``helper`` for a program that inverts or checks maps.
        source: what was generated.
        files: the files, by name.
        folder: the entry's own folder.
        needs: what a machine needs besides this package and torch to run it.
    """

    kind: str
    source: KernelSource
    files: Files
    folder: Path
    needs: str


def save_kernels(folder: str | Path) -> list[SavedKernel]:
    """Save every compiled kernel that this process has run so far, so that another one runs them
    without a compiler: it needs this version of pdssm-compiler, and what ``needs`` says.

    Run what will be run there (forward, backward, each dtype and option), then save.

    Args:
        folder: made if it is not there; kernels that are in it are kept.

    Returns:
        What was saved.

    Raises:
        ArgumentError: the folder cannot be written.
    """
    ran: list[tuple[str, Plan]] = [(plan.program.direction, plan) for plan in plans()]
    ran += [("helper", helper) for plan in plans() for helper in plan.helpers]
    saved = _Saved(Path(folder))
    for kind, plan in ran:
        for built in plan.kernels.built:
            saved.save(kind, built.source, built.key.alignment)
    return saved.kernels


def save_programs(
    programs: Iterable[tuple[str, Program, Any]],
    target: Target,
    alignments: Iterable[int],
    folder: Path,
) -> list[SavedKernel]:
    """Save the kernels of programs, for calls of any sizes, and a manifest of which calls take
    which, and why (:mod:`pdssm_compiler.runtime.bundles`).

    Args:
        programs: each with its kind before it and its config, or None, behind it.
        target: what to compile for.
        alignments: of pointers, each of which is compiled for.
        folder: see :func:`save_kernels`.

    Raises:
        ArgumentError, BackendUnavailableError, NoTemplateError
    """
    saved = _Saved(folder)
    told: dict[str, Choices] = {}
    for kind, program, config, aligned in _programs(programs, tuple(alignments)):
        if program.fingerprint in told:
            continue
        found = []
        for schedule, sizes in choices(program, target, config):
            template = schedule.template
            # Nobody asked for plain PyTorch in a missing compiler's stead: it is not handed on.
            if template.backend == "torch" and config is None:
                continue
            source = template.lower(program, target, schedule.config)
            kernels = [saved.save(kind, source, alignment) for alignment in aligned]
            names = dict.fromkeys(kernel.folder.name for kernel in kernels if kernel)
            fields = asdict(schedule.config)
            found.append(
                Choice(template.name, fields, schedule.reason, tuple(sizes), tuple(names))
            )
        refused = {
            candidate.template.name: candidate.problem
            for candidate in candidates(program, target, Problem())
            if candidate.problem is not None
        }
        told[program.fingerprint] = Choices(kind, program.fingerprint, refused, tuple(found))
    if saved.kernels:
        with _writing(folder):
            Manifest(target, generator_hash(), tuple(told.values())).write(folder)
    return saved.kernels


def needed(
    programs: Iterable[tuple[str, Program, Any]], target: Target, alignments: Iterable[int]
) -> Iterator[tuple[str, KernelSource, int]]:
    """Kind, source and alignment of every kernel that :func:`save_programs` would compile."""
    for kind, program, config, aligned in _programs(programs, tuple(alignments)):
        for schedule, _ in choices(program, target, config):
            source = schedule.template.lower(program, target, schedule.config)
            yield from ((kind, source, alignment) for alignment in aligned)


def _programs(
    programs: Iterable[tuple[str, Program, Any]], alignments: tuple[int, ...]
) -> Iterator[tuple[str, Program, Any, tuple[int, ...]]]:
    """Programs, specialised, and those that they need, each with what it is compiled for."""
    for kind, program, config in programs:
        lowered = specialise(program)
        yield kind, lowered, config, alignments
        helpers = inverting_programs(lowered)
        # A backward's promises were verified by its forward.
        if kind != "backward":
            helpers += promise_programs(program, lowered)
        for _, helper in helpers:
            yield "helper", specialise(helper), None, (0,)


class _Saved:
    """What has been saved to a folder, each kernel once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._of: dict[KernelKey, SavedKernel] = {}

    @property
    def kernels(self) -> list[SavedKernel]:
        return list(self._of.values())

    def save(self, kind: str, source: KernelSource, alignment: int) -> SavedKernel | None:
        """Save a kernel; None for plain PyTorch, which is generated where it runs."""
        if source.backend == "torch":
            return None
        key = key_of(source, alignment)
        found = self._of.get(key)
        if found is None:
            backend = BACKENDS[source.backend]
            files = backend.deployable(obtain(source, key, alignment, default_cache())[0])
            name = f"{source.target.arch}-{kind}-{source.template}-{key.digest[:12]}"
            folder = self._folder / name
            with _writing(self._folder):
                _write(folder, key, files)
            found = SavedKernel(kind, source, files, folder, backend.needs(files))
            self._of[key] = found
        return found


def _write(folder: Path, key: KernelKey, files: Files) -> None:
    """An entry in place of any that is there, all of it or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix="staged-", dir=folder.parent))
    try:
        write_entry(staged, key, files)
        # Others may run it, too.
        staged.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        staged.rename(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArgumentError(
            f"cannot write kernels to {folder}: {error.strerror}; name a folder that can be "
            f"written"
        ) from None
