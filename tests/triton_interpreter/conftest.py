"""Triton's interpreter for every kernel of these tests.

Run this folder in a process of its own: ``pytest tests/triton_interpreter``. Triton decides when a
function is decorated, and its own library when it is imported, whether to interpret.
"""

import os
import sys

if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError(
        "triton was imported before its interpreter was chosen: run tests/triton_interpreter in a "
        "process of its own, or set TRITON_INTERPRET=1"
    )
os.environ["TRITON_INTERPRET"] = "1"
