"""What a cache holds, told, and in what the nearest entries differ from what is not there."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pdssm_compiler.runtime import entries
from pdssm_compiler.runtime.cache import KernelCache
from pdssm_compiler.runtime.entries import read_record
from pdssm_compiler.runtime.errors import CacheWarning
from pdssm_compiler.runtime.inventory import (
    WantedKernel,
    differences,
    inventory,
    nearest,
    state_of,
)
from pdssm_compiler.runtime.key import KernelKey
from tests.runtime.kernels import KEY

WHOLE = replace(
    KEY,
    config='{"rows": 1, "unroll": 4}',
    features="avx fma",
    compilers="tvm=1 orcjit=1",
    options='{"num_warps": 2}',
)


@pytest.fixture
def cache(tmp_path: Path) -> KernelCache:
    return KernelCache(tmp_path / "cache", 1 << 20)


def store(cache: KernelCache, key: KernelKey, program: str = "scan N=5 forward") -> None:
    cache.store(key, {"source.py": f"# rows\n# {program}\ntext\n".encode(), "kernel.o": b"0" * 90})


def test_what_there_is(cache: KernelCache) -> None:
    store(cache, KEY)
    store(cache, WHOLE, "scan N=6 backward")
    now = time.time()
    os.utime(cache.root / KEY.digest, (now - 500,) * 2)
    newest, oldest = inventory(cache)
    assert (newest.folder.name, oldest.folder.name) == (WHOLE.digest, KEY.digest)
    assert (newest.program, oldest.program) == ("scan N=6 backward", "scan N=5 forward")
    assert newest.key["config"] == WHOLE.config
    assert newest.version
    assert 500 <= oldest.used < 600
    assert 0 <= oldest.made < 100
    assert newest.bytes > 90
    assert newest.problem is oldest.problem is None
    assert inventory(KernelCache(cache.root / "nowhere", 1)) == []


def test_what_cannot_be_read_is_listed(cache: KernelCache) -> None:
    store(cache, KEY)
    record = cache.root / KEY.digest / "entry.json"
    record.write_text(record.read_text().replace("program", "prosram"))
    (kernel,) = inventory(cache)
    assert kernel.problem == "ValueError: entry.json does not match its own hash"
    assert nearest(WantedKernel("forward", KEY, ""), [kernel]) == []
    record.unlink()
    (kernel,) = inventory(cache)
    assert str(kernel.problem).startswith("FileNotFoundError: ")


def test_an_entry_of_another_version(cache: KernelCache) -> None:
    """Whose key has other fields: it is listed, and its difference told; it is nobody's kernel."""
    store(cache, KEY)
    folder = cache.root / KEY.digest
    record = read_record(folder)
    record["key"]["warp_size"] = record["key"].pop("alignment")
    record["version"] = "9.0"
    record["sum"] = entries._sum_of(record)
    (folder / "entry.json").write_text(json.dumps(record))
    (kernel,) = inventory(cache)
    assert (kernel.version, kernel.problem) == ("9.0", None)
    assert differences(KEY, kernel) == {
        "alignment": ("0", "absent"),
        "warp_size": ("absent", "0"),
    }
    assert list(cache.keys()) == cache.entries() == []
    with pytest.warns(CacheWarning, match="its key is not the one it is stored under"):
        assert cache.load(KEY) is None


def test_whether_a_kernel_is_there(cache: KernelCache) -> None:
    assert state_of(cache, KEY) == "miss"
    store(cache, KEY)
    assert state_of(cache, KEY) == "hit"
    (cache.root / KEY.digest / "kernel.o").write_bytes(b"")
    # It is for the next process that wants it to remove.
    for _ in range(2):
        assert state_of(cache, KEY) == "corrupt: kernel.o does not match its hash"


CHANGES = {
    "program": ({"program": "other"}, {"program": ("program", "other")}),
    "config": (
        {"config": '{"rows": 2, "tile": 8, "unroll": 4}'},
        {"config.rows": ("1", "2"), "config.tile": ("absent", "8")},
    ),
    "features": ({"features": "avx avx512f"}, {"features": ("fma", "avx512f")}),
    "versions": (
        {"compilers": "tvm=1 orcjit=2", "loaders": "triton=3"},
        {"orcjit": ("1", "2"), "ffi": ("0", "absent"), "triton": ("absent", "3")},
    ),
    "alignment": ({"alignment": 16}, {"alignment": ("0", "16")}),
    "generator": ({"generator": "other"}, {"generator": ("generator", "other")}),
    # What follows from another template or target is not told as well.
    "template": (
        {"template": "chunks", "config": "{}", "options": "{}", "cuda_compiler": ""},
        {"template": ("rows", "chunks")},
    ),
    "target": ({"target": "cpu:arm", "features": ""}, {"target": ("cpu:any", "cpu:arm")}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_differences_field_by_field(change: str, cache: KernelCache) -> None:
    changed, told = CHANGES[change]
    store(cache, replace(WHOLE, **changed))
    (kernel,) = inventory(cache)
    assert differences(WHOLE, kernel) == told


def test_the_nearest_come_first(cache: KernelCache) -> None:
    near = [
        (replace(WHOLE, generator="other"), "scan N=5 forward"),
        (replace(WHOLE, generator="other", config="{}"), "scan N=5 forward"),
        (replace(WHOLE, template="chunks"), "scan N=5 forward"),
        (replace(WHOLE, target="cuda:sm_90"), "scan N=5 forward"),
        (replace(WHOLE, program="other"), "scan N=6 forward"),
        (replace(WHOLE, program="another"), "scan N=6 backward"),
    ]
    for key, program in (*reversed(near), (WHOLE, "scan N=5 forward")):
        store(cache, key, program)
    found = nearest(WantedKernel("forward", WHOLE, "scan N=5 forward"), inventory(cache))
    assert [kernel.folder.name for kernel in found] == [key.digest for key, _ in near]
