"""The CUDA driver: load a cubin, launch a kernel. Nothing else of CUDA is needed."""

import ctypes
from functools import cache
from typing import Any

from pdssm_compiler.runtime.errors import BackendUnavailableError

# Markers of cuLaunchKernel's ``extra``: all parameters in one packed buffer.
_BUFFER = 1
_BUFFER_SIZE = 2
# CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, and what a kernel gets without setting it.
_MOST_SHARED = 8
_ASKED_FOR = 48 * 1024


_at = ctypes.addressof


class _Extra(ctypes.Structure):
    """The parameters of a launch as ``extra`` wants them."""

    _fields_ = (
        ("buffer", ctypes.c_void_p),
        ("parameters", ctypes.c_char_p),
        ("buffer_size", ctypes.c_void_p),
        ("size", ctypes.POINTER(ctypes.c_size_t)),
        ("end", ctypes.c_void_p),
    )


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

    def __init__(self, cubin: bytes, name: str, shared_bytes: int) -> None:
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        _checked(driver().cuModuleLoadData(ctypes.byref(module), cubin), "loading a kernel")
        entry = name.encode()
        found = driver().cuModuleGetFunction(ctypes.byref(self._function), module, entry)
        _checked(found, f"looking for {name}")
        if shared_bytes > _ASKED_FOR:
            more = driver().cuFuncSetAttribute(self._function, _MOST_SHARED, shared_bytes)
            _checked(more, f"asking for {shared_bytes} bytes of shared memory")
        self._shared_bytes = shared_bytes
        self._launch = driver().cuLaunchKernel
        self._launch.argtypes = (
            ctypes.c_void_p,
            *(ctypes.c_uint,) * 7,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_void_p,
        )

    def launch(self, blocks: int, threads: int, parameters: bytes, stream: int) -> None:
        """Launch on a stream.

        Raises:
            RuntimeError: what the driver says.
        """
        size = ctypes.c_size_t(len(parameters))
        extra = _Extra(_BUFFER, parameters, _BUFFER_SIZE, ctypes.pointer(size), None)
        shared = self._shared_bytes
        status = self._launch(
            self._function, blocks, 1, 1, threads, 1, 1, shared, stream, None, _at(extra)
        )
        if status:
            _checked(status, "launching a kernel")
