"""What Triton keeps on disk on this project's behalf, in places that this project trusts.

Triton compiles through a folder of its own, and builds a C library that launches kernels, which it
would load from there in every later process, unlooked at. Here kernels are compiled through a
fresh folder, and libraries are kept in the kernel cache's, named by their hash, and checked when
they are read. ``TRITON_CACHE_DIR`` is for the user's own kernels.
"""

import atexit
import hashlib
import os
import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.errors import CacheWarning
from pdssm_compiler.runtime.eviction import LAUNCHERS
from pdssm_compiler.runtime.staging import private_folder
from pdssm_compiler.runtime.trust import distrust, flaw, make_private

# Triton's cache folder is a process-wide setting.
_lock = threading.Lock()


@contextmanager
def fresh_folder() -> Iterator[None]:
    """Let Triton compile through a folder that is new and goes in the end, so that it reads
    nothing that was there before, here or on a remote cache.
    """
    from triton.runtime.cache import FileCacheManager

    with private_folder() as folder, _kept_by(FileCacheManager, folder):
        yield


@contextmanager
def checked_libraries() -> Iterator[None]:
    """Let Triton keep the libraries that it builds meanwhile by :class:`CheckedLibraries`."""
    with _kept_by(CheckedLibraries):
        yield


@contextmanager
def _kept_by(manager: type, folder: Path | None = None) -> Iterator[None]:
    import triton

    # What the scope changes it also puts back into the environment.
    with _lock, triton.knobs.cache.scope():
        triton.knobs.cache.manager_class = manager
        if folder is not None:
            triton.knobs.cache.dir = str(folder)
        yield


class CheckedLibraries:
    """Triton's cache manager for the libraries of one source text: a file is named by its hash,
    and one that does not match it, or that somebody else could have written, is built anew.

    Args:
        key: Triton's, of the source.
        override, dump: whether Triton asks for other folders, which it is not given.
    """

    def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
        self._key = key

    def get_file(self, filename: str) -> str | None:
        """The path of a file that can be trusted, None if there is none."""
        folder = _folder() / self._key
        for path in folder.glob(f"*.{filename}"):
            try:
                reason = flaw(folder) or flaw(path)
                if reason is None:
                    if path.name == _name(path.read_bytes(), filename):
                        os.utime(folder)
                        return str(path)
                    reason = "it does not match its hash"
            except OSError as error:
                reason = f"{type(error).__name__}: {error}"
            warnings.warn(
                f"Triton's library {path} is ignored: {reason}; it is built anew",
                CacheWarning,
                stacklevel=2,
            )
            with suppress(OSError):
                path.unlink()
        return None

    def put(self, data: bytes | str, filename: str, binary: bool = True) -> str:
        """Keep a file; gives its path. Where it cannot be kept it is this process's alone."""
        content = data if isinstance(data, bytes) else str(data).encode()
        try:
            return _write(_folder() / self._key, content, filename)
        except OSError as error:
            warnings.warn(
                f"Triton's libraries are not cached: {error}; set {settings.CACHE_DIR} to a "
                f"folder that you can write",
                CacheWarning,
                stacklevel=2,
            )
            return _write(_of_this_process() / self._key, content, filename)

    def get_group(self, filename: str) -> dict[str, str] | None:
        """Compiled kernels are the cache's; none is kept here."""
        return None

    def put_group(self, filename: str, group: dict[str, str]) -> None:
        """See :meth:`get_group`."""


def _name(content: bytes, filename: str) -> str:
    return f"{hashlib.sha256(content).hexdigest()}.{filename}"


def _write(folder: Path, content: bytes, filename: str) -> str:
    make_private(folder)
    path = folder / _name(content, filename)
    descriptor, staged = tempfile.mkstemp(dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(staged, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(staged)
        raise
    return str(path)


def _folder() -> Path:
    """Where libraries are kept: in the cache's folder, if it can be trusted."""
    folder = settings.cache_dir() / LAUNCHERS
    if settings.cache_enabled() and distrust(folder) is None:
        return folder
    return _of_this_process()


@cache
def _of_this_process() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="pdssm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
