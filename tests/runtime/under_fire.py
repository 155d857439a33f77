"""What processes do to one cache folder, in the tests that put it under fire."""

import contextlib
import errno
import json
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.backends.tvm_script import import_tvm
from pdssm_compiler.runtime.cache import KernelCache
from pdssm_compiler.runtime.compile_service import build
from pdssm_compiler.runtime.errors import CacheWarning
from pdssm_compiler.runtime.key import KernelKey
from pdssm_compiler.schedules.target import cpu_target
from tests.runtime.kernels import key, small

import_tvm()

# What is asked of every process that is not killed.
GOOD = 0
# For whatever takes longer, something hangs.
PATIENCE = 100.0

# Files, by the number of their key.
LIMIT = 3000
OLD, CORRUPT, NEW = key(1), key(2), key(3)


def files_of(kernel: KernelKey) -> dict[str, bytes]:
    return {"kernel.o": kernel.digest.encode() * 10, "source.py": kernel.program.encode()}


def furnish(root: Path) -> KernelCache:
    """A cache in which storing one more entry does all there is to do: find a corrupt one, evict,
    and sweep.
    """
    cache = KernelCache(root, LIMIT)
    for kernel in (OLD, CORRUPT):
        cache.store(kernel, files_of(kernel))
    (root / CORRUPT.digest / "kernel.o").write_bytes(b"corrupt")
    left = root / "staged-left"
    left.mkdir()
    (left / "kernel.o").write_bytes(b"half")
    for path in (left, root / OLD.digest):
        os.utime(path, (1.0, 1.0))
    return cache


def use(root: Path) -> None:
    """What a process does for a kernel that the furnished cache has corrupt, and one that it has
    not.
    """
    cache = KernelCache(root, LIMIT)
    for kernel in (CORRUPT, NEW):
        with cache.lock(kernel):
            assert cache.load(kernel) in (None, files_of(kernel))
            cache.store(kernel, files_of(kernel))


# What touches the file system; a hook hears of it before it happens.
_TOUCHES = ("open", "os.", "fcntl.", "shutil.", "tempfile.")


def _at_touch(number: int, act: Callable[[str], None]) -> Callable[[], int]:
    """Call a function at a touch of the file system and all that follow; gives what tells how many
    there were.
    """
    count = 0

    def heard(event: str, _: object) -> None:
        nonlocal count
        if event.startswith(_TOUCHES) and event != "os.kill":
            count += 1
            if count > number:
                act(event)

    sys.addaudithook(heard)
    return lambda: count


def killed_at(root: Path, number: int) -> None:
    """Use the cache, and be killed at a touch of the file system."""
    warnings.simplefilter("ignore")
    _at_touch(number, lambda _: os.kill(os.getpid(), signal.SIGKILL))
    use(root)
    os._exit(GOOD)


