"""Where a result comes from, and storing it."""

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

from pdssm_compiler.ir.errors import PdssmError
from pdssm_compiler.runtime.devices import target_of
from pdssm_compiler.runtime.tuning.provenance import PACKAGES, now, versions_of
from pdssm_compiler.runtime.tuning.provenance import commit as checkout

# What a measured kernel, or a peer's, is made with.
_PACKAGES = (*PACKAGES, "mamba-ssm", "flash-linear-attention")


class OutputError(PdssmError, OSError):
    """Results or plots could not be written, or read again."""


def provenance(device: torch.device, commit: str | None = None) -> dict[str, Any]:
    """Device, versions, commit and date of a run.

    Args:
        device: what was measured.
        commit: the commit, where the checkout has no history to ask.
    """
    return {
        "device": target_of(device).name,
        "python": platform.python_version(),
        "versions": versions_of(_PACKAGES),
        "threads": torch.get_num_threads(),
        "commit": commit or checkout(),
        "date": now(),
    }


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
