"""What processes do that tune at once, in the tests that put their logs under fire.

Nothing is compiled or timed: the fastest candidate is always the same, and a measurement takes
milliseconds.
"""

import json
import os
import random
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.compile_service import choose
from pdssm_compiler.runtime.errors import ArgumentError, TuningWarning
from pdssm_compiler.runtime.tuning import tuner, turns
from pdssm_compiler.runtime.tuning.effort import Effort
from pdssm_compiler.runtime.tuning.isolated import Isolated
from pdssm_compiler.runtime.tuning.measure import Measured, Request
from pdssm_compiler.runtime.tuning.problem import TuningProblem
from pdssm_compiler.schedules.registry import TEMPLATES
from pdssm_compiler.schedules.templates.cpu_rows import CpuRows, CpuRowsConfig

# For whatever takes longer, something hangs.
PATIENCE = 100.0
GOOD = 0

PROGRAM = pd_scan(PdScan(6, 3))
# A bucket each.
LENGTHS = (100, 1000)
CANDIDATES = (1, 2, 3, 4, 5)
BEST = CpuRowsConfig(3)
WHOLE = Effort(100, 3, 0.01, 1e9, 9)
_PAUSE = 0.002


def problem(length: int) -> TuningProblem:
    return TuningProblem(PROGRAM.text, "under fire", "forward", Sizes(2, length, 3))


class Quick(Isolated):
    """Says what a candidate takes, and counts."""

    asked = 0

    def ask(self, function: Callable[..., Any], argument: Any, seconds: float) -> Any:
        assert isinstance(argument, Request)
        Quick.asked += 1
        time.sleep(_PAUSE)
        best = f'"max_heads": {BEST.max_heads},' in argument.config
        return Measured(None, 1.0 if best else 2.0, 0.0)


def _prepare(root: Path) -> None:
    # The threads of torch's pool are not there in a forked process.
    torch.set_num_threads(1)
    os.environ[settings.CACHE_DIR] = str(root)
    os.environ[settings.CACHE_ENABLED] = "0"
    os.environ.pop(settings.TUNE, None)
    turns._machine_folder = lambda: root / "machine"
    for name in ("torch-chunks", "torch-tokens"):
        TEMPLATES.pop(name, None)
    CpuRows.space = lambda *_: map(CpuRowsConfig, CANDIDATES)  # type: ignore[method-assign]
    CpuRows.heuristic = lambda *_: CpuRowsConfig(1)  # type: ignore[method-assign]
    tuner.Isolated = Quick  # type: ignore[misc]


def tune_all(root: Path, seed: int, told: Path) -> None:
    """Tune every length, in an order of one's own; writes down what was found and measured."""
    _prepare(root)
    order = list(LENGTHS)
    random.Random(seed).shuffle(order)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = tuner.tune_problems([problem(length) for length in order], WHOLE)
        taken = {n: str(_choice(n)) for n in LENGTHS}
    told.write_text(
        json.dumps({
            "rows": {r.problem.sizes.length: [row.line() for row in r.rows] for r in found},
            "complete": all(r.complete for r in found),
            "asked": Quick.asked,
            "taken": taken,
            "said": [str(each.message) for each in said],
        })
    )  # fmt: skip
    os._exit(GOOD)


def _choice(length: int) -> Any:
    tuned = problem(length)
    return choose(tuned.program, tuned.target, None, tuned.bucket).config


def tune_forever(root: Path, seed: int) -> None:
    """Tune until killed; ends by itself only if something is wrong."""
    _prepare(root)
    chance = random.Random(seed)
    try:
        while True:
            length = chance.choice(LENGTHS) + chance.randrange(3)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                tuner.tune_problems([problem(length)], WHOLE)
                assert _choice(length).max_heads >= 1
            assert all(issubclass(each.category, TuningWarning) for each in said), said
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def spoil_forever(root: Path, seed: int) -> None:
    """Cut logs off, flip bits of them, and remove them, until killed."""
    chance = random.Random(seed)
    while True:
        time.sleep(chance.uniform(0.0, 0.1))
        for path in list(root.glob("autotune_logs/*/*.jsonl")):
            try:
                size = path.stat().st_size
                match chance.randrange(6):
                    case 0:
                        path.unlink()
                    case 1 | 2:
                        os.truncate(path, chance.randrange(size + 1))
                    case _:
                        with path.open("r+b") as file:
                            file.seek(chance.randrange(size))
                            byte = file.read(1)
                            file.seek(-1, 1)
                            file.write(bytes([byte[0] ^ 1 << chance.randrange(8)]))
            except (OSError, ValueError, IndexError):
                continue


def tune_in_little_room(root: Path, most_bytes: int) -> None:
    """Tune where no file may be longer than so many bytes, which a log is in the end."""
    import resource

    _prepare(root)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    try:
        tuner.tune_problems([problem(LENGTHS[0])], WHOLE)
    except ArgumentError as error:
        told = str(error)
        right = "cannot be written: [Errno 27]" in told and f"set {settings.CACHE_DIR} to" in told
        os._exit(GOOD if right else 2)
    os._exit(1)
