"""Where a result comes from, and storing it."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from pdssm_compiler.ir.errors import PdssmError

# What a measured kernel, or a peer's, is made with.
_PACKAGES = (
    "torch",
    "triton",
    "apache-tvm",
    "apache-tvm-ffi",
    "numpy",
    "mamba-ssm",
    "flash-linear-attention",
)


class OutputError(PdssmError, OSError):
    """Results or plots could not be written, or read again."""


def provenance(device: torch.device, commit: str | None = None) -> dict[str, Any]:
    """Device, versions, commit and date of a run.

    Args:
        device: what was measured.
        commit: the commit, where the checkout has no history to ask.
    """
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {
        "device": _name(device),
        "python": platform.python_version(),
        "versions": versions,
        "threads": torch.get_num_threads(),
        "commit": commit or _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    """The commit of the checkout, marked if files differ from it."""
    try:
        head = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("-modified" if changed else "")


def _git(*command: str) -> str:
    folder = Path(__file__).parent
    result = subprocess.run(
        ["git", *command], cwd=folder, capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def store(name: str, record: dict[str, Any], folder: Path) -> Path:
    """Write a record as JSON into a folder that is there; gives where.

    Raises:
        OutputError: the file cannot be written.
    """
    path = folder / f"{name}.json"
    try:
        path.write_text(json.dumps(record, indent=1) + "\n")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose --out") from None
    return path


def made(folder: Path) -> Path:
    """A folder that can be written to; it is made if it is not there.

    Raises:
        OutputError: it cannot be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror}; choose --out") from None
    if not os.access(folder, os.W_OK):
        raise OutputError(f"cannot write to {folder}; choose --out")
    return folder


def load(path: Path) -> dict[str, Any]:
    """A stored record.

    Raises:
        OutputError: no file of results.
    """
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot read {path}: {error}; name a JSON of results") from None
    if not isinstance(record, dict) or "device" not in record:
        raise OutputError(f"{path} holds no results of a run; name a JSON of results")
    return record
