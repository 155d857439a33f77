"""Kernels whose compilation is not what a test is about."""

from typing import Any

import pytest

from pdssm_compiler.runtime.backends import tvm_cpu

# By source and alignment, of this process.
_compiled: dict[tuple[str, int], dict[str, bytes]] = {}


@pytest.fixture
def compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU kernel that was compiled for one test's empty cache is handed to the next one's."""
    compile_ = tvm_cpu.TvmCpu.compile

    def once(backend: tvm_cpu.TvmCpu, source: Any, alignment: int) -> dict[str, bytes]:
        if backend.unavailable() is not None:
            # It says why not.
            return compile_(backend, source, alignment)
        key = source.text, alignment
        if key not in _compiled:
            _compiled[key] = compile_(backend, source, alignment)
        return dict(_compiled[key])

    monkeypatch.setattr(tvm_cpu.TvmCpu, "compile", once)
