"""A process without TVM, Triton, nvcc, NVRTC or a C compiler: what a machine is that kernels are
deployed to. Importing this module makes the process one.
"""

import ctypes
import importlib.metadata
import os
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

# What is imported, and the packages it is in.
_MISSING = {
    "tvm": "apache-tvm",
    "tvm_ffi_orcjit": "apache-tvm-ffi-orcjit",
    "triton": "triton",
    "nvidia": "nvidia-cuda-nvrtc",
}


class _Refuse(MetaPathFinder):
    """Whatever imports them fails, even by another way than the usual one."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name.partition(".")[0] in _MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _version(package: str) -> str:
    if package in _MISSING.values():
        raise importlib.metadata.PackageNotFoundError(package)
    return _found_version(package)


class _Library(ctypes.CDLL):
    def __init__(self, name: Any, *more: Any, **options: Any) -> None:
        if "nvrtc" in str(name):
            raise OSError(f"{name}: cannot open shared object file")
        super().__init__(name, *more, **options)


_found_version = importlib.metadata.version
assert not set(_MISSING) & set(sys.modules), "imported too late"
# None there is what find_spec takes for a module that is not installed.
sys.modules.update(dict.fromkeys(_MISSING))  # type: ignore[arg-type]
sys.meta_path.insert(0, _Refuse())
importlib.metadata.version = _version
ctypes.CDLL = _Library  # type: ignore[misc]
os.environ["PATH"] = ""


def libraries() -> set[str]:
    """Names of the compilers' libraries that the process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    mapped = {Path(line.split()[-1]).name for line in lines if "/" in line}
    parts = ("libtvm_compiler", "libtvm_runtime", "orcjit", "libtriton", "nvrtc")
    return {name for name in mapped if any(part in name for part in parts)}
