"""Folders in the making: filled beside the others, held by who fills them, and swept when nobody
does any more.

A process holds its folder by a lock that the system drops when the process ends, however it ends.
So what a killed process has left behind is told from what another is still at, without a look at
the clock. The clock matters only between the making of a folder and its lock.
"""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.errors import BackendUnavailableError
from pdssm_compiler.runtime.locks import take
from pdssm_compiler.runtime.trust import distrust, make_private

# What stands beside the entries for a while: what is filled, what is removed, a trial of whether
# there is room, and what compilers hand on.
_KINDS = ("staged", "discarded", "probe", "compiling")
_LOCKS = "*.lock"
# The lock follows the folder at once.
_GRACE_SECONDS = 60.0


@contextlib.contextmanager
def staged(root: Path, kind: str) -> Iterator[Path]:
    """A new folder below one of this user's, which is made if need be. What is still there in the
    end is removed.

    Args:
        root: where.
        kind: one of those that :func:`sweep` knows.

    Raises:
        OSError: what the file system says.
    """
    assert kind in _KINDS
    make_private(root)
    folder = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=root))
    try:
        with _holding(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A temporary folder for what compilers hand on, which will run: in the system's one, or in
    the cache's folder where somebody else could replace what is in the system's.

    Raises:
        OSError: what the file system says.
        BackendUnavailableError: others can write in both.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        reason = distrust(folder)
        if reason is not None:
            root = settings.cache_dir()
            if distrust(root) is not None:
                raise BackendUnavailableError(
                    f"compilers cannot hand files on: {reason}, or set TMPDIR to a folder that "
                    f"only you can write"
                )
            folder = stack.enter_context(staged(root, "compiling"))
        yield folder


def sweep(root: Path, grace: float = _GRACE_SECONDS) -> None:
    """Remove what processes that have ended left below a folder, and locks that nobody holds.

    Args:
        root: the folder.
        grace: what is younger stays: seconds, in either direction, for the clock may have been
            set back.
    """
    for pattern in (*(f"{kind}-*" for kind in _KINDS), _LOCKS):
        for path in root.glob(pattern):
            # Another process may be sweeping as well.
            with contextlib.suppress(OSError):
                if abs(time.time() - path.lstat().st_mtime) >= grace:
                    _remove_unless_held(path)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it.

    Raises:
        OSError: what the file system says of a file.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def _remove_unless_held(path: Path) -> None:
    with _holding(path) as held:
        if held:
            remove(path)


@contextlib.contextmanager
def _holding(path: Path) -> Iterator[bool]:
    """Hold a file or folder until the end, or until this process ends; gives whether nobody else
    does. Where the file system has no locks, nobody does.

    Raises:
        OSError: it is not there.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        # Where there are no locks, only age tells.
        yield take(descriptor) is not False
    finally:
        os.close(descriptor)
