"""Tuning logs on disk: ``<gpu>/<program>.jsonl``, a row a line, only ever added to.

The user's own stand below the cache's folder; the best rows of some GPUs are shipped with the
package. A line that is no row, such as the last one of a process that was killed, is told and
passed over.

A row names its program by a fingerprint. ``programs/<program>.txt`` has its text, so that what was
measured can be understood without whoever measured it, by a cost model above all.

What a cost model predicts for a GPU stands in files of its own beside its logs,
``<gpu>/<program>.predicted.jsonl``: it is derived from logs, and made anew as a whole.
"""

import hashlib
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

import pdssm_compiler.autotune_logs
from pdssm_compiler.ir.errors import PdssmError
from pdssm_compiler.ir.parser import parse_program
from pdssm_compiler.ir.program import Program
from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.errors import TuningWarning
from pdssm_compiler.runtime.tuning.rows import Row, RowError, read_row

_FOLDER = "autotune_logs"
_PROGRAMS = "programs"
_LOG, _PREDICTED = ".jsonl", ".predicted.jsonl"
# Adding a few lines takes milliseconds: who holds the lock longer has died or been stopped.
_LOCK_SECONDS = 10.0
# What devices' names are made of, and targets': "Intel(R) Xeon(R) CPU @ 2.20GHz", "cuda:sm_90".
_USUAL = re.compile(r"[A-Za-z0-9 ()@.:_-]*")
_LONGEST = 100


def user_logs() -> Path:
    """The folder of this user's logs."""
    return settings.cache_dir() / _FOLDER


def shipped_logs() -> Path:
    """The folder of the logs that came with the package."""
    return Path(pdssm_compiler.autotune_logs.__path__[0])


def folder_name(device: str) -> str:
    """A device's name as the name of its folder: ``nvidia-h100-80gb-hbm3``. Where more is lost
    than makers' usual punctuation, or it would be too long for a file system, a few letters of the
    name's hash follow.

    Names that differ in usual punctuation or in case alone have one folder: rows name their device
    in full.
    """
    told = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    if told and len(told) <= _LONGEST and _USUAL.fullmatch(device):
        return told
    told = told[:_LONGEST].strip("-") or "unknown"
    return f"{told}-{hashlib.sha256(device.encode(errors='surrogatepass')).hexdigest()[:8]}"


def file_name(program: Program) -> str:
    """The name of a specialised program's log: told by eye, and one for each program."""
    return _stem(program) + _LOG


def predicted_name(program: Program) -> str:
    """The name of the file of what is predicted for a specialised program, beside its log."""
    return _stem(program) + _PREDICTED


def is_predicted(path: Path) -> bool:
    """Whether a file holds what is predicted."""
    return path.name.endswith(_PREDICTED)


def _stem(program: Program) -> str:
    return f"n{program.state_size}-{program.direction}-{program.fingerprint[:16]}"


def logs_below(root: Path) -> list[Path]:
    """Every log of measured candidates in a folder of logs."""
    return [path for path in files_below(root) if not is_predicted(path)]


def files_below(root: Path) -> list[Path]:
    """Every file of rows in a folder of logs: logs, and what is predicted."""
    return sorted(root.glob(f"*/*{_LOG}"))


def programs_below(root: Path) -> list[Path]:
    """The texts of programs in a folder of logs."""
    return sorted(root.glob(f"{_PROGRAMS}/*.txt"))


def keep_program(root: Path, program: Program) -> None:
    """Leave a specialised program's text beside the logs in a folder of logs.

    Raises:
        OSError: what the file system says.
    """
    path = root / _PROGRAMS / f"{_stem(program)}.txt"
    if not path.exists():
        _replace(path, program.text.encode())


def program_of_log(path: Path, roots: Iterable[Path]) -> Program | None:
    """The program that a log is of, from the first folder of logs that has its text; None if no
    folder has, or what it has is not that program's.
    """
    name = path.name.removesuffix(_LOG)
    for root in roots:
        try:
            text = (root / _PROGRAMS / f"{name}.txt").read_text(encoding="utf-8")
            program = parse_program(text)
        except (OSError, UnicodeDecodeError, PdssmError):
            continue
        if _stem(program) == name:
            return program
    return None


def read_log(path: Path) -> tuple[list[Row], list[str]]:
    """The rows of a log, oldest first, and what is wrong with its other lines; no rows if there
    is no such file.
    """
    try:
        # Opening a pipe waits for who writes to it.
        if path.exists() and not path.is_file():
            return [], [f"{path} is no file"]
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


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Make a log of just these rows, all of it or nothing; without any there is no file.

    Raises:
        OSError: what the file system says.
    """
    text = "".join(row.line() for row in rows).encode()
    if text:
        _replace(path, text)
    else:
        path.unlink(missing_ok=True)


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as aside:
        whole = Path(aside) / path.name
        whole.write_bytes(content)
        os.replace(whole, path)


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
