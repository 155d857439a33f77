"""Threads for CPU kernels where TVM's runtime library is not installed.

A compiled kernel shares a loop out by a function that it is given when it is loaded. TVM's runtime
library has one; the FFI alone has none, so this one is put in its place: Python's threads, which
are in the kernel, and not in the interpreter, while they work.
"""

import ctypes
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any

import torch

# The variable of a compiled kernel that its loader fills.
_SYMBOL = b"__TVMBackendParallelLaunch"


class _Group(ctypes.Structure):
    """TVMParallelGroupEnv."""

    _fields_ = (("barrier", ctypes.c_void_p), ("tasks", ctypes.c_int32))


# int task(int number, TVMParallelGroupEnv* group, void* data)
_Task = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.POINTER(_Group), ctypes.c_void_p)
# int launch(task, void* data, int tasks)
_Launch = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)


def _launch(task: int, data: int, tasks: int) -> int:
    """Run a task on as many threads as torch uses, this one among them."""
    run = _Task(task)
    tasks = tasks or torch.get_num_threads()
    group = _Group(None, tasks)
    pool = _pool(tasks - 1) if tasks > 1 else None
    others: list[Future[int]] = []
    here = [0]
    for number in range(1, tasks):
        try:
            assert pool is not None
            others.append(pool.submit(run, number, group, data))
        except RuntimeError:
            # The system gives no more threads, or the interpreter is ending.
            here.append(number)
    statuses = [run(number, group, data) for number in here]
    statuses += [other.result() for other in others]
    return next(filter(None, statuses), 0)


# Kept as long as there are kernels that call it.
_launcher = _Launch(_launch)


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, "pdssm")


_lock = threading.Lock()
_provided = False


def provide_threads(library: Any) -> None:
    """Make these the threads of kernels that are loaded from now on.

    Args:
        library: the FFI's, as :mod:`ctypes` has it.

    Raises:
        RuntimeError: it does not take them.
    """
    global _provided
    with _lock:
        if _provided:
            return
        launch = ctypes.cast(_launcher, ctypes.c_void_p)
        if library.TVMFFIEnvModRegisterContextSymbol(_SYMBOL, launch):
            raise RuntimeError("the TVM-FFI library does not take a function for threads")
        _provided = True
