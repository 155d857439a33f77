"""The cache under fire: many processes at once, killed at any point, on a full disk, with entries
spoilt meanwhile and a clock that goes backwards. Never a wrong kernel, never a hang.
"""

import errno
import os
import random
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from pdssm_compiler.runtime import cache as cache_module
from pdssm_compiler.runtime.cache import KernelCache
from pdssm_compiler.runtime.staging import sweep
from tests.runtime import under_fire as fire
from tests.runtime.kernels import key

ROOT = Path(__file__).resolve().parents[2]


def started(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    process = fire.CONTEXT.Process(target=function, args=arguments, daemon=True)
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
