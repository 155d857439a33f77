"""Kernels of these tests write into memory full of NaN."""

from tests.public.conftest import poisoned_memory

__all__ = ["poisoned_memory"]
