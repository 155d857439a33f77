"""The kernel cache on disk.

An entry (:mod:`pdssm_compiler.runtime.entries`) is a folder named by its key's digest. It is
written beside the others and renamed into place, so a reader sees all of it or nothing. A corrupt
entry is a miss that is reported, never a kernel. Whatever the file system refuses, the work goes
on without the cache, and says so once.
"""

import contextlib
import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import filelock

from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.entries import (
    ENTRY,
    Entries,
    EntryError,
    Files,
    read_entry,
    read_key,
    write_entry,
)
from pdssm_compiler.runtime.key import KernelKey

_DIGEST = re.compile("[0-9a-f]{64}")
_LOCK_SECONDS = 120.0
# The size of a usual entry.
_PROBE_BYTES = 128 * 1024
# What a process that died has left behind. Staging takes well under a second, and a lock is held
# while one kernel is compiled; whatever is older than this is nobody's.
_LEFTOVERS = ("staged-*", "discarded-*", "probe-*", "*.lock")
_LEFT_AFTER_SECONDS = 3600.0


class KernelCache(Entries):
    """Entries below one folder; safe for several processes.

    Args:
        root: the folder; made when first needed.
        limit: most bytes of all entries; the least recently used go first.
    """

    origin = "disk"

    def __init__(self, root: Path, limit: int) -> None:
        super().__init__()
        self.root = root
        self.limit = limit

    def load(self, key: KernelKey) -> Files | None:
        folder = self._folder(key)
        with _same_folder(folder) as is_same:
            try:
                if not folder.is_dir():
                    return None
                files = read_entry(folder, key)
            except (EntryError, OSError) as error:
                if isinstance(error.__cause__, FileNotFoundError) and not is_same():
                    # It was evicted while it was read (and perhaps stored anew): a miss.
                    return None
                self._warn(f"corrupt:{folder}", f"kernel cache entry {folder} is ignored: {error}")
                self._discard(folder)
                return None
        with contextlib.suppress(OSError):
            os.utime(folder)
        return files

    def store(self, key: KernelKey, files: Mapping[str, bytes]) -> None:
        """Add an entry; another process's equal entry is as good."""
        staged: Path | None = None
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            staged = Path(tempfile.mkdtemp(prefix="staged-", dir=self.root))
            write_entry(staged, key, files)
            try:
                staged.rename(self._folder(key))
            except OSError as error:
                # The entry was there already, which is as good; it may be gone again by now.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            self._evict()
            self._sweep()
        except OSError as error:
            self._warn(
                "store",
                f"kernels are not cached: {error}; set {settings.CACHE_DIR} to a folder that can "
                f"be written, or {settings.CACHE_ENABLED}=0 to do without",
            )
        finally:
            if staged is not None:
                shutil.rmtree(staged, ignore_errors=True)

    @contextlib.contextmanager
    def lock(self, key: KernelKey) -> Iterator[None]:
        """Hold the key, so that of several processes one compiles; without a lock where the
        folder cannot be written or the holder does not let go.
        """
        held = None
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
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
                held.release()

    def writable(self) -> str | None:
        """None if entries can be written, otherwise why not."""
        probe: Path | None = None
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            probe = Path(tempfile.mkdtemp(prefix="probe-", dir=self.root))
            # A full disk still takes an empty folder.
            (probe / "entry").write_bytes(bytes(_PROBE_BYTES))
        except OSError as error:
            return f"no: {error}"
        finally:
            if probe is not None:
                shutil.rmtree(probe, ignore_errors=True)
        return None

    def keys(self) -> Iterator[KernelKey]:
        for folder in self._folders():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                yield read_key(folder)

    def entries(self) -> list[tuple[KernelKey, Path, int]]:
        """Key, folder and bytes of every readable entry."""
        found = []
        for folder in self._folders():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                found.append((read_key(folder), folder, _bytes_of(folder)))
        return found

    def clear(self) -> int:
        """Remove every entry; gives how many there were."""
        folders = self._folders()
        for folder in folders:
            self._discard(folder)
        return len(folders)

    def _folder(self, key: KernelKey) -> Path:
        return self.root / key.digest

    def _folders(self) -> list[Path]:
        try:
            # What another process is staging or discarding is not an entry.
            names = (p for p in sorted(self.root.iterdir()) if _DIGEST.fullmatch(p.name))
            return [p for p in names if (p / ENTRY).is_file()]
        except OSError:
            return []

    def _discard(self, folder: Path) -> None:
        # Renamed first: a reader must not find half of it.
        with contextlib.suppress(OSError):
            gone = Path(tempfile.mkdtemp(prefix="discarded-", dir=self.root))
            try:
                folder.rename(gone / "entry")
            finally:
                shutil.rmtree(gone, ignore_errors=True)

    def _evict(self) -> None:
        entries = []
        for folder in self._folders():
            # Another process may remove it meanwhile.
            with contextlib.suppress(FileNotFoundError):
                entries.append((folder.stat().st_mtime, _bytes_of(folder), folder))
        total = sum(size for _, size, _ in entries)
        for _, size, folder in sorted(entries):
            if total <= self.limit:
                return
            total -= size
            self._discard(folder)

    def _sweep(self) -> None:
        """Remove what processes that died have left behind."""
        before = time.time() - _LEFT_AFTER_SECONDS
        for pattern in _LEFTOVERS:
            for path in self.root.glob(pattern):
                # Another process may be sweeping as well.
                with contextlib.suppress(OSError):
                    if path.lstat().st_mtime < before:
                        if path.is_dir():
                            shutil.rmtree(path, ignore_errors=True)
                        else:
                            path.unlink()


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


@contextlib.contextmanager
def _same_folder(folder: Path) -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether the path still names the folder it named at first.

    The folder is held open meanwhile, so that its number is not given to another.
    """
    try:
        held = os.open(folder, os.O_RDONLY)
    except OSError:
        yield folder.is_dir
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
