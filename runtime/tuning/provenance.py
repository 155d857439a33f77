"""Where a measurement comes from: device, versions, commit and date."""

import datetime
import subprocess
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path

from pdssm_compiler.runtime.key import generator_hash

# What a kernel is made and run with.
PACKAGES = ("torch", "triton", "apache-tvm", "apache-tvm-ffi", "numpy")


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Versions of packages by name, ``absent`` for one that is not installed."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


@cache
def kernel_versions() -> dict[str, str]:
    """What a measured time depends on besides device and config: where one of these changes, a
    candidate is measured again.
    """
    found = versions_of((*PACKAGES, "pdssm-compiler"))
    return {**found, "code generator": generator_hash()[:16]}


@cache
def commit() -> str:
    """The commit of the checkout this runs from, marked if files differ from it; ``unknown``
    where there is no history to ask.
    """
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


def now() -> str:
    """The date and time, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
