"""Entries: compiled kernels in folders.

An entry is a folder with the files a backend made, and ``entry.json`` with the kernel's key in
full and each file's hash. What is read is checked: its owner, its key, its hashes.
"""

import hashlib
import json
import os
import stat
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from pdssm_compiler.runtime.errors import CacheWarning
from pdssm_compiler.runtime.key import KernelKey

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

    def _warn(self, topic: str, message: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            warnings.warn(message, CacheWarning, stacklevel=3)


def write_entry(folder: Path, key: KernelKey, files: Mapping[str, bytes]) -> None:
    """Fill a folder that is there with an entry.

    Raises:
        OSError: what the file system says.
    """
    for name, content in files.items():
        (folder / name).write_bytes(content)
    record = {
        "key": asdict(key),
        "files": {n: hashlib.sha256(c).hexdigest() for n, c in files.items()},
        "created": time.time(),
    }
    (folder / ENTRY).write_text(json.dumps(record, indent=1, sort_keys=True))


def read_key(folder: Path) -> KernelKey:
    """The key of an entry, which is not checked.

    Raises:
        OSError, ValueError, KeyError, TypeError: it cannot be read, or is not of this version.
    """
    return KernelKey(**json.loads((folder / ENTRY).read_text())["key"])


def read_entry(folder: Path, key: KernelKey) -> Files:
    """The files of the entry of a key.

    Raises:
        EntryError: it cannot be trusted.
    """
    try:
        reason = distrust(folder)
        if reason is None:
            record = json.loads((folder / ENTRY).read_text())
            files = {name: (folder / name).read_bytes() for name in record["files"]}
            reason = _corruption(record, files, key)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EntryError(f"{type(error).__name__}: {error}") from error
    if reason is not None:
        raise EntryError(reason)
    return files


def distrust(place: Path) -> str | None:
    """Why code in a folder must not run, or a file be followed: a stranger may have written it."""
    for path in (place.parent, place):
        status = path.stat()
        if hasattr(os, "getuid") and status.st_uid not in (os.getuid(), 0):
            return f"{path} belongs to another user"
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX:
            return f"{path} can be written by others; chmod go-w it"
    return None


def _corruption(record: dict, files: Files, key: KernelKey) -> str | None:
    if record["key"] != asdict(key):
        return "its key is not the one it is stored under"
    for name, digest in record["files"].items():
        if hashlib.sha256(files[name]).hexdigest() != digest:
            return f"{name} does not match its hash"
    return None
