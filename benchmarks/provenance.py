"""Where a result comes from, and storing it."""

import datetime
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def provenance(device: torch.device, commit: str | None = None) -> dict[str, Any]:
    """Device, versions, commit and date of a run.

    Args:
        device: what was measured.
        commit: the commit, where the checkout has no history to ask.
    """
    versions = {}
    for name in ("torch", "triton", "apache-tvm", "apache-tvm-ffi", "numpy"):
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


def store(name: str, record: dict[str, Any], folder: Path | None = None) -> Path:
    """Write a record as JSON; gives where."""
    folder = folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path
