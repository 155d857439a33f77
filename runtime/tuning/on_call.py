"""Tuning by a call itself: only where the user asked for it, by ``PDSSM_TUNE``.

Then the first call of a program in a bucket of sizes that no log speaks for is tuned before it
runs, for its own sizes. Never while a CUDA graph is captured; and shapes alone (fake kernels,
tracing) never come here.
"""

import threading

import torch

from pdssm_compiler.ir.passes import specialise
from pdssm_compiler.ir.program import Program
from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.devices import target_of
from pdssm_compiler.runtime.tuning.resolve import tuned
from pdssm_compiler.schedules.templates.base import Problem

# One race at a time: two would disturb each other.
_lock = threading.Lock()


def tune_if_asked(program: Program, device: torch.device, sizes: Sizes) -> None:
    """Tune a program for the sizes of a call, if that was asked for and no log speaks for them.

    Args:
        program: as calls have it.
        device: where.
        sizes: of the call.

    Raises:
        SettingError: ``PDSSM_TUNE`` has a value that means nothing.
    """
    effort = settings.tune_effort()
    if effort == "none" or 0 in sizes or _is_capturing(device):
        return
    # What tunes calls plans as well.
    from pdssm_compiler.runtime.tuning.problem import TuningProblem
    from pdssm_compiler.runtime.tuning.tuner import tune_problems

    lowered, target = specialise(program), target_of(device)
    bucket = Problem.bucket(sizes.batch * sizes.heads, sizes.length)
    with _lock:
        if next(tuned(lowered, target, bucket), None) is None:
            label = f"{program.text.splitlines()[0]}, by a call"
            problem = TuningProblem(program.text, label, program.direction, sizes, str(device))
            tune_problems([problem], effort)


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
