"""Kernels compiled ahead of time: folders of entries that are read, and never written.

``PDSSM_KERNELS`` names such folders, or :func:`load_kernels` does. Their kernels are taken before
any is compiled, so a machine that has them needs no compiler. :func:`save_kernels` writes them; a
copy of a cache's folder is one as well.
"""

import contextlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import torch

from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.bundles import Manifest, read_manifests
from pdssm_compiler.runtime.devices import find_target, target_of
from pdssm_compiler.runtime.entries import (
    ENTRY,
    Entries,
    EntryError,
    Files,
    read_entry,
    read_key,
)
from pdssm_compiler.runtime.errors import ArgumentError, SettingError
from pdssm_compiler.runtime.key import KernelKey, generator_hash
from pdssm_compiler.runtime.trust import distrust
from pdssm_compiler.schedules.target import Target


class DeployedKernels(Entries):
    """The entries right below one folder, as they are when it is first looked into.

    Args:
        root: the folder.
    """

    origin = "deployed"

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    @cached_property
    def _folders(self) -> dict[KernelKey, Path]:
        found = {}
        for path in sorted(self.root.glob(f"*/{ENTRY}")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                found[read_key(path.parent)] = path.parent
        return found

    @cached_property
    def manifests(self) -> list[Manifest]:
        """What was chosen for the scans that were compiled whole."""
        return read_manifests(self.root)

    def keys(self) -> Iterable[KernelKey]:
        return self._folders

    def missing(self) -> list[str]:
        """Kernels that a manifest names and that are not here."""
        here = {folder.name for folder in self._folders.values()}
        named = dict.fromkeys(name for each in self.manifests for name in each.kernels)
        return [name for name in named if name not in here]

    def load(self, key: KernelKey) -> Files | None:
        folder = self._folders.get(key)
        if folder is None:
            return None
        try:
            reason = distrust(self.root)
            if reason is not None:
                raise EntryError(reason)
            return read_entry(folder, key)
        except EntryError as error:
            self._warn(f"the kernel in {folder} is ignored: {error}", f"corrupt:{folder}")
            return None


_folders: dict[Path, DeployedKernels] = {}
_loaded: list[Path] = []


def deployed() -> list[DeployedKernels]:
    """Every folder that was named, those of :func:`load_kernels` first.

    Raises:
        SettingError: ``PDSSM_KERNELS`` names one that is not there.
    """
    named = settings.kernel_folders()
    for path in named:
        if not path.is_dir():
            raise SettingError(f"{settings.KERNELS} names {path}, which is not a folder")
    # One object a folder, so that it is read once.
    return [_folders.setdefault(path, DeployedKernels(path)) for path in (*_loaded, *named)]


def load_kernels(
    folder: str | Path, target: str | Path | torch.device | Target | None = None
) -> int:
    """Take kernels from a folder before any is compiled, in this process. What ``PDSSM_KERNELS``
    names is taken likewise.

    The folder is one that :func:`pdssm_compiler.save_kernels`, ``CompiledScan.save`` or
    ``pdssm-compiler compile --output`` wrote. A kernel is machine code: load what you would run.

    Args:
        folder: the folder.
        target: what the kernels shall run on, as :func:`pdssm_compiler.compile` takes it; None for
            any device of this machine.

    Returns:
        How many kernels it has, for the target if one is given.

    Raises:
        ArgumentError: no such folder, or one without kernels; one whose kernels are all for other
            devices, or of another version; one that lacks kernels which its manifest names.
    """
    path = Path(folder).resolve()
    found = DeployedKernels(path)
    keys = list(found.keys())
    if not keys:
        raise ArgumentError(
            f"{path} has no kernels; name a folder that pdssm_compiler.save_kernels or "
            f"pdssm-compiler compile --output has written"
        )
    wanted = None if target is None else find_target(target)
    for where in _targets_here() if wanted is None else [wanted]:
        running = [key for key in keys if _misfit(key, where) is None]
        if running:
            break
    else:
        raise ArgumentError(_no_kernel_runs(path, keys, wanted))
    missing = found.missing()
    if missing:
        raise ArgumentError(
            f"{path} lacks {len(missing)} of the kernels that its manifest names, {missing[0]} "
            f"among them; copy the whole folder, or compile it again"
        )
    _folders[path] = found
    if path not in _loaded:
        _loaded.append(path)
    return len(keys if wanted is None else running)


def _targets_here() -> Iterator[Target]:
    """This machine's devices. The CPU first: a GPU that is asked is one that is set up."""
    yield target_of(torch.device("cpu"))
    for index in range(torch.cuda.device_count()):
        yield target_of(torch.device("cuda", index))


def _misfit(key: KernelKey, target: Target) -> str | None:
    """Why a kernel does not run on a target; None if it does."""
    if key.generator != generator_hash():
        return "of another version of pdssm-compiler"
    if key.target != str(target):
        return f"for {key.target}"
    if set(key.features.split()) - set(target.features.split()):
        return f"for a {key.target} with features that this one lacks"
    return None


def _no_kernel_runs(path: Path, keys: Iterable[KernelKey], wanted: Target | None) -> str:
    targets = list(_targets_here()) if wanted is None else [wanted]
    reasons = dict.fromkeys(_misfit(key, target) for key in keys for target in targets)
    where = ", ".join(dict.fromkeys(map(str, targets)))
    told = " and ".join(filter(None, reasons))
    return (
        f"no kernel in {path} runs on {where}: they are {told}; compile for it, with this "
        f"version: pdssm-compiler compile --target {targets[-1].arch} --output FOLDER"
    )
