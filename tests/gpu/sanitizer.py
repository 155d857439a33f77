"""NVIDIA's compute-sanitizer: where it is, and what it said."""

import os
import re
import shutil
from pathlib import Path

# How each tool sums up, and what it says where it has found nothing.
_SUMMARY = re.compile(r"^=+ ([A-Z]+ SUMMARY: .*)$", re.MULTILINE)
_CLEAN = {
    "memcheck": "ERROR SUMMARY: 0 errors",
    "racecheck": "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
    "synccheck": "ERROR SUMMARY: 0 errors",
}
TOOLS = tuple(_CLEAN)
# What is found, a line each, before where it was called from.
_FINDING = re.compile(r"^=+ ((?:Error|Warning): .*|    and .* access at .*)$", re.MULTILINE)
_TOLD = 8


def find_sanitizer() -> str | None:
    """Its path: on ``PATH``, or of the toolkit at ``CUDA_HOME``; None if it is not installed."""
    homes = (os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH"))
    folders = [Path(home) / "bin" for home in (*homes, "/usr/local/cuda") if home]
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, folders)])
    return shutil.which("compute-sanitizer", path=path)


def complaint(tool: str, output: str) -> str | None:
    """None if a tool's run was clean, otherwise how it sums up, and the first of what it found; a
    run without a summary is none.

    Args:
        tool: one of :data:`TOOLS`.
        output: what it printed.
    """
    summaries = _SUMMARY.findall(output)
    if summaries == [_CLEAN[tool]]:
        return None
    summed_up = "; ".join(summaries) or "no summary: the tool did not finish"
    return "\n".join([summed_up, *dict.fromkeys(_FINDING.findall(output)[:_TOLD])])
