"""compute-sanitizer over a small run of each template: memory, races, barriers.

Deselected where the tool is not installed. Racecheck looks at shared memory alone, so the flags
and carries by which blocks of ``cuda-chunks`` wait for one another in global memory are not its
matter.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.sanitized import STATE_SIZES
from tests.gpu.sanitizer import TOOLS, complaint, find_sanitizer

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = (
    "cuda-step",
    "cuda-rows",
    "cuda-chunks",
    "triton-rows",
    "triton-chunks",
    "triton-lookback",
)
# Freed memory goes back to the driver, so that whoever still reads it is seen.
ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
_FOUND = 86


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """A command, with what it printed in one text, which the test's report has."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=280,
    )
    print(done.stdout)
    return done


@pytest.fixture(scope="module")
def compiled() -> set[str]:
    """Templates that have run without a tool, and left their kernels in the cache."""
    return set()


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_nothing_is_found(template: str, tool: str, compiled: set[str]) -> None:
    child = [sys.executable, "-m", "tests.gpu.sanitized", template]
    if template not in compiled:
        assert run(child).returncode == 0
        compiled.add(template)
    sanitizer = find_sanitizer()
    assert sanitizer is not None
    options = ["--tool", tool, "--error-exitcode", str(_FOUND), "--print-limit", "20"]
    done = run([sanitizer, *options, *child])
    assert done.stdout.count(f"ran {template} ") == 2 * len(STATE_SIZES)
    assert complaint(tool, done.stdout) is None
    assert done.returncode == 0
