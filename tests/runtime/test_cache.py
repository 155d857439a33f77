"""The kernel cache: what is stored comes back, or is a miss that is told."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.backends import cuda_compilers
from pdssm_compiler.runtime.cache import KernelCache
from pdssm_compiler.runtime.compile_service import build
from pdssm_compiler.runtime.errors import BackendUnavailableError, CacheWarning
from pdssm_compiler.schedules.target import named_target
from tests.runtime.kernels import KEY, build_in, key, small

FILES = {"kernel.o": bytes(range(256)), "source.py": b"# text\n"}
LARGE = 1 << 20


@pytest.fixture
def cache(tmp_path: Path) -> KernelCache:
    return KernelCache(tmp_path / "cache", LARGE)


def test_round_trip(cache: KernelCache) -> None:
    assert cache.load(KEY) is None
    cache.store(KEY, FILES)
    assert cache.load(KEY) == FILES
    assert cache.load(key(1)) is None
    (entry,) = cache.entries()
    assert entry[0] == KEY
    assert entry[1].name == KEY.digest
    assert entry[2] > 256
    # Nothing of the staging is left.
    assert [path.name for path in cache.root.iterdir()] == [KEY.digest]


def test_storing_twice_is_as_good_as_once(cache: KernelCache) -> None:
    cache.store(KEY, FILES)
    cache.store(KEY, FILES)
    assert cache.load(KEY) == FILES
    assert len(cache.entries()) == 1


def test_what_another_cuda_compiler_made(cache: KernelCache) -> None:
    absent = replace(KEY, cuda_compiler="absent", compilers="tvm=absent")
    cache.store(KEY, FILES)
    cache.store(replace(absent, program="another"), {"source.py": b"another"})
    assert cache.load(absent) is None
    assert cache.load_stand_in(absent) == FILES
    assert cache.load_stand_in(replace(absent, loaders="ffi=1")) is None
    (cache.root / KEY.digest / "kernel.o").write_bytes(b"")
    with pytest.warns(CacheWarning, match="is ignored"):
        assert cache.load_stand_in(absent) is None


def test_a_cached_cuda_kernel_needs_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(settings.CACHE_DIR, str(tmp_path))
    h100 = named_target("sm_90")
    made = build(small(), h100, 16, "cuda-rows")
    monkeypatch.setattr(cuda_compilers, "nvrtc", lambda: None)
    monkeypatch.setattr(cuda_compilers, "nvcc", lambda: None)
    found = build(small(), h100, 16, "cuda-rows")
    assert (made.origin, found.origin) == ("compiled", "disk")
    assert found.key.differences(made.key) == {"cuda_compiler": ("absent", made.key.cuda_compiler)}
    assert found.kernel.resources() == made.kernel.resources()
    with pytest.raises(BackendUnavailableError, match="neither nvcc nor NVRTC is here: install"):
        build(small(6), h100, 16, "cuda-rows")


def test_clear(cache: KernelCache) -> None:
    for number in range(3):
        cache.store(key(number), FILES)
    assert cache.clear() == 3
    assert cache.entries() == []
    assert cache.clear() == 0


def truncate(folder: Path) -> None:
    (folder / "kernel.o").write_bytes(FILES["kernel.o"][:-1])


def flip(folder: Path) -> None:
    content = bytearray(FILES["kernel.o"])
    content[100] ^= 1
    (folder / "kernel.o").write_bytes(content)


def remove(folder: Path) -> None:
    (folder / "source.py").unlink()


def other_key(folder: Path) -> None:
    record = json.loads((folder / "entry.json").read_text())
    record["key"]["program"] = "another"
    (folder / "entry.json").write_text(json.dumps(record))


def no_json(folder: Path) -> None:
    (folder / "entry.json").write_text("{")


def no_record(folder: Path) -> None:
    (folder / "entry.json").write_text("[]")


def no_fields(folder: Path) -> None:
    (folder / "entry.json").write_text("{}")


def other_hash(folder: Path) -> None:
    record = json.loads((folder / "entry.json").read_text())
    del record["files"]["source.py"]
    (folder / "entry.json").write_text(json.dumps(record))


def of_another_key(folder: Path) -> None:
    KernelCache(folder.parent, LARGE).store(key(1), FILES)
    shutil.rmtree(folder)
    (folder.parent / key(1).digest).rename(folder)


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("")


def a_link(folder: Path) -> None:
    folder.rename(folder.parent.parent / "elsewhere")
    folder.symlink_to(folder.parent.parent / "elsewhere")


def a_link_to_nothing(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to("nothing")


def a_file_is_a_link(folder: Path) -> None:
    (folder / "kernel.o").rename(folder / "elsewhere")
    (folder / "kernel.o").symlink_to("elsewhere")


def a_file_is_a_pipe(folder: Path) -> None:
    # To open it would wait for a writer.
    (folder / "kernel.o").unlink()
    os.mkfifo(folder / "kernel.o")


def a_file_of_another_user(folder: Path) -> None:
    os.chown(folder / "kernel.o", 4242, 4242)


def a_folder_of_another_user(folder: Path) -> None:
    os.chown(folder, 4242, 4242)


def open_to_others(folder: Path) -> None:
    folder.chmod(0o777)


def a_file_open_to_others(folder: Path) -> None:
    (folder / "kernel.o").chmod(0o664)


def without_rights(folder: Path) -> None:
    (folder / "kernel.o").chmod(0)


CORRUPTIONS = {
    truncate: "kernel.o does not match its hash",
    flip: "kernel.o does not match its hash",
    remove: "FileNotFoundError",
    other_key: "entry.json does not match its own hash",
    other_hash: "entry.json does not match its own hash",
    of_another_key: "its key is not the one it is stored under",
    no_json: "JSONDecodeError",
    no_record: "entry.json does not match its own hash",
    no_fields: "entry.json does not match its own hash",
    a_file: "it is not a folder",
    a_link: "it is not a folder",
    a_link_to_nothing: "it is not a folder",
    a_file_is_a_link: "kernel.o is not a file",
    a_file_is_a_pipe: "kernel.o is not a file",
    open_to_others: "can be written by others; chmod go-w it",
    a_file_open_to_others: "kernel.o can be written by others; chmod go-w it",
}
if os.getuid() != 0:
    # Root has every right.
    CORRUPTIONS[without_rights] = "PermissionError"
else:
    # Only root gives files away.
    CORRUPTIONS[a_file_of_another_user] = "kernel.o belongs to another user; chown it"
    CORRUPTIONS[a_folder_of_another_user] = "belongs to another user; chown it"


@pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=lambda corrupt: corrupt.__name__)
def test_a_corrupt_entry_is_a_miss_that_is_told(cache: KernelCache, corrupt: Any) -> None:
    cache.store(KEY, FILES)
    corrupt(cache.root / KEY.digest)
    with pytest.warns(CacheWarning) as caught:
        assert cache.load(KEY) is None
    (warning,) = caught
    assert str(cache.root / KEY.digest) in str(warning.message)
    assert CORRUPTIONS[corrupt] in str(warning.message)
    assert str(warning.message).endswith("; it is removed, and its kernel is compiled anew")
    # It is gone, and a new one can be stored in its place.
    assert not os.path.lexists(cache.root / KEY.digest)
    cache.store(KEY, FILES)
    assert cache.load(KEY) == FILES


def test_what_cannot_be_removed_is_told(
    cache: KernelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store(KEY, FILES)
    flip(cache.root / KEY.digest)

    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.warns(CacheWarning, match="; remove it, for it cannot be; its kernel"):
        assert cache.load(KEY) is None
    assert (cache.root / KEY.digest).exists()


def test_a_corrupt_kernel_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    first = build_in(folder, monkeypatch)
    assert first.origin == "compiled"
    assert build_in(folder, monkeypatch).origin == "disk"
    kernel = folder / first.key.digest / "kernel.o"
    kernel.write_bytes(kernel.read_bytes()[:-7])
    with pytest.warns(CacheWarning, match=r"kernel\.o does not match its hash"):
        assert build_in(folder, monkeypatch).origin == "compiled"
    assert build_in(folder, monkeypatch).origin == "disk"


@pytest.fixture
def unusable(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "file").write_text("")
    # Nobody, not even root, makes a folder there.
    return {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "x",
        "read-only": Path("/proc/x"),
    }


@pytest.mark.parametrize("which", ["a file", "below a file", "read-only"])
def test_an_unusable_folder_is_done_without_and_said_once(
    which: str, unusable: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.warns(CacheWarning) as caught:
        assert build_in(unusable[which], monkeypatch).origin == "compiled"
    (warning,) = caught
    assert "kernels are not cached" in str(warning.message)
    assert settings.CACHE_DIR in str(warning.message)
    assert f"{settings.CACHE_ENABLED}=0" in str(warning.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build_in(unusable[which], monkeypatch).origin == "compiled"


# Every place and every error each time, all pairs of them under stress.
PLACES = ("write_bytes", "chmod", "mkdir", "rename")
FULL = [*((place, errno.ENOSPC) for place in PLACES), ("write_bytes", errno.EDQUOT)]
FULL.append(("mkdir", errno.EROFS))
SELDOM = [
    pytest.param(place, code, marks=pytest.mark.stress)
    for place in PLACES
    for code in (errno.EDQUOT, errno.EROFS)
    if (place, code) not in FULL
]


@pytest.mark.parametrize(("place", "code"), [*FULL, *SELDOM])
def test_a_full_disk_is_done_without_and_said_once(
    place: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setenv(settings.CACHE_DIR, str(folder))

    def refuse(path: Path, *_: Any, **__: Any) -> None:
        if folder in (path, *path.parents):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *_, **__)

    real = getattr(Path, place)
    monkeypatch.setattr(Path, place, refuse)
    with pytest.warns(CacheWarning) as caught:
        assert build_in(folder, monkeypatch).origin == "compiled"
    (warning,) = caught
    assert f"kernels are not cached: [Errno {code}]" in str(warning.message)
    assert f"set {settings.CACHE_DIR} to a folder that you can write" in str(warning.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build_in(folder, monkeypatch).origin == "compiled"
    monkeypatch.setattr(Path, place, real)
    # Nothing half-written is left to be read, and once there is room again it is used.
    assert not list(folder.glob("staged-*"))
    assert build_in(folder, monkeypatch).origin == "compiled"
    assert build_in(folder, monkeypatch).origin == "disk"


def test_a_read_only_cache_still_serves_its_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    build_in(folder, monkeypatch)

    def refuse(*_: Any, **__: Any) -> Any:
        # The tests may run as root, whom no permission stops.
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def refuse_there(suffix: Any = None, prefix: Any = None, dir: Any = None) -> str:
        return refuse() if dir == folder else real(suffix, prefix, dir)

    real = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", refuse_there)
    for module, name in ((Path, "mkdir"), (Path, "rename"), (os, "utime")):
        monkeypatch.setattr(module, name, refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build_in(folder, monkeypatch).origin == "disk"
    with pytest.warns(CacheWarning, match="kernels are not cached") as caught:
        assert build_in(folder, monkeypatch, state_size=6).origin == "compiled"
    assert len(caught) == 1


def test_without_a_temporary_folder_nothing_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/x")

    monkeypatch.setenv(settings.CACHE_ENABLED, "0")
    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(BackendUnavailableError, match=r"No space left on device.*; set TMPDIR to"):
        build_in(tmp_path, monkeypatch)


def test_whether_it_is_writable(
    cache: KernelCache, unusable: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache.writable() is None
    assert list(cache.root.iterdir()) == []
    for path in unusable.values():
        assert str(KernelCache(path, LARGE).writable()).startswith("no: [Errno ")

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # A full disk makes folders, and holds nothing in them.
    monkeypatch.setattr(Path, "write_bytes", refuse)
    assert cache.writable() == f"no: [Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}"
    assert list(cache.root.iterdir()) == []


def make_old(path: Path) -> None:
    os.utime(path, (time.time() - 7200,) * 2)


def test_what_dead_processes_left_is_removed(cache: KernelCache) -> None:
    cache.store(key(1), FILES)
    left = ["staged-dead", "discarded-dead", "probe-dead", f"{KEY.digest}.lock"]
    working = ["staged-alive", "discarded-alive", f"{key(2).digest}.lock"]
    for name in (*left, *working):
        path = cache.root / name
        if name.endswith(".lock"):
            path.touch()
        else:
            path.mkdir()
            (path / "kernel.o").write_bytes(FILES["kernel.o"])
        if name in left:
            make_old(path)
    # A file of somebody else's is not ours to remove.
    (cache.root / "notes.txt").touch()
    make_old(cache.root / "notes.txt")
    make_old(cache.root / key(1).digest)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.store(KEY, FILES)
    names = {path.name for path in cache.root.iterdir()}
    assert names == {*working, "notes.txt", KEY.digest, key(1).digest}
    assert cache.load(key(1)) == FILES


KILLED = """
import os, pathlib
pathlib.Path.rename = lambda *_: os._exit(9)
"""


def test_a_process_killed_while_it_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    environment = os.environ | {settings.CACHE_DIR: str(folder)}
    killed = subprocess.run([sys.executable, "-c", KILLED + BUILD], env=environment)
    assert killed.returncode == 9
    (staged,) = folder.glob("staged-*")
    (lock,) = folder.glob("*.lock")
    # Its lock went with it: nothing waits, and nothing it wrote is taken for an entry.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build_in(folder, monkeypatch).origin == "compiled"
    assert staged.exists()
    make_old(staged)
    make_old(lock)
    build_in(folder, monkeypatch, state_size=6)
    assert not staged.exists()
    assert not lock.exists()
    assert build_in(folder, monkeypatch).origin == "disk"


def test_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.CACHE_ENABLED, "0")
    for _ in range(2):
        assert build_in(tmp_path, monkeypatch).origin == "compiled"
    assert list(tmp_path.iterdir()) == []


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path / "cache", 5000)
    content = {"kernel.o": bytes(1500)}
    for number in (0, 1):
        cache.store(key(number), content)
        os.utime(cache.root / key(number).digest, (number, number))
    # Used now, so 1 is the oldest.
    assert cache.load(key(0)) is not None
    cache.store(key(2), content)
    assert cache.load(key(1)) is None
    assert cache.load(key(0)) == cache.load(key(2)) == content


def test_threads_storing_and_evicting(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path / "cache", 3000)
    failed: list[BaseException] = []

    def store_some(first: int) -> None:
        try:
            for number in range(first, first + 5):
                cache.store(key(number), FILES)
                assert cache.load(key(number)) in (None, FILES)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=store_some, args=(first,)) for first in (0, 0, 2, 2, 4, 9)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []
    cache.store(KEY, FILES)
    assert cache.load(KEY) == FILES
    assert sum(size for _, _, size in cache.entries()) <= 3000
    assert all(len(path.name) == 64 for path in cache.root.iterdir())


def test_only_one_holds_a_lock(cache: KernelCache) -> None:
    order: list[str] = []
    taken, release = threading.Event(), threading.Event()

    def hold() -> None:
        with cache.lock(KEY):
            taken.set()
            release.wait(10)
            order.append("first")

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(10)
    with cache.lock(key(1)):
        order.append("another key")
    release.set()
    with cache.lock(KEY):
        order.append("second")
    thread.join()
    assert order == ["another key", "first", "second"]


BUILD = """
from pdssm_compiler.runtime.compile_service import build
from pdssm_compiler.schedules.target import cpu_target
from pdssm_compiler.ir.programs import PdScan, pd_scan
print(build(pd_scan(PdScan(5, None, map_source="none")), cpu_target()).origin)
"""


def test_of_several_processes_one_compiles(tmp_path: Path) -> None:
    environment = os.environ | {settings.CACHE_DIR: str(tmp_path / "cache")}
    command = [sys.executable, "-W", "error::UserWarning", "-c", BUILD]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    origins = [process.communicate(timeout=200)[0].strip() for process in running]
    assert [process.returncode for process in running] == [0] * 4
    assert sorted(origins) == ["compiled", "disk", "disk", "disk"]


def test_a_lock_that_is_taken_again_is_not_left_behind(cache: KernelCache) -> None:
    with cache.lock(KEY):
        pass
    lock = cache.root / f"{KEY.digest}.lock"
    # Some versions of filelock remove the file they held.
    lock.touch()
    make_old(lock)
    with cache.lock(KEY):
        cache.store(key(1), FILES)
        assert lock.exists()
