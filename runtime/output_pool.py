"""Memory of large CPU outputs, used again.

The C library gives every large block back to the system when it is freed. The next output is then
mapped and zeroed page by page as it is written, which takes as long as a scan. Here a block whose
tensors are all gone is kept for the next output of about its size, up to
:func:`~pdssm_compiler.runtime.settings.pool_limit` bytes.

The tensors are ordinary ones over memory of numpy's kind: all a user can tell is that their
storage cannot be resized in place.
"""

import atexit
import math
import os
import threading
import weakref
from collections import deque

import numpy as np
import torch

from pdssm_compiler.runtime.pages import advise_large
from pdssm_compiler.runtime.settings import pool_limit

# Below this, allocators reuse memory that is mapped already.
LARGE = 4 << 20


# What stands for a dtype in numpy, which has no bfloat16.
_NUMPY = {
    torch.float16: np.float16,
    torch.bfloat16: np.int16,
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.complex64: np.complex64,
    torch.complex128: np.complex128,
    torch.int32: np.int32,
    torch.int64: np.int64,
}


class OutputPool:
    """Blocks that are free for the next outputs, the one freed last at the end.

    Safe to use from threads. A tensor may die anywhere, also while the garbage collector
    interrupts this class, so what comes back is queued first and never waits for the lock.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []
        self._lent: dict[int, tuple[weakref.ref[np.ndarray], np.ndarray]] = {}
        self._returned: deque[np.ndarray] = deque()
        self._lock = threading.Lock()
        self._closed = False

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised contiguous CPU tensor."""
        block = self._take(math.prod(shape) * dtype.itemsize)
        # torch keeps this array, and nothing else does, for as long as the storage lives.
        array = np.ndarray(shape, _NUMPY[dtype], block)
        reference = weakref.ref(array, self._give_back)
        self._lent[id(reference)] = (reference, block)
        tensor = torch.from_numpy(array)
        if tensor.dtype is dtype:
            return tensor
        # Not tensor.view(dtype), which autograd would treat as a part of another tensor.
        strides = tensor.stride()
        empty = torch.empty(0, dtype=dtype, device="cpu")
        return empty.set_(tensor.untyped_storage(), 0, shape, strides)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the free blocks."""
        return sum(block.nbytes for block in self._free)

    def forget(self) -> None:
        """Give every free block to the system. What is lent still comes back later.

        Also for a forked child, in which no one will release a lock that was held.
        """
        self._lock = threading.Lock()
        self._free = []

    def close(self) -> None:
        """Keep nothing from now on: when the interpreter ends, what the pool calls may be gone
        before the last tensor is.
        """
        self._closed = True
        self.forget()

    def _take(self, needed: int) -> np.ndarray:
        size = rounded(needed)
        found = None
        with self._lock:
            for number in reversed(range(len(self._free))):
                if self._free[number].nbytes == size:
                    found = self._free.pop(number)
                    break
        self._settle()
        return _mapped(size) if found is None else found

    def _give_back(self, reference: "weakref.ref[np.ndarray]") -> None:
        _, block = self._lent.pop(id(reference))
        if not self._closed:
            self._returned.append(block)
            self._settle()

    def _settle(self) -> None:
        """Take in what came back, and let go of the oldest over the limit. Whoever holds the lock
        does this after releasing it, so nothing stays in the queue.
        """
        while self._returned and self._lock.acquire(blocking=False):
            dropped = []
            try:
                while self._returned:
                    self._free.append(self._returned.popleft())
                limit = pool_limit()
                while self._free and self.kept_bytes > limit:
                    dropped.append(self._free.pop(0))
            finally:
                self._lock.release()


def _mapped(size: int) -> np.ndarray:
    """A new block, aligned as torch aligns."""
    memory = torch.empty(size, dtype=torch.uint8, device="cpu")
    advise_large(memory)
    return memory.numpy()


def rounded(size: int) -> int:
    """A size of blocks: a quarter of a power of two, so that lengths of about the same size share
    them. What is beyond the tensor is never touched and takes no memory.
    """
    step = 1 << max(0, size.bit_length() - 3)
    return -(-size // step) * step


output_pool = OutputPool()
atexit.register(output_pool.close)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=output_pool.forget)


def new_output(
    shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """An uninitialised output of a kernel; a large one on a CPU comes from the pool.

    Where torch is to fill what is not initialised (deterministic mode), it allocates.
    """
    large = device.type == "cpu" and math.prod(shape) * dtype.itemsize >= LARGE
    if not large:
        return torch.empty(shape, dtype=dtype, device=device)
    if torch.are_deterministic_algorithms_enabled() or pool_limit() == 0:
        tensor = torch.empty(shape, dtype=dtype, device=device)
        advise_large(tensor)
        return tensor
    return output_pool.empty(shape, dtype)
