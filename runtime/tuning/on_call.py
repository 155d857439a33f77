"""Tuning by a call itself: only where the user asked for it, by ``PDSSM_TUNE``.

Then the first call of a program in a bucket of sizes that no log speaks for is tuned before it
runs, for its own sizes. Never while a CUDA graph is captured; and shapes alone (fake kernels,
tracing) never come here.

Of several processes that share a folder of logs, one tunes, and the others wait
(:mod:`pdssm_compiler.runtime.tuning.turns`). What a process has chosen for other sizes stays: it
must not depend on which of them has tuned.
"""

import sys
import threading
import warnings
from typing import TYPE_CHECKING

import torch

from pdssm_compiler.ir.program import Program
from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.errors import ArgumentError, TuningTimeoutError, TuningWarning
from pdssm_compiler.runtime.tuning.resolve import forget, tuned

if TYPE_CHECKING:
    from pdssm_compiler.runtime.tuning.problem import TuningProblem

_TAKES = {"quick": "about a minute", "full": "some minutes"}
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
    from pdssm_compiler.runtime.tuning.tuner import log_of, tune_problems

    label = f"{program.text.splitlines()[0]}, by a call"
    problem = TuningProblem(program.text, label, program.direction, sizes, str(device))

    def is_unknown(problem: TuningProblem) -> bool:
        # Another process may have added to it.
        forget(log_of(problem))
        speak = tuned(problem.program, problem.target, problem.bucket)
        # What was only predicted is better measured.
        return all(each.predicted for each in speak)

    with _lock:
        try:
            if is_unknown(problem):
                _tell(problem, effort)
            tune_problems([problem], effort, wanted=is_unknown, keep_choices=True)
        except ArgumentError as error:
            # A log that cannot be written may say all that is needed.
            if is_unknown(problem):
                warnings.warn(
                    f"{settings.TUNE}={effort} tunes nothing: {error}; calls of {problem} take "
                    f"the heuristic's choice",
                    TuningWarning,
                    stacklevel=2,
                )
        except TuningTimeoutError as error:
            warnings.warn(
                f"{error}; calls of {problem} take what the logs say by now, and other processes "
                f"may take something else",
                TuningWarning,
                stacklevel=2,
            )


def _tell(problem: "TuningProblem", effort: str) -> None:
    """Say why a call takes minutes."""
    batch, length, heads = problem.sizes
    print(
        f"pdssm-compiler: tuning {problem.label.partition(',')[0]}, B={batch} T={length} "
        f"H={heads}, before its first call ({settings.TUNE}={effort}); this takes "
        f"{_TAKES[effort]}",
        file=sys.stderr,
        flush=True,
    )


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
