"""The cache under fire: many processes at once, killed at any point, on a full disk, with entries
spoilt meanwhile and a clock that goes backwards. Never a wrong kernel, never a hang.
"""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from pdssm_compiler.runtime import cache as cache_module
from pdssm_compiler.runtime.cache import KernelCache
from pdssm_compiler.runtime.staging import sweep
from tests.runtime import under_fire as fire
from tests.runtime.forked import CONTEXT
from tests.runtime.kernels import key
from tests.runtime.killing import kill_at_random

ROOT = Path(__file__).resolve().parents[2]


def started(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    process = CONTEXT.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def ended(process: BaseProcess) -> int:
    """The exit status of a process that has ended, as it must."""
    process.join(fire.PATIENCE)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def check_whole(root: Path) -> None:
    """Whatever happened there, a process finds what was stored or nothing, waits for nobody, and
    stores what it has.
    """
    cache = KernelCache(root, fire.LIMIT)
    with warnings.catch_warnings():
        # It was corrupt before anything happened.
        warnings.simplefilter("ignore")
        assert cache.load(fire.CORRUPT) in (None, fire.files_of(fire.CORRUPT))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kernel in (fire.OLD, fire.CORRUPT, fire.NEW):
            start = time.perf_counter()
            with cache.lock(kernel):
                assert time.perf_counter() - start < 5
                assert cache.load(kernel) in (None, fire.files_of(kernel))
                cache.store(kernel, fire.files_of(kernel))
                assert cache.load(kernel) == fire.files_of(kernel)
    sweep(root, 0.0)
    names = [path.name for path in root.iterdir()]
    assert {len(name) for name in names} == {64}, names
    assert sum(size for _, _, size in cache.entries()) <= fire.LIMIT


# More than a cache's work takes.
MANY = 400


@pytest.mark.parametrize("killed", [fire.killed_at, fire.killed_in_write])
def test_killed_at_every_point(killed: Any, tmp_path: Path) -> None:
    for number in range(MANY):
        root = tmp_path / str(number)
        fire.furnish(root)
        status = ended(started(killed, root, number))
        check_whole(root)
        if status == fire.GOOD:
            break
        assert status == -9
    assert {fire.killed_at: 40, fire.killed_in_write: 5}[killed] < number < MANY - 1


@pytest.mark.parametrize("only_once", [False, True])
def test_a_disk_that_is_full_from_any_point_on(only_once: bool, tmp_path: Path) -> None:
    code = errno.EIO if only_once else errno.ENOSPC
    for number in range(MANY):
        root = tmp_path / str(number)
        fire.furnish(root)
        status = ended(started(fire.refused_from, root, number, code, only_once))
        check_whole(root)
        if status == fire.DONE:
            break
        assert status == fire.GOOD, number
    assert 40 < number < MANY - 1


@pytest.mark.parametrize("most_bytes", [0, 1, 600])
def test_no_room_for_a_file(most_bytes: int, tmp_path: Path) -> None:
    fire.furnish(tmp_path / "cache")
    assert ended(started(fire.limited_to, tmp_path / "cache", most_bytes)) == fire.GOOD
    check_whole(tmp_path / "cache")


def mounts() -> bool:
    """Whether a small disk can be mounted here, in a namespace of one's own."""
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run([*OWN_MOUNTS, "mount -t tmpfs tmpfs /tmp"], capture_output=True)
    return tried.returncode == 0


OWN_MOUNTS = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]


