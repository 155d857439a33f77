"""Tuning logs on disk: ``<gpu>/<program>.jsonl``, a row a line, only ever added to.

The user's own stand below the cache's folder; the best rows of some GPUs are shipped with the
package. A line that is no row, such as the last one of a process that was killed, is told and
passed over.
"""

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

import pdssm_compiler.autotune_logs
from pdssm_compiler.ir.program import Program
from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.errors import TuningWarning
from pdssm_compiler.runtime.tuning.rows import Row, RowError, read_row

_FOLDER = "autotune_logs"
# Adding a few lines takes milliseconds: who holds the lock longer has died or been stopped.
_LOCK_SECONDS = 10.0


def user_logs() -> Path:
    """The folder of this user's logs."""
    return settings.cache_dir() / _FOLDER


def shipped_logs() -> Path:
    """The folder of the logs that came with the package."""
    return Path(pdssm_compiler.autotune_logs.__path__[0])


def folder_name(device: str) -> str:
    """A device's name as the name of its folder: ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") or "unknown"


def file_name(program: Program) -> str:
    """The name of a specialised program's log: told by eye, and one for each program."""
    return f"n{program.state_size}-{program.direction}-{program.fingerprint[:16]}.jsonl"


def read_log(path: Path) -> tuple[list[Row], list[str]]:
    """The rows of a log, oldest first, and what is wrong with its other lines; no rows if there
    is no such file.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [f"{path} cannot be read: {error.strerror}"]
    rows, wrong = [], []
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(read_row(line.decode()))
        except (RowError, UnicodeDecodeError) as error:
            wrong.append(f"{path}:{number} is passed over: {error}")
    return rows, wrong


def warned_rows(path: Path) -> list[Row]:
    """The rows of a log; warns of the first line that is none, and of how many there are."""
    rows, wrong = read_log(path)
    if wrong:
        more = f" (and {len(wrong) - 1} more lines)" if len(wrong) > 1 else ""
        warnings.warn(f"tuning log: {wrong[0]}{more}", TuningWarning, stacklevel=2)
    return rows


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to a log, whole lines at its end, whatever other processes add meanwhile.

    Raises:
        OSError: what the file system says.
    """
    text = "".join(row.line() for row in rows).encode()
    if not text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path), path.open("a+b") as file:
        # A line that another process could not finish stays a line of its own.
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                text = b"\n" + text
        file.write(text)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = filelock.FileLock(path.with_suffix(".lock"), timeout=_LOCK_SECONDS)
    with suppress(filelock.Timeout):
        # Without it: lines are added by one write, which the system does not tear apart.
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
