"""What a rank does in the tests of several: ``torchrun … -m tests.runtime.tuning.ranks ACTS
DEVICE FOLDER`` runs acts one after the other, and leaves what it saw of each in the folder.

On a CPU nothing is timed: the fastest candidate is another for each rank, so ranks that tuned each
by itself would differ for certain. On GPUs everything is real.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pdssm_compiler import ScanSpec, pd_scan, tune
from pdssm_compiler.runtime import plan, settings
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.tuning import effort, resolve, tuner
from pdssm_compiler.runtime.tuning.effort import Effort
from pdssm_compiler.runtime.tuning.isolated import Isolated
from pdssm_compiler.runtime.tuning.log import read_log, user_logs
from pdssm_compiler.runtime.tuning.measure import Measured, Request, measure
from pdssm_compiler.schedules.registry import TEMPLATES
from pdssm_compiler.schedules.templates.cpu_rows import CpuRows, CpuRowsConfig
from tests.runtime.tuning.launch import leave

RANK = int(os.environ["RANK"])
FEW = Effort(3, 3, 0.01, 1e9, 1)
# What a candidate takes to be measured where nothing is.
PAUSE = 0.05
# For whatever takes longer, something hangs.
PATIENCE = 60.0
DEVICE, FOLDER = torch.device("cpu"), Path()

# What this rank has measured: tokens, where, from when, until when.
measured: list[tuple[int, str, float, float]] = []


class Watched(Isolated):
    """Notes what is measured, and on a CPU says what it took."""

    def ask(self, function: Callable[..., Any], argument: Any, seconds: float) -> Any:
        if function is not measure:
            return super().ask(function, argument, seconds)
        start = time.monotonic()
        found = super().ask(function, argument, seconds) if DEVICE.type == "cuda" else at(argument)
        problem = argument.problem
        measured.append((problem.sizes.length, problem.device, start, time.monotonic()))
        return found


def at(request: Request) -> Measured:
    """Each rank has a favourite, by far."""
    time.sleep(PAUSE)
    favourite = f'"max_heads": {RANK + 1},' in request.config
    return Measured(None, 1.0 if favourite else 2.0, 0.0)


def begin(name: str, calls_tune: bool) -> None:
    """A cache folder that nothing was read from yet."""
    os.environ[settings.CACHE_DIR] = str(FOLDER / name)
    os.environ[settings.TUNE] = "quick" if calls_tune else "none"
    plan._plans.clear()
    resolve.forget()
    measured.clear()


def meet() -> None:
    """Wait for the other rank."""
    one = torch.ones(1, device=DEVICE)
    dist.all_reduce(one)
    assert one.item() == dist.get_world_size()


def call(*lengths: int) -> dict[str, Any]:
    """Scan; gives what each length took, why, and what came out, bit by bit."""
    found = {}
    for length in lengths:
        random = torch.Generator().manual_seed(length)
        diagonal = torch.polar(*torch.rand(2, 2, length, 3, 6, generator=random)).to(DEVICE)
        states, _ = pd_scan(diagonal, diagonal)
        (made,) = plan.plans()
        schedule = made.kernels.of(Sizes(2, length, 3)).schedule
        found[str(length)] = {
            "config": f"{schedule.template.name} {asdict(schedule.config)}",
            "reason": schedule.reason,
            "bits": hashlib.sha256(states.cpu().numpy().tobytes()).hexdigest(),
        }
    return found


def seen(**more: Any) -> dict[str, Any]:
    return {"measured": list(measured), **more}


def orders() -> dict[str, Any]:
    """A folder for both: each has an order of its own, and calls that the other never makes."""
    begin("orders", True)
    meet()
    lengths = (100, 300, 1000, 100) if RANK == 0 else (1000, 200, 100)
    took = call(*lengths)
    mine = seen()
    # The other's lengths, which are in the log.
    meet()
    took |= call(300 if RANK == 1 else 200)
    again = call(*lengths)
    assert again.items() <= took.items()
    assert mine == seen()
    return seen(took=took)


def apart() -> dict[str, Any]:
    """A folder for each."""
    begin(f"apart-{RANK}", True)
    meet()
    return seen(took=call(100, 1000))


def warm_and_cold() -> dict[str, Any]:
    """The log is there for one, and the other has a folder of its own."""
    if RANK == 0:
        shutil.copytree(FOLDER / "apart-0", FOLDER / "warm-0")
    begin(f"warm-{RANK}", True)
    took = call(1000, 100)
    meet()
    return seen(took=took)


def by_hand() -> dict[str, Any]:
    """Both call ``tune``, at once and again one after the other."""
    begin("by-hand", False)
    first = _tuned()
    again = _tuned()
    assert not any(result["measured"] for result in again)
    assert [r["rows"] for r in again] == [r["rows"] for r in first]
    meet()
    return seen(results=first, took=call(100))


def budget() -> dict[str, Any]:
    """The same, and the time is not enough."""
    global PAUSE
    begin("budget", False)
    PAUSE = 0.4
    meet()
    return seen(results=_tuned(budget=1.5 * PAUSE, directions=("forward",)))


def _tuned(**options: Any) -> list[dict[str, Any]]:
    found = tune(
        ScanSpec(6, map_source="none"),
        batch=2, length=100, heads=3, effort=FEW, device=DEVICE.type, **options,
    )  # fmt: skip
    return [
        {"rows": [row.line() for row in r.rows], "complete": r.complete, "measured": r.measured}
        for r in found
    ]


def killed() -> dict[str, Any]:
    """The first to tune is killed when it has measured one candidate; torchrun then ends the other
    one, who does not listen.
    """
    begin("killed", True)
    if RANK == 0:
        global at

        def last(request: Request, real: Callable[[Request], Measured] = at) -> Measured:
            if measured:
                time.sleep(20 * PAUSE)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(request)

        at = last
    else:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end = time.monotonic() + PATIENCE
        while not any(read_log(path)[0] for path in user_logs().rglob("*.jsonl")):
            assert time.monotonic() < end
            time.sleep(PAUSE / 10)
    return seen(took=call(100))


ACTS = (orders, apart, warm_and_cold, by_hand, budget, killed)


def main() -> None:
    """Play the acts that are asked for."""
    global DEVICE, FOLDER
    acts, kind, folder = sys.argv[1:]
    FOLDER = Path(folder)
    tuner.Isolated = Watched  # type: ignore[misc]
    if kind == "cuda":
        DEVICE = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(DEVICE)
    else:
        # Three candidates, in this process.
        os.environ[settings.CACHE_ENABLED] = "0"
        del TEMPLATES["torch-chunks"], TEMPLATES["torch-tokens"]
        CpuRows.space = lambda *_: iter(map(CpuRowsConfig, (1, 2)))  # type: ignore[method-assign]
    effort.EFFORTS["quick"] = FEW
    together = acts != "killed"
    if together:
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    for act in ACTS:
        if act.__name__ in acts.split(","):
            (FOLDER / f"{act.__name__}-{RANK}.json").write_text(json.dumps(act()))
    if together:
        leave()


if __name__ == "__main__":
    main()
