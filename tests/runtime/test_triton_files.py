"""Triton's libraries: kept by their hashes, and built anew where they cannot be trusted."""

import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.backends import Sizes, triton_files
from pdssm_compiler.runtime.backends.triton_files import (
    CheckedLibraries,
    checked_libraries,
    fresh_folder,
)
from pdssm_compiler.runtime.backends.triton_gpu import TritonKernel
from pdssm_compiler.runtime.backends.tvm_cpu import C_COMPILERS
from pdssm_compiler.runtime.cache import KernelCache
from pdssm_compiler.runtime.compile_service import lower
from pdssm_compiler.runtime.errors import CacheWarning
from pdssm_compiler.schedules.target import named_target
from tests.runtime.kernels import KEY, small

NAME = "launcher.cpython-311.so"
CONTENT = bytes(range(256))


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(settings.CACHE_DIR, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_kept_is_found(root: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert CheckedLibraries("key").get_file(NAME) is None
        path = CheckedLibraries("key").put(CONTENT, NAME)
        assert CheckedLibraries("key").put(CONTENT, NAME) == path
        assert CheckedLibraries("key").get_file(NAME) == path
        assert CheckedLibraries("other").get_file(NAME) is None
        assert CheckedLibraries("key").get_file("other.so") is None
    assert Path(path).parent == root / "triton" / "key"
    assert Path(path).read_bytes() == CONTENT
    assert [p.name for p in Path(path).parent.iterdir()] == [Path(path).name]
    # Python tells a library by how its name ends.
    assert path.endswith(NAME)


def flip(path: Path) -> None:
    path.write_bytes(CONTENT[:-1] + b"\0")


def truncate(path: Path) -> None:
    path.write_bytes(CONTENT[:100])


def open_to_others(path: Path) -> None:
    path.chmod(0o666)


def open_folder(path: Path) -> None:
    path.parent.chmod(0o777)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


REASONS = {
    flip: "it does not match its hash",
    truncate: "it does not match its hash",
    open_to_others: "can be written by others; chmod go-w it",
    open_folder: "can be written by others; chmod go-w it",
    a_folder: "IsADirectoryError",
}


@pytest.mark.parametrize("spoil", REASONS, ids=lambda spoil: spoil.__name__)
def test_what_cannot_be_trusted_is_not_loaded(spoil: Any) -> None:
    path = Path(CheckedLibraries("key").put(CONTENT, NAME))
    spoil(path)
    with pytest.warns(CacheWarning) as caught:
        assert CheckedLibraries("key").get_file(NAME) is None
    (warning,) = caught
    assert str(warning.message).startswith(f"Triton's library {path} is ignored: ")
    assert REASONS[spoil] in str(warning.message)
    assert str(warning.message).endswith("; it is built anew")


@pytest.fixture
def own() -> Iterator[Path]:
    triton_files._of_this_process.cache_clear()
    yield triton_files._of_this_process()
    triton_files._of_this_process.cache_clear()


def test_where_the_cache_cannot_be_used(
    root: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of the process's own, which goes with it."""
    KernelCache(root, 1).writable()
    root.chmod(0o777)
    path = Path(CheckedLibraries("key").put(CONTENT, NAME))
    assert path.parent == own / "key"
    assert CheckedLibraries("key").get_file(NAME) == str(path)
    root.chmod(0o700)
    monkeypatch.setenv(settings.CACHE_ENABLED, "0")
    assert CheckedLibraries("key").get_file(NAME) == str(path)
    monkeypatch.delenv(settings.CACHE_ENABLED)
    (root / "triton").write_text("")
    with pytest.warns(CacheWarning, match="Triton's libraries are not cached: .*; set PDSSM_CAC"):
        assert Path(CheckedLibraries("key").put(CONTENT, NAME)) == path


def test_they_count_towards_the_limit(root: Path) -> None:
    for number in range(4):
        path = Path(CheckedLibraries(f"key{number}").put(bytes(1000), NAME))
        os.utime(path.parent, (number + 1, number + 1))
    # Used now.
    assert CheckedLibraries("key0").get_file(NAME) is not None
    cache = KernelCache(root, 2000)
    assert sum(cache.unused().values()) == 4000
    cache.store(KEY, {"source.py": b""})
    assert {path.name for path in (root / "triton").iterdir()} == {"key0"}
    assert cache.clear() == 2
    assert list((root / "triton").iterdir()) == []


SOURCE = """
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "answer", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_answer(void) {
  PyObject* made = PyModule_Create(&module);
  if (made) PyModule_AddIntConstant(made, "value", 42);
  return made;
}
"""
needs_c = pytest.mark.skipif(not any(map(shutil.which, C_COMPILERS)), reason="no C compiler")


@needs_c
def test_triton_builds_into_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own function, the one that builds launchers; a library that somebody has exchanged
    is not run.
    """
    from triton.runtime import build

    before = dict(os.environ)
    built = []
    real = build._build
    monkeypatch.setattr(build, "_build", lambda *a, **k: built.append(1) or real(*a, **k))

    def value() -> int:
        with checked_libraries():
            return build.compile_module_from_src(SOURCE, "answer").value

    assert value() == 42
    assert value() == 42
    assert len(built) == 1
    (path,) = (root / "triton").glob("*/*.so")
    other = SOURCE.replace("42", "13")
    with checked_libraries():
        build.compile_module_from_src(other, "answer")
    (theirs,) = set((root / "triton").glob("*/*.so")) - {path}
    theirs.rename(path)
    with pytest.warns(CacheWarning, match="it does not match its hash; it is built anew"):
        assert value() == 42
    assert len(built) == 3
    # The user's own settings of Triton are as they were.
    assert dict(os.environ) == before


def test_triton_is_set_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "users"))
    with fresh_folder():
        inside = triton.knobs.cache.dir
        assert Path(inside).stat().st_mode & 0o777 == 0o700
    assert not Path(inside).exists()
    assert triton.knobs.cache.dir == str(tmp_path / "users")
    assert triton.knobs.cache.manager_class is None


def test_a_kernel_is_loaded_so_and_once(root: Path) -> None:
    import triton

    loaded = []

    class Function:
        """As Triton's compiled kernels: a property loads them."""

        @property
        def run(self) -> Any:
            loaded.append(triton.knobs.cache.manager_class)
            return print

        def __getitem__(self, grid: tuple[int, int, int]) -> Any:
            assert loaded == [CheckedLibraries]
            return lambda *_: None

    source, _ = lower(small(), named_target("sm_90"), "triton-rows")
    kernel = TritonKernel([Function()], source)
    tensors = [torch.zeros(1, 2, 3, 5, 2) for _ in source.signature.arguments]
    for _ in range(2):
        kernel.launch(tensors, torch.zeros(1, dtype=torch.int64), Sizes(1, 2, 3))
    assert loaded == [CheckedLibraries]
    assert triton.knobs.cache.manager_class is None
