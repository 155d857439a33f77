"""A process of its own: what it answers, and what becomes of one that does not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pdssm_compiler.runtime.tuning.isolated import (
    DiedError,
    HungError,
    Isolated,
    RaisedError,
)


def number_of_process(_: object) -> int:
    return os.getpid()


def threads(_: object) -> int:
    import torch

    return torch.get_num_threads()


def fail(message: str) -> None:
    raise ValueError(message)


def end_by(number: int) -> None:
    print("these are my last words", flush=True)
    os.kill(os.getpid(), number)


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def test_it_is_kept_while_it_is_healthy_and_replaced_after_any_failure() -> None:
    import torch

    with Isolated() as process:
        assert process.pid is None
        first = process.ask(number_of_process, None, 60)
        assert first == process.pid != os.getpid()
        assert process.ask(threads, None, 60) == torch.get_num_threads()
        assert process.ask(number_of_process, None, 60) == first
        with pytest.raises(RaisedError, match="ValueError: not this"):
            process.ask(fail, "not this", 60)
        assert process.pid is None
        second = process.ask(number_of_process, None, 60)
        assert second != first
        with pytest.raises(DiedError, match="ended by signal 9: these are my last words"):
            process.ask(end_by, int(signal.SIGKILL), 60)
        assert process.ask(number_of_process, None, 60) not in (first, second)
        start = time.monotonic()
        with pytest.raises(HungError, match="no answer after 1 s"):
            process.ask(sleep, 600.0, 1.0)
        assert time.monotonic() - start < 30
        assert process.pid is None


_PARENT = """
import sys
from pdssm_compiler.runtime.tuning.isolated import Isolated
from tests.runtime.tuning.test_isolated import number_of_process, sleep
process = Isolated()
print(process.ask(number_of_process, None, 60), flush=True)
process.ask(sleep, 600.0, 600.0)
"""


def test_it_ends_with_its_parent() -> None:
    """Even one that hangs, and whose parent was killed."""
    root = Path(__file__).parents[3]
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert Path(f"/proc/{child}").exists()
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
