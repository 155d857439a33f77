"""Whose files may become code.

A kernel is machine code: whoever can write where one is read from decides what runs. So nothing
is loaded from a place where somebody else could have put it, and a checksum beside a file says
only that the file is whole, not whose it is.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def distrust(folder: Path) -> str | None:
    """Why what is in a folder must not run; None if only this user and root can have put it there.

    The folder belongs to one of the two, and nobody else can write to it. The same is asked of
    every folder above it, and above what links on the way lead to, up to the user's home or to a
    folder with a sticky bit, where nobody replaces what belongs to others. A folder that is not
    there is trusted if those above it are.
    """
    try:
        for place, status in _way(folder.absolute()):
            reason = flaw(place, status)
            if reason is not None:
                return reason
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return None


def flaw(path: Path, status: os.stat_result | None = None) -> str | None:
    """Why one file or folder could be a stranger's, whatever lies above it.

    Args:
        path: the file or folder.
        status: what ``lstat`` says of it, if that is known.

    Raises:
        OSError: what the file system says.
    """
    status = status or path.lstat()
    if not _ours(status):
        return f"{path} belongs to another user; chown it"
    # Everybody may write a link, and nobody does: it is replaced in its folder.
    if status.st_mode & _OTHERS_WRITE and not stat.S_ISLNK(status.st_mode):
        return f"{path} can be written by others; chmod go-w it"
    return None


def make_private(folder: Path) -> None:
    """Make a folder, and those above it that are not there, for this user alone.

    Raises:
        OSError: what the file system says.
    """
    if not folder.is_dir():
        make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _ours(status: os.stat_result) -> bool:
    """Whether something is this user's or root's."""
    # Elsewhere a folder of the user's is the system's to guard.
    return not hasattr(os, "getuid") or status.st_uid in (os.getuid(), 0)


def _way(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """A folder and those above it that decide what it holds, the nearest first; of a link, the
    way to where it leads as well.
    """
    # Links that lead in a circle are an error here, and what is missing is not.
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.stat()
    home = Path(os.path.expanduser("~"))
    for place in (path, *path.parents):
        try:
            status = place.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        if place != path and status.st_mode & stat.S_ISVTX and _ours(status):
            return
        yield place, status
        if stat.S_ISLNK(status.st_mode):
            target = os.path.join(place.parent, os.readlink(place))
            yield from _way(Path(os.path.abspath(target)))
        if place == home:
            return
