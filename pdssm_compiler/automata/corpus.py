"""Real text to search: named files, or the source of Python's standard library."""

import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pdssm_compiler.automata.errors import CorpusError

DEFAULT_MAX_BYTES = 8 * 2**20
# A larger file is more likely to be a disk image than a text; it is refused, not read.
MAX_FILE_BYTES = 2**30
_PROBE = 8192
_NOT_THE_LIBRARY = frozenset({"site-packages", "dist-packages", "__pycache__"})


class Text(NamedTuple):
    """One text.

    Attributes:
        name: the path it was read from; in the standard library, the path inside it.
        data: its bytes, at least one.
    """

    name: str
    data: bytes


@dataclass(frozen=True)
class Corpus:
    """Texts, and what was left out.

    Attributes:
        texts: in the order of the paths given, and sorted within a folder.
        skipped: one line for every file found in a folder but not read, and for the place where
            the byte budget ended.
    """

    texts: tuple[Text, ...]
    skipped: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """Bytes in all texts together."""
        return sum(len(text.data) for text in self.texts)


def load_corpus(
    paths: Sequence[Path] | None = None, max_bytes: int | None = DEFAULT_MAX_BYTES
) -> Corpus:
    """Read texts.

    A file that is named is read or is an error. In a folder, files that are empty, unreadable,
    binary (a zero byte near their beginning) or larger than :data:`MAX_FILE_BYTES` are skipped
    and listed; hidden files and folders are not looked at, links to folders not followed.

    Args:
        paths: files and folders; if left out, the ``.py`` files of the running Python's standard
            library, which every machine has.
        max_bytes: read no more than this; the last text is cut there. None reads everything.

    Raises:
        CorpusError: a named path is missing, unreadable, empty, too large or neither file nor
            folder; there is no text at all; or ``max_bytes`` is below one.
    """
    if max_bytes is not None and max_bytes < 1:
        raise CorpusError(f"the byte budget is {max_bytes}; give at least 1, or none at all")
    reader = _Reader(max_bytes)
    if paths is None:
        root = Path(sysconfig.get_path("stdlib"))
        reader.read_folder(root, suffix=".py", relative_to=root)
        nothing = "Python's standard library has no readable source here; name files to search"
    else:
        for path in paths:
            if os.path.isdir(path):  # false, not an error, behind a closed door
                reader.read_folder(path)
            else:
                reader.read_named(path)
        names = ", ".join(str(path) for path in paths) or "no path at all"
        nothing = f"there is no text to search in {names}; name a file or folder with text"
    if not reader.texts:
        first = f"; the first file skipped is {reader.skipped[0]}" if reader.skipped else ""
        raise CorpusError(nothing + first)
    return Corpus(tuple(reader.texts), tuple(reader.skipped))


class _Reader:
    def __init__(self, max_bytes: int | None) -> None:
        self.left = max_bytes
        self.texts: list[Text] = []
        self.skipped: list[str] = []
        self.cut = False

    def read_named(self, path: Path) -> None:
        try:
            data = self._read(path)
        except FileNotFoundError:
            raise CorpusError(f"{path} does not exist; check its name") from None
        except (OSError, ValueError, _UnfitError) as error:
            reason = _reason(error)
            raise CorpusError(f"{path} cannot be searched: {reason}; name another") from None
        self._add(path, str(path), data)

    def read_folder(self, folder: Path, suffix: str = "", relative_to: Path | None = None) -> None:
        closed: list[OSError] = []
        for path in _files(folder, suffix, closed):
            if self.cut:
                return
            name = path.relative_to(relative_to).as_posix() if relative_to else str(path)
            try:
                data = self._read(path, binary=False)
            except (OSError, _UnfitError) as error:
                self.skipped.append(f"{name}: {_reason(error)}")
            else:
                self._add(path, name, data)
        self.skipped.extend(f"{error.filename}: {_reason(error)}" for error in closed)

    def _read(self, path: Path, *, binary: bool = True) -> bytes:
        """The bytes of a file, as many as the budget leaves and one more."""
        if not path.is_file():
            path.stat()  # missing, or behind a closed door: say so
            raise _UnfitError("it is neither a file nor a folder")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise _UnfitError(f"it has {size:,} bytes, more than the {MAX_FILE_BYTES:,} of a text")
        with path.open("rb") as file:
            data = file.read(_PROBE)
            if not binary and b"\0" in data:
                raise _UnfitError("it is binary")
            data += file.read(-1 if self.left is None else max(self.left + 1 - _PROBE, 0))
        if not data:
            raise _UnfitError("it is empty")
        return data

    def _add(self, path: Path, name: str, data: bytes) -> None:
        if self.left is not None:
            if len(data) > self.left:
                self.cut = True
                size = path.stat().st_size
                kept = f"{self.left:,} of {size:,} bytes read" if self.left else "not read"
                self.skipped.append(f"{name}: {kept}, the byte budget ends here")
                data = data[: self.left]
            self.left -= len(data)
        if data:
            self.texts.append(Text(name, data))


class _UnfitError(Exception):
    """A file can be opened but is no text to search."""


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error)


def _files(folder: Path, suffix: str, closed: list[OSError]) -> Iterator[Path]:
    """The files under a folder whose names end in ``suffix``, sorted, without hidden ones.

    Folders that cannot be listed are added to ``closed``.
    """
    for parent, folders, files in os.walk(folder, onerror=closed.append):
        folders[:] = sorted(
            name for name in folders if name not in _NOT_THE_LIBRARY and name[0] != "."
        )
        for name in sorted(files):
            if name.endswith(suffix) and name[0] != ".":
                yield Path(parent, name)
