"""``python -m tests.suite``: the whole suite, as ``make test`` runs it.

Two runs of pytest: Triton decides when it is imported whether kernels run in its interpreter, so
those tests need a process of their own. Lint and types, where ruff and mypy are installed, run
beside the first of them: each has one thread.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Run everything; the exit status is 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", default="2")
    arguments = parser.parse_args()
    parallel, evenly, env = [], [], dict(os.environ)
    if arguments.workers not in ("0", "1") and importlib.util.find_spec("xdist"):
        # Tests of a file share what they compile; interpreted kernels are compiled by none.
        parallel = ["-n", arguments.workers, "--dist", "loadfile"]
        evenly = ["--dist", "worksteal"]
        # Workers share the processors; with a thread a processor each they wait for one another.
        env.setdefault("OMP_NUM_THREADS", "1")
    # What is marked as stress is left to `make stress`.
    pytest = [sys.executable, "-m", "pytest", "-q", "-m", "not stress", *parallel]
    interpreted = dict(env, TRITON_INTERPRET="1")
    with ThreadPoolExecutor(1) as beside:
        checks = [
            beside.submit(_run, [sys.executable, "-m", *module], needs=needs, whole=True)
            for needs, module in (
                ("ruff", ["ruff", "check", "."]),
                ("ruff", ["ruff", "format", "--check", "."]),
                ("mypy", ["tests.types"]),
            )
        ]
        results = [
            _run([*pytest, *evenly, "tests/triton_interpreter"], interpreted, needs="triton"),
            *(check.result() for check in checks),
        ]
    results.append(_run([*pytest, "tests", "--ignore=tests/triton_interpreter"], env))
    # A run that a signal ended has a negative status.
    sys.exit(int(any(results)))


def _run(
    command: list[str],
    env: dict[str, str] | None = None,
    needs: str = "pytest",
    whole: bool = False,
) -> int:
    """Run a command; what it says comes as it says it, or as a whole in the end."""
    if importlib.util.find_spec(needs) is None:
        print(f"not run, {needs} is not installed: {' '.join(command[2:])}", flush=True)
        return 0
    told = f"+ {' '.join(command[1:])}"
    if not whole:
        print(told, flush=True)
    done = subprocess.run(command, cwd=ROOT, env=env, check=False, text=True, capture_output=whole)
    if whole:
        print(f"{told}\n{done.stdout}{done.stderr}", end="", flush=True)
    return done.returncode


if __name__ == "__main__":
    main()
