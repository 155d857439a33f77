"""Locks on files and folders that processes hold; the system drops them at the latest when a
process ends, however it ends.
"""

import contextlib

try:
    from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
except ImportError:  # not on this system
    flock = None  # type: ignore[assignment]


def take(descriptor: int) -> bool | None:
    """Hold an open file or folder, unless somebody else does.

    Args:
        descriptor: of the file, open for writing where it may stand on a network, or the folder.

    Returns:
        Whether it is held now; None where the file system has no locks.
    """
    if flock is None:
        return None
    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def drop(descriptor: int) -> None:
    """Let go of it, also where a forked child has the descriptor as well."""
    if flock is not None:
        with contextlib.suppress(OSError):
            flock(descriptor, LOCK_UN)
