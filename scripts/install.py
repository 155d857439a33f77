"""Make a virtual environment with everything the project needs.

``python scripts/install.py --venv .venv``. On a machine without an NVIDIA GPU a CPU build of torch
is taken if the configured package indexes offer one (its version ends in ``+cpu``, or it is a
plain build without CUDA packages); only if there is none, pip's default build. On a machine with
one, pip's default build is taken, which on Linux brings CUDA. ``--torch`` overrides the choice
with any pip requirement, for example ``--torch torch==2.13.0``.

Standard library only: it runs before anything is installed.
"""

import argparse
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Releases of torch the suite has passed with, newest first; a pinned release is looked for as a
# CPU build before pip's default is taken.
CPU_RELEASES = ("2.13.0", "2.12.0", "2.11.0", "2.10.0")


def main() -> None:
    """Create, choose torch, install."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--torch", default=None, help="a pip requirement for torch")
    arguments = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036  (any Python may start this file)
        sys.exit(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}")
    if not (arguments.venv / "bin" / "python").exists():
        print(f"making {arguments.venv}")
        venv.create(arguments.venv, with_pip=True)
    python = arguments.venv / "bin" / "python"
    if not has_torch(python):
        install_torch(python, arguments.torch)
    pip(python, "install", "-e", f"{ROOT}[dev]")


def has_torch(python: Path) -> bool:
    """Whether the environment has torch already."""
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    return subprocess.run([str(python), "-c", code], check=False).returncode == 0


def install_torch(python: Path, wanted: str | None) -> None:
    """Install the requirement, or choose by what the machine has."""
    if wanted is not None:
        pip(python, "install", wanted)
        return
    if shutil.which("nvidia-smi"):
        print("an NVIDIA driver is here: taking pip's default build of torch")
        pip(python, "install", "torch>=2.10")
        return
    for release in CPU_RELEASES:
        # A local version is a build of its own; CPU builds are marked so.
        if pip(python, "install", f"torch=={release}+cpu", check=False):
            return
    print("no CPU build of torch is on offer: taking pip's default build")
    pip(python, "install", "torch>=2.10")


def pip(python: Path, *arguments: str, check: bool = True) -> bool:
    """Run pip quietly; gives whether it succeeded.

    Raises:
        SystemExit: it failed and that matters.
    """
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments, "--quiet"]
    print("pip", *arguments, flush=True)
    result = subprocess.run(command, check=False, capture_output=not check)
    if check and result.returncode:
        sys.exit(f"pip {' '.join(arguments)} failed; see its message above")
    return result.returncode == 0


if __name__ == "__main__":
    main()
