"""Large pages for large outputs on the CPU.

A fresh output of many megabytes is mapped page by page as it is written, and a fault for each
4 KiB can take longer than the scan. Linux maps 2 MiB at a time where it is asked to.
"""

import contextlib
import ctypes
import mmap
import sys

import torch

_MADV_HUGEPAGE = getattr(mmap, "MADV_HUGEPAGE", None)
_libc = None
if sys.platform == "linux" and _MADV_HUGEPAGE is not None:
    with contextlib.suppress(OSError, AttributeError):
        _libc = ctypes.CDLL(None, use_errno=True)
        _libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def advise_large(tensor: torch.Tensor) -> None:
    """Ask for large pages under a fresh tensor; a system that will not give them loses nothing."""
    if _libc is None:
        return
    page = mmap.PAGESIZE
    start = -(-tensor.data_ptr() // page) * page
    end = (tensor.data_ptr() + tensor.nbytes) // page * page
    if end > start:
        _libc.madvise(start, end - start, _MADV_HUGEPAGE)
