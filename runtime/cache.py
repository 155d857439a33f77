"""The kernel cache on disk.

An entry (:mod:`pdssm_compiler.runtime.entries`) is a folder named by its key's digest. It is
written beside the others and renamed into place, so a reader sees all of it or nothing. A corrupt
entry is a miss that is reported, never a kernel. Whatever the file system refuses, the work goes
on without the cache, and says so once; likewise where somebody else could write to its folder.
"""

import contextlib
import errno
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import filelock

from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.entries import (
    Entries,
    EntryError,
    Files,
    read_entry,
    read_key,
    write_entry,
)
from pdssm_compiler.runtime.eviction import bytes_of, entry_folders, kept_folders, last_use
from pdssm_compiler.runtime.key import KernelKey
from pdssm_compiler.runtime.staging import remove, staged, sweep
from pdssm_compiler.runtime.trust import distrust, make_private

_LOCK_SECONDS = 120.0
# The size of a usual entry.
_PROBE_BYTES = 128 * 1024
_REMEDY = (
    f"set {settings.CACHE_DIR} to a folder that %s can write, or {settings.CACHE_ENABLED}=0 to do "
    f"without"
)


class KernelCache(Entries):
    """Entries below one folder; safe for several processes.

    Args:
        root: the folder; made when first needed.
        limit: most bytes of all that is kept; the least recently used go first.
    """

    origin = "disk"

    def __init__(self, root: Path, limit: int) -> None:
        super().__init__()
        self.root = root
        self.limit = limit

    def load(self, key: KernelKey) -> Files | None:
        if self._refused():
            return None
        folder = self._folder(key)
        with _same_folder(folder) as is_same:
            try:
                if not os.path.lexists(folder):
                    return None
                files = read_entry(folder, key)
            except (EntryError, OSError) as error:
                if not is_same():
                    # It was evicted while it was read, and perhaps stored anew: a miss.
                    return None
                removed = self._discard(folder)
                done = "it is removed, and" if removed else "remove it, for it cannot be;"
                self._warn(
                    f"kernel cache entry {folder} is ignored: {error}; {done} its kernel is "
                    f"compiled anew"
                )
                return None
        with contextlib.suppress(OSError):
            os.utime(folder)
        return files

    def store(self, key: KernelKey, files: Mapping[str, bytes]) -> None:
        """Add an entry; another process's equal entry is as good."""
        if self._refused():
            return
        try:
            try:
                self._add(key, files)
            except OSError:
                # The disk may be full of what is over the limit, or was left behind.
                self._tidy(key)
                self._add(key, files)
            self._tidy(key)
        except OSError as error:
            self._warn(f"kernels are not cached: {error}; {_REMEDY % 'you'}", "store")

    @contextlib.contextmanager
    def lock(self, key: KernelKey) -> Iterator[None]:
        """Hold the key, so that of several processes one compiles; without a lock where the
        folder cannot be used or the holder does not let go.
        """
        held = None
        try:
            if not self._refused():
                make_private(self.root)
                held = filelock.FileLock(self.root / f"{key.digest}.lock", timeout=_LOCK_SECONDS)
                held.acquire()
                # The file may be of an earlier holder, and old: what is in use is not left behind.
                with contextlib.suppress(OSError):
                    os.utime(held.lock_file)
        except (OSError, filelock.Timeout):
            # Compiling twice is slower, not wrong.
            held = None
        try:
            yield
        finally:
            if held is not None:
                # The system drops it at the latest when the process ends.
                with contextlib.suppress(OSError):
                    held.release()

    def writable(self) -> str | None:
        """None if entries can be written, otherwise why not."""
        reason = distrust(self.root)
        if reason is not None:
            return f"no: {reason}"
        try:
            with staged(self.root, "probe") as folder:
                # A full disk still takes an empty folder.
                (folder / "entry").write_bytes(bytes(_PROBE_BYTES))
        except OSError as error:
            return f"no: {error}"
        return None

    def keys(self) -> Iterator[KernelKey]:
        for folder in entry_folders(self.root):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                yield read_key(folder)

    def entries(self) -> list[tuple[KernelKey, Path, int]]:
        """Key, folder and bytes of every readable entry."""
        found = []
        for folder in entry_folders(self.root):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                found.append((read_key(folder), folder, bytes_of(folder)))
        return found

    def unused(self, seconds: float = 0.0) -> dict[Path, int]:
        """Entries that have not been used for some time, with their bytes; all for 0."""
        now = time.time()
        found = {}
        for folder in kept_folders(self.root):
            # Another process may remove it meanwhile.
            with contextlib.suppress(OSError):
                if not seconds or now - last_use(folder, now) > seconds:
                    found[folder] = bytes_of(folder)
        return found

    def clear(self, unused_seconds: float = 0.0) -> int:
        """Remove what has not been used for some time, and what processes that ended have left.

        Args:
            unused_seconds: since the last use; 0 for all there is.

        Returns:
            How many entries are gone.
        """
        gone = sum(self._discard(folder) for folder in self.unused(unused_seconds))
        sweep(self.root, 0.0)
        return gone

    def _refused(self) -> bool:
        """Whether the folder is not to be used, for others can write there; says so."""
        reason = distrust(self.root)
        if reason is not None:
            self._warn(f"kernels are not cached: {reason}, or {_REMEDY % 'only you'}", "refused")
        return reason is not None

    def _folder(self, key: KernelKey) -> Path:
        return self.root / key.digest

    def _discard(self, folder: Path) -> bool:
        """Remove an entry; gives whether it is gone."""
        # Renamed first: a reader must not find half of it. A full disk has no room for a new
        # folder to put it into.
        gone = self.root / f"discarded-{secrets.token_hex(8)}"
        with contextlib.suppress(OSError):
            folder.rename(gone)
            remove(gone)
        return not os.path.lexists(folder)

    def _add(self, key: KernelKey, files: Mapping[str, bytes]) -> None:
        with staged(self.root, "staged") as folder:
            write_entry(folder, key, files)
            try:
                folder.rename(self._folder(key))
            except OSError as error:
                # It was there already, which is as good; it may be gone again by now.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise

    def _tidy(self, key: KernelKey) -> None:
        """Keep to the limit, by what has not been used for the longest, and last of all by what
        was just stored; remove what processes that ended have left.
        """
        newest = self._folder(key)
        now = time.time()
        kept = []
        for folder in kept_folders(self.root):
            # Another process may remove it meanwhile.
            with contextlib.suppress(OSError):
                kept.append((folder == newest, last_use(folder, now), bytes_of(folder), folder))
        total = sum(size for _, _, size, _ in kept)
        for _, _, size, folder in sorted(kept):
            if total <= self.limit:
                break
            total -= size
            self._discard(folder)
        sweep(self.root)


@contextlib.contextmanager
def _same_folder(folder: Path) -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether the path still names the folder it named at first.

    The folder is held open meanwhile, so that its number is not given to another.
    """
    try:
        held = os.open(folder, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        yield lambda: os.path.lexists(folder)
        return

    def is_same() -> bool:
        try:
            return os.path.samestat(os.fstat(held), folder.stat())
        except OSError:
            return False

    try:
        yield is_same
    finally:
        os.close(held)


def default_cache() -> KernelCache | None:
    """The cache the settings ask for, None if they ask for none."""
    if not settings.cache_enabled():
        return None
    return _cache_at(settings.cache_dir(), settings.cache_limit())


_caches: dict[tuple[Path, int], KernelCache] = {}


def _cache_at(root: Path, limit: int) -> KernelCache:
    # One object a folder, so that each warning is given once.
    return _caches.setdefault((root, limit), KernelCache(root, limit))
