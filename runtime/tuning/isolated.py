"""A process of its own for what may crash, hang or leave a device unusable.

It is a new Python, not a fork (a forked child can use neither CUDA nor TVM's threads), and does
not import the caller's main module. Whatever it is asked and fails at, the next question goes to a
new one.
"""

import os
import pickle
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

from pdssm_compiler.runtime import settings

# Importing torch from a cold disk.
_START_SECONDS = 300.0
# As much of what a process said last as belongs into a message.
_LAST_WORDS = 300

ArgumentT = TypeVar("ArgumentT")
AnswerT = TypeVar("AnswerT")


class DiedError(Exception):
    """The process ended before it answered; the message has its exit status and last words."""


class HungError(Exception):
    """The process did not answer in time, and was ended."""


class RaisedError(Exception):
    """What the process was asked raised an exception; the message has its class and text."""


class Isolated:
    """A process that answers one question after the other. Started when first asked."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._words: Any = None
        self._closed = False

    def ask(
        self, function: Callable[[ArgumentT], AnswerT], argument: ArgumentT, seconds: float
    ) -> AnswerT:
        """``function(argument)`` as the process computes it.

        Args:
            function: a module's own function.
            argument: it and the answer can be pickled.
            seconds: how long the answer may take.

        Raises:
            DiedError, HungError, RaisedError: the process is ended, and the next question goes to
                a new one.
        """
        try:
            connection = self._start()
            connection.send_bytes(pickle.dumps((function, argument)))
            kind, answer = self._receive(connection, seconds)
        except BaseException:
            self.end()
            raise
        if kind == "raised":
            self.end()
            raise RaisedError(answer)
        return answer

    def end(self) -> None:
        """End the process, if there is one; whoever waits for its answer is told that it died."""
        process, connection, words = self._process, self._connection, self._words
        self._process = self._connection = self._words = None
        if process is not None:
            process.kill()
            process.wait()
        for each in (connection, words):
            if each is not None:
                each.close()

    def close(self) -> None:
        """End the process, and start no other."""
        self._closed = True
        self.end()

    def __enter__(self) -> "Isolated":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The process's number, None if there is none."""
        return None if self._process is None else self._process.pid

    def _start(self) -> Connection:
        if self._connection is not None:
            return self._connection
        if self._closed:
            raise DiedError("no process is started any more")
        mine, its = socket.socketpair()
        # It finds what this process finds, and tunes nothing by itself.
        env = os.environ | {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
        env.pop(settings.TUNE, None)
        self._words = tempfile.TemporaryFile()  # noqa: SIM115
        with its:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "pdssm_compiler.runtime.tuning.child",
                    str(its.fileno()),
                    str(os.getpid()),
                ],
                pass_fds=[its.fileno()],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=self._words,
                stderr=self._words,
            )
        self._connection = connection = Connection(mine.detach())
        if self._closed:
            # Meanwhile, by another thread.
            raise DiedError("no process is started any more")
        connection.send(torch.get_num_threads())
        self._receive(connection, _START_SECONDS)
        return connection

    def _receive(self, connection: Connection, seconds: float) -> Any:
        try:
            if not connection.poll(seconds):
                raise HungError(f"no answer after {seconds:.0f} s")
            return connection.recv()
        except (EOFError, OSError):
            raise DiedError(self._obituary()) from None

    def _obituary(self) -> str:
        if self._process is None:
            return "the process was ended"
        status = self._process.wait()
        how = f"was ended by signal {-status}" if status < 0 else f"exited with status {status}"
        self._words.seek(0)
        said = self._words.read().decode(errors="replace").strip()
        last = f": … {said[-_LAST_WORDS:]}" if len(said) > _LAST_WORDS else f": {said}"
        return f"the process {how}{last if said else ''}"
