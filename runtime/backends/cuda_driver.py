"""The CUDA driver: load a cubin, launch a kernel. Nothing else of CUDA is needed."""

import ctypes
import threading
from collections.abc import Callable, Sequence
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
# CU_LAUNCH_ATTRIBUTE_COOPERATIVE, ..._CLUSTER_DIMENSION, ..._PROGRAMMATIC_STREAM_SERIALIZATION.
_COOPERATIVE, _CLUSTER, _EARLY = 2, 4, 6
# CUDA_ERROR_INVALID_CONTEXT: of a thread that has none, too.
_INVALID_CONTEXT = 201

_at = ctypes.addressof


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: its value is a union of 64 bytes, of which the first four are used; of
    a cluster the first twelve, its blocks along each axis.
    """

    _fields_ = (
        ("id", ctypes.c_int),
        ("padding", ctypes.c_char * 4),
        ("value", ctypes.c_int),
        ("along_others", ctypes.c_int * 2),
        ("rest", ctypes.c_char * 52),
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
        ("parameters", ctypes.c_void_p),
        ("buffer_size", ctypes.c_void_p),
        ("size", ctypes.POINTER(ctypes.c_size_t)),
        ("end", ctypes.c_void_p),
    )


class _Buffers(threading.local):
    """What a thread hands to the driver: made once, as making it takes longer than a launch. The
    driver has read all of it when a launch returns.

    Args:
        size: bytes of the parameters.
        offsets: where each starts.
    """

    def __init__(self, size: int, offsets: tuple[int, ...]) -> None:
        self.parameters = ctypes.create_string_buffer(size)
        self.start = _at(self.parameters)
        self._size = ctypes.c_size_t(size)
        self._extra = _Extra(_BUFFER, self.start, _BUFFER_SIZE, ctypes.pointer(self._size), None)
        self.extra = _at(self._extra)
        self.pointers = (ctypes.c_void_p * len(offsets))(*(self.start + o for o in offsets))
        # Which one is said by the launch.
        self.attribute = _Attribute(_COOPERATIVE, b"", 1, (1, 1), b"")
        self.config = _Config((1, 1, 1), (1, 1, 1), 0, None, ctypes.pointer(self.attribute), 1)
        self.config_at = ctypes.byref(self.config)


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


@cache
def _context_of(device: int) -> ctypes.c_void_p:
    """A device's own context, in which CUDA's runtime and torch work; kept with the process."""
    found, context = ctypes.c_int(), ctypes.c_void_p()
    _checked(driver().cuDeviceGet(ctypes.byref(found), device), f"looking for device {device}")
    retained = driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), found)
    _checked(retained, f"looking for the context of device {device}")
    return context


def use_context_of(device: int) -> None:
    """Give this thread the context of a device, if it has none.

    The runtime does so at a thread's first call to it. Of torch's own threads, such as those of
    backward passes, that may be one after ours, and torch says only what device it would be.

    Raises:
        RuntimeError: what the driver says.
    """
    current = ctypes.c_void_p()
    _checked(driver().cuCtxGetCurrent(ctypes.byref(current)), "looking for the context in use")
    if current.value is None:
        _checked(driver().cuCtxSetCurrent(_context_of(device)), "setting the context in use")


class DriverKernel:
    """A kernel of a cubin.

    Args:
        cubin: what holds it.
        name: its own.
        shared_bytes: what a block is launched with.
        device: the number of the device in use, as CUDA's runtime counts.
    """

    def __init__(self, cubin: bytes, name: str, shared_bytes: int, device: int) -> None:
        self._device = device
        use_context_of(device)
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        _checked(driver().cuModuleLoadData(ctypes.byref(module), cubin), "loading a kernel")
        entry = name.encode()
        found = driver().cuModuleGetFunction(ctypes.byref(self._function), module, entry)
        _checked(found, f"looking for {name}")
        if shared_bytes > _ASKED_FOR:
            more = driver().cuFuncSetAttribute(self._function, _MOST_SHARED, shared_bytes)
            _checked(more, f"asking for {shared_bytes} bytes of shared memory")
        self._shared_bytes = shared_bytes
        # A kernel is launched one way, always with as many parameters.
        self._buffers: _Buffers | None = None
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
        use_context_of(self._device)
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

    def clusters_at_once(self, size: int, threads: int) -> int:
        """Clusters of so many blocks that the device in use runs at the same time."""
        # Of one size after another: the thread that asks need not be the one that loaded.
        use_context_of(self._device)
        attribute = _Attribute(_CLUSTER, b"", size, (1, 1), b"")
        config = _Config(
            (size, 1, 1),
            (threads, 1, 1),
            self._shared_bytes,
            None,
            ctypes.pointer(attribute),
            1,
        )
        found = ctypes.c_int()
        counted = driver().cuOccupancyMaxActiveClusters(
            ctypes.byref(found), self._function, ctypes.byref(config)
        )
        _checked(counted, f"counting the clusters of {size} blocks")
        return found.value

    def launch_in_clusters(
        self,
        size: int,
        blocks: int,
        threads: int,
        parameters: bytes,
        offsets: Sequence[int],
        stream: int,
    ) -> None:
        """Launch blocks of which each so many are a cluster: those run at the same time, and may
        wait for each other.

        Args:
            size: blocks of a cluster.
            blocks: how many, a multiple of it.
            threads: of each.
            parameters: one after the other.
            offsets: where each starts.
            stream: to launch on.

        Raises:
            RuntimeError: what the driver says.
        """
        self._launch_with(_CLUSTER, size, blocks, threads, parameters, offsets, stream)

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
        self._launch_with(_COOPERATIVE, 1, blocks, threads, parameters, offsets, stream)

    def launch_early(
        self, blocks: int, threads: int, parameters: bytes, offsets: Sequence[int], stream: int
    ) -> None:
        """Launch blocks that may begin while the kernel before them ends: they wait for it by
        themselves.

        Args:
            blocks: how many.
            threads: of each.
            parameters: one after the other.
            offsets: where each starts.
            stream: to launch on.

        Raises:
            RuntimeError: what the driver says.
        """
        self._launch_with(_EARLY, 1, blocks, threads, parameters, offsets, stream)

    def _launch_with(
        self,
        attribute: int,
        value: int,
        blocks: int,
        threads: int,
        parameters: bytes,
        offsets: Sequence[int],
        stream: int,
    ) -> None:
        mine = self._filled(parameters, offsets)
        config = mine.config
        config.grid[0], config.block[0] = blocks, threads
        config.shared_bytes, config.stream = self._shared_bytes, stream
        mine.attribute.id, mine.attribute.value = attribute, value
        given = (mine.config_at, self._function, mine.pointers, None)
        self._launched(driver().cuLaunchKernelEx, given)

    def launch(self, blocks: int, threads: int, parameters: bytes, stream: int) -> None:
        """Launch on a stream.

        Raises:
            RuntimeError: what the driver says.
        """
        extra = self._filled(parameters, ()).extra
        shared = self._shared_bytes
        given = (self._function, blocks, 1, 1, threads, 1, 1, shared, stream, None, extra)
        self._launched(self._launch, given)

    def _launched(self, launch: Callable[..., int], given: tuple[Any, ...]) -> None:
        status = launch(*given)
        if status == _INVALID_CONTEXT:
            use_context_of(self._device)
            status = launch(*given)
        if status:
            _checked(status, "launching a kernel")

    def _filled(self, parameters: bytes, offsets: Sequence[int]) -> _Buffers:
        if self._buffers is None:
            self._buffers = _Buffers(len(parameters), tuple(offsets))
        mine = self._buffers
        ctypes.memmove(mine.start, parameters, len(parameters))
        return mine
