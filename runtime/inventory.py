"""What a cache holds, told; and why a kernel is not in it, field by field."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pdssm_compiler.runtime.cache import KernelCache
from pdssm_compiler.runtime.entries import EntryError, read_entry, read_record
from pdssm_compiler.runtime.eviction import bytes_of, entry_folders, last_use
from pdssm_compiler.runtime.key import KernelKey

_ABSENT = "absent"
# Fields that are bound to differ where another one does.
_FOLLOW = {
    "template": ("config", "options", "alignment", "compilers", "loaders", "cuda_compiler"),
    "target": ("features", "options"),
}
# A source's header has the program's first line second.
_HEADER_BYTES = 4096


@dataclass(frozen=True)
class StoredKernel:
    """An entry of a cache.

    Attributes:
        folder: where it is.
        key: its key's fields by name, those of another version of the package if it is of one;
            none where the entry cannot be read.
        program: the first line of the program's text, "" where it is not there.
        version: of the package that made it, "" where it is not known.
        bytes: of its files.
        made, used: seconds since it was made, and last used; 0 where the clock was set back.
        problem: why it cannot be read, None if it can.
    """

    folder: Path
    key: dict[str, Any]
    program: str
    version: str
    bytes: int
    made: float
    used: float
    problem: str | None


@dataclass(frozen=True)
class WantedKernel:
    """A kernel that calls take.

    Attributes:
        kind: ``forward``, ``backward`` or ``helper``.
        key: its key.
        program: the first line of the program's text.
    """

    kind: str
    key: KernelKey
    program: str


def inventory(cache: KernelCache) -> list[StoredKernel]:
    """Every entry, whole or not, the most recently used first. Contents are not checked."""
    now = time.time()
    found = []
    for folder in entry_folders(cache.root):
        try:
            found.append(_stored(folder, now))
        except OSError:
            # It was removed meanwhile.
            continue
    return sorted(found, key=lambda kernel: kernel.used)


def _stored(folder: Path, now: float) -> StoredKernel:
    size, used = bytes_of(folder), max(0.0, now - last_use(folder, now))
    try:
        record = read_record(folder)
        key, version = dict(record["key"]), str(record["version"])
        made = max(0.0, now - float(record["created"]))
    except (OSError, ValueError, LookupError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
        return StoredKernel(folder, {}, "", "", size, used, used, problem)
    return StoredKernel(folder, key, _program(folder), version, size, made, used, None)


def _program(folder: Path) -> str:
    try:
        with (folder / "source.py").open("rb") as file:
            lines = file.read(_HEADER_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line[2:] for line in lines if line.startswith("# scan ")), "")


def state_of(cache: KernelCache, key: KernelKey) -> str:
    """Whether a kernel is in the cache: ``hit``, ``miss``, or what is wrong with its entry, which
    is left there.
    """
    folder = cache.root / key.digest
    if not folder.exists():
        return "miss"
    try:
        read_entry(folder, key)
    except EntryError as error:
        return f"corrupt: {error}"
    return "hit"


def nearest(wanted: WantedKernel, stored: list[StoredKernel]) -> list[StoredKernel]:
    """The readable entries but the kernel's own, those first that differ least: in the program,
    then the target and the template, then in how many things.
    """

    def distance(kernel: StoredKernel) -> tuple:
        found = differences(wanted.key, kernel)
        words = zip_longest(wanted.program.split(), kernel.program.split())
        return (
            "program" in found and 1 + sum(mine != theirs for mine, theirs in words),
            "target" in found,
            "template" in found,
            len(found),
            kernel.used,
        )

    own = asdict(wanted.key)
    others = (kernel for kernel in stored if not kernel.problem and kernel.key != own)
    return sorted(others, key=distance)


def differences(key: KernelKey, kernel: StoredKernel) -> dict[str, tuple[str, str]]:
    """In what an entry's key differs: field, or part of it as ``config.rows``, to what is wanted
    and what is there. What only follows from another template or target is left out.
    """
    wanted = asdict(key)
    skipped = {
        name
        for field, following in _FOLLOW.items()
        if kernel.key.get(field) != wanted[field]
        for name in following
    }
    names = dict.fromkeys((*wanted, *kernel.key))
    return {
        part: pair
        for name in names
        if name not in skipped
        for part, pair in _parts(name, wanted.get(name), kernel.key.get(name))
        if pair[0] != pair[1]
    }


def _parts(name: str, wanted: Any, there: Any) -> Iterator[tuple[str, tuple[str, str]]]:
    """A field in parts, where it has some that have names."""
    if wanted is None or there is None:
        mine, theirs = (_ABSENT if side is None else str(side) for side in (wanted, there))
        yield name, (mine, theirs)
    elif name in ("config", "options"):
        yield from _named(f"{name}.", json.loads(wanted), json.loads(there))
    elif name in ("compilers", "loaders"):
        versions = (dict(v.split("=", 1) for v in side.split()) for side in (wanted, there))
        yield from _named("", *versions)
    elif name == "features":
        # Of a processor there are a hundred: what only one has.
        ours, others = set(wanted.split()), set(there.split())
        yield name, (" ".join(sorted(ours - others)), " ".join(sorted(others - ours)))
    else:
        yield name, (str(wanted), str(there))


def _named(
    prefix: str, wanted: Mapping[str, Any], there: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[str, str]]]:
    for part in dict.fromkeys((*wanted, *there)):
        mine, theirs = (str(side.get(part, _ABSENT)) for side in (wanted, there))
        yield f"{prefix}{part}", (mine, theirs)
