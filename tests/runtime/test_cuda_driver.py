"""What is asked of the CUDA driver, by one that only takes notes: contexts belong to threads."""

import ctypes
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pdssm_compiler.runtime.backends import cuda_driver
from pdssm_compiler.runtime.backends.cuda_driver import DriverKernel

# CUDA_ERROR_INVALID_CONTEXT, and another.
NO_CONTEXT, OTHER = 201, 700
# CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION.
CLUSTER = 4


class Driver:
    """A driver whose contexts are the numbers of devices, and 100 more."""

    def __init__(self) -> None:
        self.threads = threading.local()
        self.retained: list[int] = []
        self.launched: list[int | None] = []
        self.fails = 0
        functions = {
            "cuCtxGetCurrent": self.get_current,
            "cuCtxSetCurrent": self.set_current,
            "cuDeviceGet": self.get_device,
            "cuDevicePrimaryCtxRetain": self.retain,
            "cuModuleLoadData": self.load,
            "cuModuleGetFunction": self.get_function,
            "cuFuncSetAttribute": self.set_attribute,
            "cuGetErrorString": self.get_error,
            "cuLaunchKernel": Launch(self),
            "cuLaunchKernelEx": Launch(self),
            "cuOccupancyMaxActiveBlocksPerMultiprocessor": self.blocks,
            "cuOccupancyMaxActiveClusters": self.clusters,
            "cuCtxGetDevice": self.device_in_use,
            "cuDeviceGetAttribute": self.processors,
        }
        for name, function in functions.items():
            setattr(self, name, function)

    def current(self) -> int | None:
        return getattr(self.threads, "context", None)

    def get_current(self, context: Any) -> int:
        context._obj.value = self.current()
        return 0

    def set_current(self, context: ctypes.c_void_p) -> int:
        self.threads.context = context.value
        return 0

    def get_device(self, found: Any, device: int) -> int:
        found._obj.value = device
        return 0

    def retain(self, context: Any, device: ctypes.c_int) -> int:
        self.retained.append(device.value)
        context._obj.value = 100 + device.value
        return 0

    def load(self, module: Any, cubin: bytes) -> int:
        return 0 if self.current() else NO_CONTEXT

    def get_function(self, function: Any, module: Any, name: bytes) -> int:
        function._obj.value = 5
        return 0

    def set_attribute(self, *given: Any) -> int:
        return 0

    def device_in_use(self, device: Any) -> int:
        device._obj.value = 1
        return 0 if self.current() else NO_CONTEXT

    def processors(self, found: Any, which: int, device: ctypes.c_int) -> int:
        found._obj.value = 132
        return 0

    def blocks(self, found: Any, *given: Any) -> int:
        found._obj.value = 2
        return 0 if self.current() else NO_CONTEXT

    def clusters(self, found: Any, function: Any, config: Any) -> int:
        """As many as processors make, by what is asked of them."""
        asked = config._obj
        attribute = asked.attributes[0]
        assert (asked.count, attribute.id) == (1, CLUSTER)
        assert [attribute.value, *attribute.along_others] == [asked.grid[0], 1, 1]
        found._obj.value = 132 // attribute.value
        return 0 if self.current() else NO_CONTEXT

    def get_error(self, status: int, text: Any) -> int:
        text._obj.value = f"status {status}".encode()
        return 0


class Launch:
    """A launch, whose argument types are told to it once."""

    argtypes: Any = None

    def __init__(self, told: Driver) -> None:
        self.told = told

    def __call__(self, *given: Any) -> int:
        self.told.launched.append(self.told.current())
        return self.told.fails if self.told.current() else NO_CONTEXT


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    made = Driver()
    monkeypatch.setattr(cuda_driver, "driver", lambda: made)
    cuda_driver._context_of.cache_clear()
    yield made
    cuda_driver._context_of.cache_clear()


def in_a_thread(function: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


HOW = ["launch", "launch_early", "launch_together", "launch_in_clusters"]


def launch(kernel: DriverKernel, how: str) -> None:
    if how == "launch":
        kernel.launch(1, 32, bytes(8), 0)
    elif how == "launch_in_clusters":
        kernel.launch_in_clusters(1, 1, 32, bytes(8), (0,), 0)
    else:
        getattr(kernel, how)(1, 32, bytes(8), (0,), 0)


@pytest.mark.parametrize("how", HOW)
def test_a_thread_without_a_context_gets_the_device_s(how: str, told: Driver) -> None:
    """To load a kernel and to launch it, as torch's threads of backward passes do."""
    kernel = in_a_thread(lambda: DriverKernel(b"", "scan", 50000, 1))
    in_a_thread(lambda: launch(kernel, how))
    assert told.launched == [None, 101]
    # Kept with the process, so asked for once.
    assert told.retained == [1]


def test_a_thread_without_a_context_counts_what_runs_at_once(told: Driver) -> None:
    """A kernel that another thread has loaded, of which a longer row asks for larger clusters."""
    kernel = in_a_thread(lambda: DriverKernel(b"", "scan", 50000, 1))
    assert in_a_thread(lambda: kernel.clusters_at_once(2, 64)) == 66
    assert in_a_thread(lambda: kernel.blocks_at_once(64)) == 264


@pytest.mark.parametrize("how", HOW)
def test_a_context_that_is_there_stays(how: str, told: Driver) -> None:
    told.threads.context = 7
    launch(DriverKernel(b"", "scan", 0, 1), how)
    assert told.launched == [7]
    assert told.retained == []


@pytest.mark.parametrize("how", HOW)
def test_other_failures_are_told(how: str, told: Driver) -> None:
    told.threads.context = 7
    kernel = DriverKernel(b"", "scan", 0, 1)
    told.fails = OTHER
    with pytest.raises(RuntimeError, match="launching a kernel: the CUDA driver says: status 700"):
        launch(kernel, how)
    assert told.launched == [7]
    told.fails = NO_CONTEXT
    with pytest.raises(RuntimeError, match="launching a kernel: the CUDA driver says: status 201"):
        launch(kernel, how)
    assert told.launched == [7, 7, 7]
