"""What an isolated process runs: it answers questions until its parent is gone.

Start it by :class:`pdssm_compiler.runtime.tuning.isolated.Isolated`.
"""

import gc
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

_PARENT_SECONDS = 1.0


def main() -> None:
    """Answer questions that come over the file descriptor named on the command line."""
    # An interrupt is the parent's to handle: it ends this process when it has read what it needs.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with(int(sys.argv[2]))
    connection = Connection(int(sys.argv[1]))
    # Modules are no garbage, and looking for it takes a fifth of the import.
    gc.disable()
    import torch

    gc.enable()
    torch.set_num_threads(connection.recv())
    connection.send("ready")
    while True:
        try:
            question = connection.recv_bytes()
        except (EOFError, OSError):
            return
        connection.send(_answer(question))


def _answer(question: bytes) -> tuple[str, Any]:
    import pickle

    try:
        function, argument = pickle.loads(question)
        return "answer", function(argument)
    except Exception as error:
        # Whatever it is, it is what became of the question.
        return "raised", f"{type(error).__name__}: {error}"


def _end_with(parent: int) -> None:
    """End when the parent has, even in the middle of an answer."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
