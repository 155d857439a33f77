"""Saving kernels to a folder, for machines that compile none.

Each is an entry (:mod:`pdssm_compiler.runtime.entries`) with a name to read; what its key says is
what finds it again (:mod:`pdssm_compiler.runtime.deployed`).
"""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdssm_compiler.ir.passes import specialise
from pdssm_compiler.ir.program import Program
from pdssm_compiler.runtime.backends import BACKENDS
from pdssm_compiler.runtime.cache import default_cache
from pdssm_compiler.runtime.compile_service import obtain, schedules
from pdssm_compiler.runtime.entries import Files, write_entry
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.key import KernelKey, key_of
from pdssm_compiler.runtime.plan import Plan, inverting_programs, plans, promise_programs
from pdssm_compiler.schedules.source import KernelSource
from pdssm_compiler.schedules.target import Target


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
    kernels = ((kind, built) for kind, plan in ran for built in plan.kernels.built)
    return _save(Path(folder), ((kind, b.source, b.key.alignment) for kind, b in kernels))


def save_programs(
    programs: Iterable[tuple[str, Program, Any]],
    target: Target,
    alignments: Iterable[int],
    folder: Path,
) -> list[SavedKernel]:
    """Save the kernels of programs, for calls of any sizes.

    Args:
        programs: each with its kind before it and its config, or None, behind it.
        target: what to compile for.
        alignments: of pointers, each of which is compiled for.
        folder: see :func:`save_kernels`.

    Raises:
        ArgumentError, BackendUnavailableError, NoTemplateError
    """
    return _save(folder, needed(programs, target, alignments))


def needed(
    programs: Iterable[tuple[str, Program, Any]], target: Target, alignments: Iterable[int]
) -> Iterator[tuple[str, KernelSource, int]]:
    """Kind, source and alignment of every kernel that calls of some sizes take; see
    :func:`save_programs`.
    """
    for kind, program, config in programs:
        lowered = specialise(program)
        for schedule in schedules(lowered, target, config):
            source = schedule.template.lower(lowered, target, schedule.config)
            yield from ((kind, source, alignment) for alignment in alignments)
        helpers = inverting_programs(lowered)
        # A backward's promises were verified by its forward.
        if kind != "backward":
            helpers += promise_programs(program, lowered)
        for helper in (specialise(helper) for _, helper in helpers):
            for schedule in schedules(helper, target):
                yield "helper", schedule.template.lower(helper, target, schedule.config), 0


def _save(folder: Path, kernels: Iterable[tuple[str, KernelSource, int]]) -> list[SavedKernel]:
    saved: dict[KernelKey, SavedKernel] = {}
    for kind, source, alignment in kernels:
        key = key_of(source, alignment)
        # Plain PyTorch is generated where it runs.
        if source.backend == "torch" or key in saved:
            continue
        backend = BACKENDS[source.backend]
        files = backend.deployable(obtain(source, key, alignment, default_cache())[0])
        name = f"{source.target.arch}-{kind}-{source.template}-{key.digest[:12]}"
        _write(folder / name, key, files)
        saved[key] = SavedKernel(kind, source, files, folder / name, backend.needs(files))
    return list(saved.values())


def _write(folder: Path, key: KernelKey, files: Files) -> None:
    """An entry in place of any that is there, all of it or nothing."""
    try:
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
    except OSError as error:
        raise ArgumentError(
            f"cannot write kernels to {folder.parent}: {error.strerror}; name a folder that can "
            f"be written"
        ) from None
