"""Kernels compiled ahead of time: folders of entries that are read, and never written.

``PDSSM_KERNELS`` names such folders, or :func:`load_kernels` does. Their kernels are taken before
any is compiled, so a machine that has them needs no compiler. :func:`save_kernels` writes them; a
copy of a cache's folder is one as well.
"""

import contextlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.entries import (
    ENTRY,
    Entries,
    EntryError,
    Files,
    read_entry,
    read_key,
)
from pdssm_compiler.runtime.errors import ArgumentError, SettingError
from pdssm_compiler.runtime.key import KernelKey
from pdssm_compiler.runtime.trust import distrust


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

    def keys(self) -> Iterable[KernelKey]:
        return self._folders

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


def load_kernels(folder: str | Path) -> int:
    """Take kernels from a folder before any is compiled, in this process. What ``PDSSM_KERNELS``
    names is taken likewise.

    The folder is one that :func:`pdssm_compiler.save_kernels`, ``CompiledScan.save`` or
    ``pdssm-compiler compile --out`` wrote. A kernel is machine code: load what you would run.

    Args:
        folder: the folder.

    Returns:
        How many kernels it has.

    Raises:
        ArgumentError: no such folder, or one without kernels.
    """
    path = Path(folder).resolve()
    found = DeployedKernels(path)
    count = len(list(found.keys()))
    if not count:
        raise ArgumentError(
            f"{path} has no kernels; name a folder that pdssm_compiler.save_kernels or "
            f"pdssm-compiler compile --out has written"
        )
    _folders[path] = found
    if path not in _loaded:
        _loaded.append(path)
    return count
