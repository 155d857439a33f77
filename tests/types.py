"""``python -m tests.types``: mypy over the package as it is installed.

In a checkout the packages stand side by side, and an editable install joins them by a finder that
mypy does not run. Here they are laid out as a wheel lays them out, from the same list in
``pyproject.toml``: a package missing there is an error here.
"""

import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Lay the package out and check it; the exit status is mypy's."""
    with tempfile.TemporaryDirectory() as folder:
        lay_out(Path(folder))
        mypy = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
        # Paths below the folder are the same in every run, so the cache serves the next one.
        cache = ["--cache-dir", str(ROOT / ".mypy_cache")]
        done = subprocess.run([*mypy, *cache, "-p", "pdssm_compiler"], cwd=folder, check=False)
    sys.exit(done.returncode)


def lay_out(folder: Path) -> None:
    """Copy every listed package to its place below a folder."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for package in setuptools["packages"]:
        above = max(
            (p for p in setuptools["package-dir"] if f"{package}.".startswith(f"{p}.")), key=len
        )
        below = package.removeprefix(above).strip(".").replace(".", "/")
        target = folder / package.replace(".", "/")
        target.mkdir(parents=True, exist_ok=True)
        for file in (ROOT / setuptools["package-dir"][above] / below).iterdir():
            if file.suffix == ".py" or file.name == "py.typed":
                shutil.copy(file, target)


if __name__ == "__main__":
    main()
