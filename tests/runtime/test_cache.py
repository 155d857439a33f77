"""The kernel cache: what is stored comes back, or is a miss that is told."""

import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest

from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.cache import KernelCache
from pdssm_compiler.runtime.errors import CacheWarning
from tests.runtime.kernels import KEY, build_in, key

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


def no_fields(folder: Path) -> None:
    (folder / "entry.json").write_text("[]")


def open_to_others(folder: Path) -> None:
    folder.chmod(0o777)


def open_root(folder: Path) -> None:
    folder.parent.chmod(0o775)


CORRUPTIONS = {
    truncate: "kernel.o does not match its hash",
    flip: "kernel.o does not match its hash",
    remove: "FileNotFoundError",
    other_key: "its key is not the one it is stored under",
    no_json: "JSONDecodeError",
    no_fields: "TypeError",
    open_to_others: "can be written by others; chmod go-w it",
    open_root: "can be written by others; chmod go-w it",
}


@pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=lambda corrupt: corrupt.__name__)
def test_a_corrupt_entry_is_a_miss_that_is_told(cache: KernelCache, corrupt: Any) -> None:
    cache.store(KEY, FILES)
    corrupt(cache.root / KEY.digest)
    with pytest.warns(CacheWarning) as caught:
        assert cache.load(KEY) is None
    (warning,) = caught
    assert str(cache.root / KEY.digest) in str(warning.message)
    assert CORRUPTIONS[corrupt] in str(warning.message)
    # It is gone, and a new one can be stored in its place.
    assert not (cache.root / KEY.digest).exists()
    cache.root.chmod(0o700)
    cache.store(KEY, FILES)
    assert cache.load(KEY) == FILES


def test_an_entry_of_another_user_is_refused(
    cache: KernelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store(KEY, FILES)
    real = Path.stat

    def theirs(path: Path, **more: Any) -> os.stat_result:
        status = real(path, **more)
        if path.name != KEY.digest:
            return status
        return os.stat_result([4242 if place == 4 else item for place, item in enumerate(status)])

    monkeypatch.setattr(Path, "stat", theirs)
    with pytest.warns(CacheWarning, match="belongs to another user"):
        assert cache.load(KEY) is None


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