def killed_in_write(root: Path, number: int) -> None:
    """Use the cache, and be killed when half of a file is written."""
    warnings.simplefilter("ignore")
    whole = Path.write_bytes
    count = 0

    def write(path: Path, content: bytes) -> int:
        nonlocal count
        count += 1
        if count <= number:
            return whole(path, content)
        whole(path, content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    Path.write_bytes = write  # type: ignore[method-assign,assignment]
    use(root)
    os._exit(GOOD)


def refused_from(root: Path, number: int, code: int, only_once: bool) -> None:
    """Use the cache, while the file system refuses to do what it is asked to."""
    told = _Told()
    refusing = [True]

    def refuse(_: str) -> None:
        if refusing[0]:
            refusing[0] = not only_once
            raise OSError(code, os.strerror(code))

    with told:
        touches = _at_touch(number, refuse)
        use(root)
        refusing[0] = False
    reached = touches() > number
    # Whatever was refused, it went on; and each thing was said once.
    assert len(set(told.messages)) == len(told.messages), told.messages
    os._exit(GOOD if reached else DONE)


# All of the work was done before the moment came.
DONE = 4


def limited_to(root: Path, most_bytes: int) -> None:
    """Use the cache, with no file longer than so many bytes."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    with _Told() as told:
        use(root)
    (message,) = (m for m in told.messages if m.startswith("kernels are not cached: "))
    assert f"[Errno {errno.EFBIG}]" in message
    os._exit(GOOD)


class _Told(contextlib.AbstractContextManager):
    """What is said meanwhile, of the cache alone."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def __enter__(self) -> "_Told":
        self._catch = warnings.catch_warnings()
        self._catch.__enter__()
        warnings.simplefilter("always")
        warnings.showwarning = self._note
        return self

    def _note(self, message: Warning | str, category: type, *_: Any, **__: Any) -> None:
        assert issubclass(category, CacheWarning), message
        self.messages.append(str(message))

    def __exit__(self, *error: object) -> None:
        self._catch.__exit__(*error)


# The programs that processes compile at once, by their state size.
STATE_SIZES = (2, 3, 5, 6, 7)


def build_and_run(state_size: int) -> str:
    """Have a kernel and run it; gives where it came from.

    Raises:
        AssertionError: it is a wrong one.
    """
    built = build(small(state_size), cpu_target())
    generator = torch.Generator().manual_seed(state_size)
    diagonal, drive = (torch.randn(1, 3, 2, state_size, 2, generator=generator) for _ in range(2))
    states = torch.full_like(drive, torch.nan)
    given = {"in_diagonal0": diagonal, "in_drive0": drive, "out_states0": states}
    names = [argument.name for argument in built.source.signature.arguments]
    error = torch.zeros(1, dtype=torch.int64)
    built.kernel.launch([given[name] for name in names], error, Sizes(1, 3, 2))
    wanted, carry = [], torch.zeros(1, 2, state_size, dtype=torch.complex64)
    for t in range(3):
        carry = torch.view_as_complex(diagonal[:, t]) * carry + torch.view_as_complex(drive[:, t])
        wanted.append(carry)
    torch.testing.assert_close(torch.view_as_complex(states), torch.stack(wanted, 1))
    return built.origin


def compile_all(root: Path, seed: int, sizes: Sequence[int], told: Path) -> None:
    """Have every kernel in an order of one's own; writes down the origins and what is said."""
    _prepare(root)
    order = list(sizes)
    random.Random(seed).shuffle(order)
    with _Told() as said:
        origins = {size: build_and_run(size) for size in order}
    told.write_text(json.dumps({"origins": origins, "said": said.messages}))


def compile_forever(root: Path, limit: int, seed: int) -> None:
    """Have and run kernels until killed; ends by itself only if something is wrong."""
    _prepare(root)
    os.environ[settings.CACHE_LIMIT] = str(limit)
    chance = random.Random(seed)
    try:
        while True:
            with _Told() as told:
                build_and_run(chance.choice(STATE_SIZES))
            for message in told.messages:
                assert message.startswith("kernel cache entry "), message
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def spoil_forever(root: Path, seed: int) -> None:
    """Truncate, flip bits, exchange, open to others, until killed."""
    chance = random.Random(seed)
    while True:
        time.sleep(chance.uniform(0.0, 0.1))
        files = [path for path in root.glob("*/*") if path.is_file()]
        if files:
            with contextlib.suppress(OSError):
                chance.choice(_SPOILS)(chance, chance.choice(files), chance.choice(files))


def truncate(chance: random.Random, file: Path, _: Path) -> None:
    os.truncate(file, chance.randrange(file.stat().st_size + 1))


def flip_a_bit(chance: random.Random, file: Path, _: Path) -> None:
    with file.open("r+b") as content:
        place = chance.randrange(file.stat().st_size + 1)
        content.seek(place)
        byte = content.read(1)
        if byte:
            content.seek(place)
            content.write(bytes([byte[0] ^ 1 << chance.randrange(8)]))


def exchange(_: random.Random, file: Path, other: Path) -> None:
    file.write_bytes(other.read_bytes())


def exchange_folders(chance: random.Random, file: Path, other: Path) -> None:
    aside = file.parents[2] / f"aside-{chance.random()}"
    file.parent.rename(aside)
    other.parent.rename(file.parent)
    aside.rename(other.parent)


def open_to_others(_: random.Random, file: Path, other: Path) -> None:
    file.chmod(0o666)
    other.parent.chmod(0o777)


def remove(_: random.Random, file: Path, __: Path) -> None:
    file.unlink()


_SPOILS = (truncate, flip_a_bit, exchange, exchange_folders, open_to_others, remove)


def _prepare(root: Path) -> None:
    # The threads of torch's pool are not there in a forked process.
    torch.set_num_threads(1)
    os.environ[settings.CACHE_DIR] = str(root)
