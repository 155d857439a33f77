"""The CUDA driver: load a cubin, launch a kernel. Nothing else of CUDA is needed."""

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

from pdssm_compiler.runtime.errors import BackendUnavailableError

# Markers of cuLaunchKernel's ``extra``: all parameters in one packed buffer.
_BUFFER = 1
_BUFFER_SIZE = 2
# CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, and what a kernel gets without setting it.
_MOST_SHARED = 8
_ASKED_FOR = 48 * 1024
# CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT.
_PROCESSORS = 16
# CU_LAUNCH_ATTRIBUTE_COOPERATIVE.
_COOPERATIVE = 2

_at = ctypes.addressof


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: its value is a union of 64 bytes, of which the first four are used."""

    _fields_ = (
        ("id", ctypes.c_int),
        ("padding", ctypes.c_char * 4),
        ("value", ctypes.c_int),
        ("rest", ctypes.c_char * 60),
    )


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


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

    def blocks_at_once(self, threads: int) -> int:
        """Blocks that the device in use runs at the same time."""
        each, device, processors = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        counted = driver().cuOccupancyMaxActiveBlocksPerMultiprocessor(
            ctypes.byref(each),
            self._function,
            ctypes.c_int(threads),
            ctypes.c_size_t(self._shared_bytes),
        )
        _checked(counted, "counting the blocks of a processor")
        _checked(driver().cuCtxGetDevice(ctypes.byref(device)), "looking for the device")
        found = driver().cuDeviceGetAttribute(ctypes.byref(processors), _PROCESSORS, device)
        _checked(found, "counting the processors")
        return each.value * processors.value

    def launch_together(
        self, blocks: int, threads: int, parameters: bytes, offsets: Sequence[int], stream: int
    ) -> None:
        """Launch blocks that run at the same time, or not at all: they may wait for each other.

        Args:
            blocks: how many.
            threads: of each.
            parameters: one after the other. A capture takes no packed ones for such a launch.
            offsets: where each starts.
            stream: to launch on.

        Raises:
            RuntimeError: what the driver says.
        """
        packed = ctypes.create_string_buffer(parameters, len(parameters))
        first = _at(packed)
        pointers = (ctypes.c_void_p * len(offsets))(*(first + offset for offset in offsets))
        together = _Attribute(_COOPERATIVE, b"", 1, b"")
        config = _Config(
            (blocks, 1, 1),
            (threads, 1, 1),
            self._shared_bytes,
            stream,
            ctypes.pointer(together),
            1,
        )
        status = driver().cuLaunchKernelEx(ctypes.byref(config), self._function, pointers, None)
        _checked(status, "launching a kernel")

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