@pytest.mark.skipif(not mounts(), reason="no disk can be mounted here")
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """A real one, filled by the cache itself."""
    mount = f"mount -t tmpfs -o size=64k,mode=700 tmpfs {tmp_path}"
    done = subprocess.run(
        [*OWN_MOUNTS, f"{mount} && exec {sys.executable} -c '{FILL}' {tmp_path}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=fire.PATIENCE,
    )
    assert done.returncode == 0, done.stderr


FILL = """
import sys, warnings
from pathlib import Path
from pdssm_compiler.runtime.cache import KernelCache
from tests.runtime.kernels import key

root = Path(sys.argv[1]) / "cache"
files = {"kernel.o": bytes(5000)}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    cache = KernelCache(root, 1 << 30)
    for number in range(30):
        with cache.lock(key(number)):
            cache.store(key(number), files)
    found = [cache.load(key(number)) for number in range(30)]
(warning,) = caught
assert "kernels are not cached: [Errno 28] No space left" in str(warning.message), warning
assert files in found and None in found and len([f for f in found if f not in (files, None)]) == 0
assert not list(root.glob("staged-*"))
# A limit that the disk has room for makes room, although there is none now.
warnings.simplefilter("error")
cache = KernelCache(root, 16000)
for number in range(30, 40):
    cache.store(key(number), files)
    assert cache.load(key(number)) == files
assert sum(size for _, _, size in cache.entries()) <= 16000
"""


DAY = 86400.0


def test_a_clock_that_was_set_back(tmp_path: Path) -> None:
    """What was used before it was has times in the future: it makes room for what is used now."""
    content = {"kernel.o": bytes(1500)}
    cache = KernelCache(tmp_path / "cache", 7000)
    tomorrow = time.time() + DAY
    for number in range(3):
        cache.store(key(number), content)
    for number in range(2):
        os.utime(cache.root / key(number).digest, (tomorrow - number,) * 2)
    for name in ("staged-left", "discarded-left", "left.lock"):
        path = cache.root / name
        if name.endswith("lock"):
            path.touch()
        else:
            path.mkdir()
        os.utime(path, (tomorrow,) * 2)
    for number in range(3, 6):
        with cache.lock(key(number)):
            cache.store(key(number), content)
        assert cache.load(key(number)) == content
    assert cache.load(key(0)) is None
    assert cache.load(key(1)) is None
    assert {len(path.name) for path in cache.root.iterdir()} <= {64, 69}
    # A use sets the time right.
    cache.store(key(6), content)
    os.utime(cache.root / key(6).digest, (tomorrow,) * 2)
    assert cache.load(key(6)) == content
    cache.store(key(7), content)
    assert cache.load(key(6)) == cache.load(key(7)) == content


def test_what_was_just_stored_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the clock says of it and of all others."""
    content = {"kernel.o": bytes(1500)}
    cache = KernelCache(tmp_path / "cache", 5000)
    monkeypatch.setattr(time, "time", iter(range(10_000, 0, -1)).__next__)
    for number in range(20):
        with cache.lock(key(number)):
            cache.store(key(number), content)
        assert cache.load(key(number)) == content
    assert sum(size for _, _, size in cache.entries()) <= 5000


def test_a_holder_that_does_not_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was stopped holds its key: another one waits, and then does without, however
    the clock is set meanwhile.
    """
    monkeypatch.setattr(cache_module, "_LOCK_SECONDS", 0.5)
    monkeypatch.setattr(time, "time", iter(range(10_000, 0, -1)).__next__)
    cache = KernelCache(tmp_path / "cache", 5000)
    content = {"kernel.o": bytes(1500)}
    with cache.lock(key(0)):
        # Nobody takes away what is held.
        os.utime(cache.root / f"{key(0).digest}.lock", (1.0, 1.0))
        sweep(cache.root, 0.0)
        start = time.perf_counter()
        other = KernelCache(tmp_path / "cache", 5000)
        with other.lock(key(0)):
            assert 0.4 < time.perf_counter() - start < 10
            other.store(key(0), content)
    assert cache.load(key(0)) == content


def test_sixteen_processes_compile_the_same_kernels(tmp_path: Path) -> None:
    sizes = fire.STATE_SIZES[:3]
    told = [tmp_path / f"{number}.json" for number in range(16)]
    running = [
        started(fire.compile_all, tmp_path / "cache", seed, sizes, path)
        for seed, path in enumerate(told)
    ]
    assert [ended(process) for process in running] == [fire.GOOD] * 16
    found = [json.loads(path.read_text()) for path in told]
    assert [each["said"] for each in found] == [[]] * 16
    for size in sizes:
        origins = sorted(each["origins"][str(size)] for each in found)
        assert origins == ["compiled", *["disk"] * 15]


@pytest.mark.parametrize(
    ("kills", "spoilers"),
    [
        pytest.param(6, 1, id="short"),
        pytest.param(200, 0, id="killed", marks=pytest.mark.stress),
        pytest.param(200, 2, id="killed and spoilt", marks=pytest.mark.stress),
    ],
)
@pytest.mark.timeout(600)
def test_killed_at_random(kills: int, spoilers: int, tmp_path: Path) -> None:
    """Processes have and run kernels, in a cache with room for some, until they are killed, while
    others spoil it.
    """
    root = tmp_path / "cache"
    told = tmp_path / "told.json"
    assert ended(started(fire.compile_all, root, 0, fire.STATE_SIZES, told)) == fire.GOOD
    limit = sum(size for _, _, size in KernelCache(root, 0).entries()) * 2 // 3
    chance = random.Random(kills + spoilers)
    spoiling = [started(fire.spoil_forever, root, seed) for seed in range(spoilers)]
    kill_at_random(
        partial(started, fire.compile_forever, root, limit),
        ended,
        spoiling,
        kills=kills,
        pause=0.6,
        chance=chance,
    )
    # Afterwards what is spoilt is told, and made anew, and then all is as it should be.
    for number in range(2):
        assert ended(started(fire.compile_all, root, number, fire.STATE_SIZES, told)) == fire.GOOD
    found = json.loads(told.read_text())
    assert found["said"] == []
    assert set(found["origins"].values()) == {"disk"}
    KernelCache(root, limit).clear()
    assert list(root.iterdir()) == []
