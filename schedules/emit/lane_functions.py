"""The device functions of kernels that run rows on lanes of warps: the text of ``lanes/*.cuh``."""

from pathlib import Path

# In the order that they need one another.
_FILES = (
    "copies",
    "numbers",
    "passing",
    "teams",
    "runs",
    "collecting",
    "unprepared",
    "lists",
    "sorting",
    "preparing",
)
_FOLDER = Path(__file__).parent / "lanes"
_TEXT = "\n".join((_FOLDER / f"{name}.cuh").read_text() for name in _FILES)
# What generated text calls LANE_FUNCTIONS. TVM repeats it before every function that needs it:
# hence the guard.
LANE_FUNCTIONS = f"#ifndef PDSSM_LANES\n#define PDSSM_LANES\n\n{_TEXT}\n#endif\n"
