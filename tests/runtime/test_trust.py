"""Whose files may become code: no folder that somebody else can write to, nor one below it."""

import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest

from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.cache import KernelCache
from pdssm_compiler.runtime.deployed import DeployedKernels
from pdssm_compiler.runtime.errors import BackendUnavailableError, CacheWarning
from pdssm_compiler.runtime.staging import private_folder
from pdssm_compiler.runtime.trust import distrust, make_private
from tests.runtime.kernels import KEY, build_in, key

ROOT = Path(__file__).resolve().parents[2]
FILES = {"kernel.o": bytes(range(256)), "source.py": b"# text\n"}
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """A folder two below one that can be opened to others."""
    make_private(tmp_path / "open" / "below" / "cache")
    return tmp_path / "open" / "below" / "cache"


def test_what_only_this_user_can_write(deep: Path) -> None:
    assert distrust(deep) is None
    assert distrust(deep / "not" / "there") is None
    # Others may read.
    deep.chmod(0o755)
    assert distrust(deep) is None


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
@pytest.mark.parametrize("above", [0, 1, 2])
def test_what_others_can_write_to(deep: Path, mode: int, above: int) -> None:
    place = (deep, *deep.parents)[above]
    place.chmod(mode)
    said = f"{place} can be written by others; chmod go-w it"
    assert distrust(deep) == said
    assert distrust(deep / "not" / "there") == said
    place.chmod(mode & ~0o022)
    assert distrust(deep) is None


def test_a_sticky_folder_is_one_to_be_below(deep: Path) -> None:
    deep.parents[1].chmod(0o777)
    deep.parent.chmod(0o1777)
    assert distrust(deep) is None
    assert distrust(deep.parent) == f"{deep.parent} can be written by others; chmod go-w it"


