"""The CUDA driver: load a cubin, launch a kernel. Nothing else of CUDA is needed."""

import ctypes
import threading
from functools import cache
from typing import Any

from pdssm_compiler.runtime.errors import BackendUnavailableError

# Markers of cuLaunchKernel's ``extra``: all parameters in one packed buffer.
_BUFFER = ctypes.c_void_p(1)
_BUFFER_SIZE = ctypes.c_void_p(2)


@cache
def driver() -> Any:
    """The driver's library.

    Raises:
        BackendUnavailableError: there is none.
    """
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise BackendUnavailableError(
            f"the NVIDIA driver cannot be loaded ({error}): CUDA kernels run on machines with one"
        ) from None


def _checked(status: int, what: str) -> None:
    if status == 0:
        return
    text = ctypes.c_char_p()
    driver().cuGetErrorString(status, ctypes.byref(text))
    said = text.value.decode() if text.value else f"status {status}"
    raise RuntimeError(f"{what}: the CUDA driver says: {said}")


class DriverKernel:
    """A kernel of a cubin in the current context, which torch makes."""

    def __init__(self, cubin: bytes, name: str) -> None:
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        _checked(driver().cuModuleLoadData(ctypes.byref(module), cubin), "loading a kernel")
        entry = name.encode()
        found = driver().cuModuleGetFunction(ctypes.byref(self._function), module, entry)
        _checked(found, f"looking for {name}")
        self._launch = driver().cuLaunchKernel
        self._launch.argtypes = (
            ctypes.c_void_p,
            *(ctypes.c_uint,) * 7,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_void_p,
        )
        self._lock = threading.Lock()

    def launch(self, blocks: int, threads: int, parameters: bytes, stream: int) -> None:
        """Launch on a stream.

        Raises:
            RuntimeError: what the driver says.
        """
        size = ctypes.c_size_t(len(parameters))
        buffer = ctypes.cast(ctypes.c_char_p(parameters), ctypes.c_void_p)
        at_size = ctypes.cast(ctypes.byref(size), ctypes.c_void_p)
        extra = (ctypes.c_void_p * 5)(_BUFFER, buffer, _BUFFER_SIZE, at_size, None)
        status = self._launch(self._function, blocks, 1, 1, threads, 1, 1, 0, stream, None, extra)
        if status:
            _checked(status, "launching a kernel")
