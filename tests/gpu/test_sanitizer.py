"""compute-sanitizer over a small run of each template: memory, races, barriers.

Deselected where the tool is not installed. Racecheck looks at shared memory alone, so the flags
and carries by which blocks of ``cuda-chunks`` wait for one another in global memory are not its
matter; in clusters all carries are words with marks, which it would take for races. What else it
would is left out of the kernels it watches, which therefore have a cache of their own
(:mod:`tests.gpu.sanitized`).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pdssm_compiler.runtime import settings
from tests.gpu.sanitized import RUNS
from tests.gpu.sanitizer import TOOLS, complaint, find_sanitizer

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = (
    "cuda-step",
    "cuda-rows",
    "cuda-chunks",
    "cuda-chunks:clusters",
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
def caches() -> dict[str, str]:
    """Folders with the kernels of what has run without a tool, by what has."""
    return {}


@pytest.mark.parametrize(
    ("template", "tool"),
    [
        (template, tool)
        for template in TEMPLATES
        for tool in TOOLS
        if (template, tool) != ("cuda-chunks:clusters", "racecheck")
    ],
)
def test_nothing_is_found(
    template: str,
    tool: str,
    caches: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, _, clusters = template.partition(":")
    if clusters and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("blocks of this GPU are no clusters")
    watched_by = ["racecheck"] if tool == "racecheck" else []
    child = [sys.executable, "-m", "tests.gpu.sanitized", template, "cuda", *watched_by]
    what = " ".join(child)
    compiled = what in caches
    cache = caches.setdefault(what, str(tmp_path_factory.mktemp("kernels")))
    monkeypatch.setenv(settings.CACHE_DIR, cache)
    if not compiled:
        assert run(child).returncode == 0
    sanitizer = find_sanitizer()
    assert sanitizer is not None
    options = ["--tool", tool, "--error-exitcode", str(_FOUND), "--print-limit", "20"]
    done = run([sanitizer, *options, *child])
    assert done.stdout.count(f"ran {name} ") == RUNS
    assert complaint(tool, done.stdout) is None
    assert done.returncode == 0
