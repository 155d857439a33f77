"""Small programs and keys for the tests of the runtime."""

from dataclasses import replace
from pathlib import Path

import pytest

from pdssm_compiler.ir import Program
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.compile_service import BuiltKernel, build
from pdssm_compiler.runtime.key import KernelKey
from pdssm_compiler.schedules.target import cpu_target

KEY = KernelKey(
    "program", "rows", "{}", "cpu:any", "", 0, "{}", "tvm=0", "ffi=0", "nvrtc=0", "generator"
)


def key(number: int) -> KernelKey:
    """One of many keys."""
    return replace(KEY, program=f"program {number}")


def small(state_size: int = 5) -> Program:
    """A diagonal scan."""
    return pd_scan(PdScan(state_size, None, map_source="none"))


def build_in(folder: Path, patch: pytest.MonkeyPatch, state_size: int = 5) -> BuiltKernel:
    """A kernel for this CPU, with its cache in a folder."""
    patch.setenv(settings.CACHE_DIR, str(folder))
    return build(small(state_size), cpu_target())
