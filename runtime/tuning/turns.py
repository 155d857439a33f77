"""Turns: of several processes one tunes at a time, and the others wait until it has ended.

A turn is a file that its holder has locked; the system drops the lock at the latest when the
holder ends, however it ends. While the holder is at it, the file says who it is and what it does,
and its time of change moves with every step. Who comes to the end leaves the file empty, so what
stands in a file that nobody holds was not finished.

Processes speak to each other through such files alone: whatever each of them calls, and in
whatever order, none waits for a call that another does not make.
"""

import os
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch

from pdssm_compiler.runtime.devices import hardware_name
from pdssm_compiler.runtime.errors import TuningTimeoutError, TuningWarning
from pdssm_compiler.runtime.locks import drop, take
from pdssm_compiler.runtime.trust import distrust, make_private
from pdssm_compiler.schedules.templates.base import Problem

# Between two steps of a holder lies at most a compiler that hangs, and the start of a process. One
# that is silent for longer has been stopped.
SILENT_SECONDS = 1200.0
_POLL_SECONDS = 0.1
_NOTE_BYTES = 4096

# Called again and again with who is waited for.
Waiting = Callable[[str], object]


class Turn:
    """A turn that this process holds.

    Attributes:
        path: its file.
        unfinished: whether the last holder did not come to its end.
        passed: what the holder was at that this process has waited for, if it came to its end; ""
            otherwise.
    """

    def __init__(self, path: Path, descriptor: int, waited_for: str) -> None:
        self.path = path
        self._descriptor = descriptor
        self.unfinished = bool(_read(descriptor))
        self.passed = "" if self.unfinished else waited_for.partition("\n")[0]

    def step(self) -> None:
        """Have those who wait know that it goes on."""
        os.utime(self._descriptor)

    @contextmanager
    def at(self, what: str) -> Iterator[None]:
        """Say what this process does, and when it has come to the end.

        Args:
            what: a line; others compare it with theirs.
        """
        self._write(f"{what}\n{_myself()}")
        yield
        # Not after an exception.
        self._write("")

    def _write(self, note: str) -> None:
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, note.encode(), 0)


@contextmanager
def turn(path: Path, waiting: Waiting) -> Iterator[Turn]:
    """Wait for a turn, and hold it.

    Args:
        path: its file, made if need be.
        waiting: called while another process holds it.

    Raises:
        TuningTimeoutError: the holder has been silent for :data:`SILENT_SECONDS`.
        OSError: what the file system says.
    """
    make_private(path.parent)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        yield Turn(path, descriptor, _wait(descriptor, path, waiting))
    finally:
        drop(descriptor)
        os.close(descriptor)


def log_turn(log: Path, bucket: Problem, waiting: Waiting) -> AbstractContextManager[Turn]:
    """The turn to add rows of a bucket of sizes to a program's log."""
    return turn(log.with_name(f"{log.stem}-r{bucket.rows}-t{bucket.length}.turn"), waiting)


def device_turn(device: torch.device, waiting: Waiting) -> AbstractContextManager[Turn]:
    """The turn to measure on a device of this machine, whatever the folder of the logs is."""
    return turn(_machine_folder() / f"{hardware_name(device)}.turn", waiting)


def _machine_folder() -> Path:
    """A folder of this user's that only this machine sees.

    Raises:
        PermissionError: somebody else can write to it.
    """
    user = os.getuid() if hasattr(os, "getuid") else "user"
    folder = Path(tempfile.gettempdir()) / f"pdssm-compiler-{user}"
    make_private(folder)
    reason = distrust(folder)
    if reason is not None:
        raise PermissionError(reason)
    return folder


def _wait(descriptor: int, path: Path, waiting: Waiting) -> str:
    """Wait until the lock is held; gives the last note of whom it was waited for, "" if nobody."""
    noted, moved, since = "", 0, time.monotonic()
    while (held := take(descriptor)) is False:
        noted = _read(descriptor) or noted
        what, _, who = noted.partition("\n")
        who = who or "another process"
        now = os.fstat(descriptor).st_mtime_ns
        if now != moved:
            moved, since = now, time.monotonic()
        elif time.monotonic() - since > SILENT_SECONDS:
            raise TuningTimeoutError(
                f"{who} holds {path}{f', for {what},' if what else ''} and has not gone on for "
                f"{SILENT_SECONDS:.0f} s; end it if it has stopped"
            )
        waiting(who)
        time.sleep(_POLL_SECONDS)
    if held is None:
        warnings.warn(
            f"{path} cannot be locked, as its file system has no locks: processes that tune at "
            f"the same time do not know of each other",
            TuningWarning,
            stacklevel=2,
        )
    return noted


def _read(descriptor: int) -> str:
    return os.pread(descriptor, _NOTE_BYTES, 0).decode(errors="replace")


def _myself() -> str:
    rank = os.environ.get("RANK")
    told = "" if rank is None else f" (rank {rank})"
    return f"process {os.getpid()} on {socket.gethostname()}{told}"