def test_nothing_above_the_home_is_asked(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep.parents[1].chmod(0o777)
    monkeypatch.setenv("HOME", str(deep.parent))
    assert distrust(deep) is None
    deep.parent.chmod(0o775)
    assert distrust(deep) == f"{deep.parent} can be written by others; chmod go-w it"


@as_root
@pytest.mark.parametrize("above", [0, 1, 2])
def test_another_user_s(deep: Path, above: int) -> None:
    place = (deep, *deep.parents)[above]
    os.chown(place, 4242, 4242)
    assert distrust(deep) == f"{place} belongs to another user; chown it"


@as_root
def test_a_sticky_folder_of_another_user(deep: Path) -> None:
    deep.parent.chmod(0o1755)
    os.chown(deep.parent, 4242, 4242)
    assert distrust(deep) == f"{deep.parent} belongs to another user; chown it"


def test_a_link_is_followed(deep: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("open/below")
    assert distrust(tmp_path / "link" / "cache") is None
    deep.parents[1].chmod(0o777)
    said = f"{deep.parents[1]} can be written by others; chmod go-w it"
    assert distrust(tmp_path / "link" / "cache") == said
    # What matters as well is who can turn the link.
    deep.parents[1].chmod(0o700)
    (tmp_path / "others").mkdir()
    (tmp_path / "others").chmod(0o777)
    (tmp_path / "others" / "link").symlink_to(deep)
    said = f"{tmp_path / 'others'} can be written by others; chmod go-w it"
    assert distrust(tmp_path / "others" / "link") == said


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    assert str(distrust(tmp_path / "circle" / "cache")).startswith("OSError: ")


def test_folders_are_made_for_this_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_private(tmp_path / "a" / "b")
        KernelCache(tmp_path / "cache", 1 << 20).store(KEY, FILES)
    finally:
        os.umask(before)
    for path in (tmp_path / "a", tmp_path / "a" / "b", tmp_path / "cache"):
        assert path.stat().st_mode & 0o777 == 0o700
    entry = tmp_path / "cache" / KEY.digest
    assert entry.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in entry.iterdir()} == {0o644}


def test_a_cache_that_others_can_write_to_is_not_used(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path / "above" / "cache", 1 << 20)
    cache.store(KEY, FILES)
    (tmp_path / "above").chmod(0o777)
    with pytest.warns(CacheWarning) as caught:
        assert cache.load(KEY) is None
    with warnings.catch_warnings():
        # Said once.
        warnings.simplefilter("error")
        cache.store(key(1), FILES)
        with cache.lock(KEY):
            pass
    assert [path.name for path in cache.root.iterdir()] == [KEY.digest]
    assert [str(warning.message) for warning in caught] == [
        f"kernels are not cached: {tmp_path / 'above'} can be written by others; chmod go-w it, "
        f"or set {settings.CACHE_DIR} to a folder that only you can write, or "
        f"{settings.CACHE_ENABLED}=0 to do without"
    ]
    assert str(cache.writable()).startswith(f"no: {tmp_path / 'above'} can be written by others")
    # The remedy is one: what nobody else could have changed is there as before.
    (tmp_path / "above").chmod(0o755)
    assert cache.load(KEY) == FILES
    assert cache.writable() is None


def test_the_work_goes_on_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    assert build_in(cache, monkeypatch).origin == "compiled"
    assert build_in(cache, monkeypatch).origin == "disk"
    cache.chmod(0o777)
    with pytest.warns(CacheWarning, match="kernels are not cached") as caught:
        assert build_in(cache, monkeypatch).origin == "compiled"
    assert len(caught) == 1


def test_deployed_kernels_below_what_others_can_write_to(tmp_path: Path) -> None:
    KernelCache(tmp_path / "above" / "kernels", 1 << 20).store(KEY, FILES)
    kernels = DeployedKernels(tmp_path / "above" / "kernels")
    assert kernels.load(KEY) == FILES
    (tmp_path / "above").chmod(0o777)
    with pytest.warns(CacheWarning, match=r"above can be written by others; chmod go-w it"):
        assert kernels.load(KEY) is None


def test_where_compilers_hand_files_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the system's temporary folder, unless somebody else could replace what is there."""
    monkeypatch.setenv(settings.CACHE_DIR, str(tmp_path / "cache"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    for mode, above in ((0o1777, "tmp"), (0o777, "cache")):
        (tmp_path / "tmp").chmod(mode)
        with private_folder() as folder:
            assert folder.parent == tmp_path / above
            assert folder.stat().st_mode & 0o777 == 0o700
        assert not folder.exists()
    assert list((tmp_path / "tmp").iterdir()) == []
    (tmp_path / "cache").chmod(0o777)
    with (
        pytest.raises(BackendUnavailableError, match=r"tmp can be written by others.*set TMPDIR"),
        private_folder(),
    ):
        pass


HOSTILE = """
import os, sys
loaded = []
sys.addaudithook(lambda event, given: loaded.append((event, given)))
import torch
from pdssm_compiler.runtime.compile_service import build
from pdssm_compiler.schedules.target import cpu_target, named_target
from tests.runtime.kernels import small
kernels = [
    kernel
    for _ in ("cold", "warm")
    for kernel in (
        build(small(), cpu_target()),
        build(small(), named_target("sm_90"), 16, "cuda-rows"),
        build(small(), named_target("sm_90"), 16, "triton-rows"),
    )
]
assert all(kernel.kernel is not None for kernel in kernels)
touched = [
    (event, argument)
    for event, given in loaded
    for argument in given
    if isinstance(argument, (str, bytes)) and "hostile" in os.fsdecode(argument)
    # Triton sets its variables back to what they were.
    and event != "os.putenv"
]
print([kernel.origin for kernel in kernels], touched)
"""


def test_folders_of_triton_and_tvm_are_left_alone(tmp_path: Path) -> None:
    """Cold and warm: nothing is opened, loaded or written in the folders that the environment
    names to them, which a stranger owns.
    """
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    hostile.chmod(0o777)
    named = ("TRITON_CACHE_DIR", "TRITON_DUMP_DIR", "TVM_FFI_CACHE_DIR", "TRITON_HOME")
    environment = os.environ | dict.fromkeys(named, str(hostile))
    environment[settings.CACHE_DIR] = str(tmp_path / "cache")
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", HOSTILE],
        env=environment,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{['compiled'] * 3 + ['disk'] * 3} []"
    assert list(hostile.iterdir()) == []


@as_root
def test_a_cache_of_another_user_without_rights() -> None:
    """A user who may not even look into the folder goes on without it."""
    # (The tests' own folders are closed to others.)
    with tempfile.TemporaryDirectory() as name:
        open_to_read = Path(name)
        open_to_read.chmod(0o755)
        cache = KernelCache(open_to_read / "root's", 1 << 20)
        cache.store(KEY, FILES)
        theirs = open_to_read / "theirs"
        shutil.copytree(cache.root, theirs)
        os.chown(theirs, 4242, 4242)
        child = os.fork()
        if child == 0:
            good = False
            try:
                os.setgid(4242)
                os.setuid(4242)
                good = _told_without_rights(cache.root, theirs)
            finally:
                os._exit(0 if good else 1)
        _, status = os.waitpid(child, 0)
        assert status == 0
        assert cache.load(KEY) == FILES


def _told_without_rights(roots: Path, theirs: Path) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cache = KernelCache(roots, 1 << 20)
        found = [cache.load(KEY)]
        cache.store(KEY, FILES)
        with cache.lock(KEY):
            pass
        # An entry of root's, who may do anything, in a folder of the user's: it cannot be read.
        found.append(KernelCache(theirs, 1 << 20).load(KEY))
    said = [str(warning.message) for warning in caught]
    print(found, said)
    return (
        found == [None, None]
        and len(said) == 2
        and said[0].startswith("kernels are not cached: [Errno 13] Permission denied")
        and "is ignored: PermissionError" in said[1]
        and said[1].endswith("; it is removed, and its kernel is compiled anew")
    )
