"""Backends that cannot compile."""

import pytest

from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.backends import BACKENDS


def without(monkeypatch: pytest.MonkeyPatch, **said: str) -> None:
    """Let backends be missing, and none of their kernels be in the cache.

    Args:
        monkeypatch: undoes it.
        said: what each says of itself, by its name with _ for -.
    """
    monkeypatch.setenv(settings.CACHE_ENABLED, "0")
    for name, reason in said.items():
        backend = BACKENDS[name.replace("_", "-")]
        monkeypatch.setattr(backend, "unavailable", lambda reason=reason: reason)
