"""Entries: compiled kernels in folders.

An entry is a folder with the files a backend made, and ``entry.json`` with the kernel's key in
full, each file's hash, and one over all that it says itself. What is read is checked: whose it is,
its key, its hashes.
"""

import hashlib
import importlib.metadata
import json
import stat
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pdssm_compiler.runtime.errors import CacheWarning
from pdssm_compiler.runtime.key import KernelKey
from pdssm_compiler.runtime.trust import flaw

Files = dict[str, bytes]

ENTRY = "entry.json"


class EntryError(Exception):
    """An entry cannot be trusted. Its cause is what the file system or the parser said, if
    anything.
    """


class Entries(ABC):
    """A place where kernels are kept."""

    # What :func:`pdssm_compiler.explain` calls it.
    origin: str

    def __init__(self) -> None:
        self._warned: set[str] = set()

    @abstractmethod
    def load(self, key: KernelKey) -> Files | None:
        """The files of a kernel, None if there is none that can be trusted."""

    @abstractmethod
    def keys(self) -> Iterable[KernelKey]:
        """The key of every readable entry."""

    def load_stand_in(self, key: KernelKey) -> Files | None:
        """The files of a kernel that another compiler made, where none is here
        (:meth:`KernelKey.obstacles`).
        """
        for other in self.keys():
            if not other.obstacles(key):
                files = self.load(other)
                if files is not None:
                    return files
        return None

    def _warn(self, message: str, topic: str | None = None) -> None:
        """Say something; once, where it is of a topic."""
        if topic is None:
            warnings.warn(message, CacheWarning, stacklevel=3)
        elif topic not in self._warned:
            self._warned.add(topic)
            warnings.warn(message, CacheWarning, stacklevel=3)


def write_entry(folder: Path, key: KernelKey, files: Mapping[str, bytes]) -> None:
    """Fill a folder that is there with an entry.

    Raises:
        OSError: what the file system says.
    """
    record = {
        "key": asdict(key),
        "files": {n: hashlib.sha256(c).hexdigest() for n, c in files.items()},
        "version": importlib.metadata.version("pdssm-compiler"),
        "created": time.time(),
    }
    record["sum"] = _sum_of(record)
    text = json.dumps(record, indent=1, sort_keys=True)
    # The record last: what has none is no entry.
    for name, content in (*files.items(), (ENTRY, text.encode())):
        (folder / name).write_bytes(content)
        # Whatever this user's umask, others do not write.
        (folder / name).chmod(0o644)


def read_record(folder: Path) -> dict[str, Any]:
    """What an entry says of itself: its ``key``, the hashes of its ``files``, the ``version`` of
    the package that made it, and when it was ``created``. The files are not looked at.

    Raises:
        OSError, ValueError: it cannot be read, or is not what was written.
    """
    try:
        found = json.loads((folder / ENTRY).read_bytes())
    except RecursionError:
        raise ValueError(f"{ENTRY} is nested too deep") from None
    if not isinstance(found, dict) or found.get("sum") != _sum_of(found):
        raise ValueError(f"{ENTRY} does not match its own hash")
    return found


def read_key(folder: Path) -> KernelKey:
    """The key that an entry says it has.

    Raises:
        OSError, ValueError, KeyError, TypeError: it cannot be read, or is not of this version.
    """
    return KernelKey(**read_record(folder)["key"])


def read_entry(folder: Path, key: KernelKey) -> Files:
    """The files of the entry of a key. The folder it is in is one that can be trusted
    (:func:`pdssm_compiler.runtime.trust.distrust`); what is in the entry is checked here.

    Raises:
        EntryError: it cannot be trusted.
    """
    try:
        # A folder, and files: to open anything else could wait forever.
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise EntryError("it is not a folder")
        _trusted(folder)
        _regular(folder / ENTRY)
        record = read_record(folder)
        if record["key"] != asdict(key):
            raise EntryError("its key is not the one it is stored under")
        files = {}
        for name, digest in record["files"].items():
            _regular(folder / name)
            files[name] = (folder / name).read_bytes()
            if hashlib.sha256(files[name]).hexdigest() != digest:
                raise EntryError(f"{name} does not match its hash")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise EntryError(f"{type(error).__name__}: {error}") from error
    return files


def _sum_of(record: Mapping[str, Any]) -> str:
    """The hash of all else that a record says."""
    rest = {name: value for name, value in record.items() if name != "sum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _trusted(path: Path) -> None:
    reason = flaw(path)
    if reason is not None:
        raise EntryError(reason)


def _regular(path: Path) -> None:
    if not stat.S_ISREG(path.lstat().st_mode):
        raise EntryError(f"{path.name} is not a file")
    _trusted(path)
