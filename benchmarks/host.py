"""The host's own costs: what a warm call adds to its kernel, the import to torch's, and when a new
process has its first result.
"""

import statistics
import subprocess
import sys
from collections.abc import Callable

import torch

import pdssm_compiler
from benchmarks.problems import MAP_CLASSES, random_problem
from pdssm_compiler.arguments import read_call
from pdssm_compiler.runtime.plan import ALIGNED, plan_for
from pdssm_compiler.runtime.tuning.timing import host_times
from pdssm_compiler.suite import Shape

# So small that the work is little, of sizes for which a common template is taken.
_ON_CPU = Shape("tiny", 2, 4, 2, 8, 4)
_ON_GPU = Shape("tiny", 2, 64, 4, 32, 8)


def call_overhead(
    device: torch.device, maps: str = "random", calls: int = 0, blocks: int = 0
) -> dict[str, float]:
    """What a warm ``pd_scan`` takes of the host and what its kernel's launch alone does (on a CPU,
    the kernel), in microseconds: medians over blocks of calls, the two timed in turn.

    Args:
        device: where the scan runs.
        maps: see :func:`~benchmarks.problems.random_problem`.
        calls: of a block; 0 for as many as suit the device.
        blocks: how many; 0 for as many as suit the device.
    """
    shape = _ON_GPU if device.type == "cuda" else _ON_CPU
    problem = random_problem(shape, device, maps=maps)
    request = read_call(
        problem.diagonal,
        problem.drive,
        problem.dictionary,
        problem.selection,
        None,
        MAP_CLASSES[maps],
        "column",
        None,
        False,
    )

    def whole() -> None:
        pdssm_compiler.pd_scan(
            problem.diagonal, problem.drive, **problem.maps, map_class=MAP_CLASSES[maps]
        )

    whole()
    plan = plan_for(request.text, device, ALIGNED if device.type == "cuda" else 0)
    launch = plan.launcher(request.tensors)

    def block(function: Callable[[], None]) -> float:
        _wait(device)
        times = host_times(lambda: [function() for _ in range(count)], 1, warmup=0)
        _wait(device)
        return times["ms"] * 1e3 / count

    # Few enough for a GPU's queue, which would hold up the host; and more of them, because a host
    # that has waited for processes takes half a second to be as fast as it is.
    count, blocks = calls or 2000, blocks or 15
    if device.type == "cuda":
        count, blocks = calls or 256, blocks or 100
    pairs = [(block(whole), block(launch)) for _ in range(blocks)]
    return {
        "call_us": statistics.median(pair[0] for pair in pairs),
        "kernel_us": statistics.median(pair[1] for pair in pairs),
        "overhead_us": statistics.median(pair[0] - pair[1] for pair in pairs),
        "least_overhead_us": min(pair[0] - pair[1] for pair in pairs),
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def import_seconds(runs: int = 5) -> dict[str, float]:
    """What importing the package adds to importing torch, in seconds: a fresh process each."""
    code = (
        "import time, torch; start = time.perf_counter(); import pdssm_compiler; "
        "print(time.perf_counter() - start)"
    )
    return _of_processes(code, runs)


def first_result_seconds(device: torch.device, runs: int = 5) -> dict[str, float]:
    """From the import of the package to the first result of a scan, in seconds: a fresh process
    each, that has imported torch and used the device before, with kernels that an earlier one has
    left in the cache.
    """
    code = FIRST_RESULT.format(device=device)
    _of_processes(code, 1)
    return _of_processes(code, runs)


FIRST_RESULT = """
import time, torch
device = torch.device("{device}")
diagonal = torch.full((2, 64, 4, 32), 0.5 + 0.5j, device=device)
drive = torch.ones_like(diagonal)
dictionary = torch.zeros(4, 8, 32, dtype=torch.int32, device=device)
selection = torch.zeros(2, 64, 4, dtype=torch.int32, device=device)
drive.abs().sum().item()
start = time.perf_counter()
import pdssm_compiler
states, _ = pdssm_compiler.pd_scan(diagonal, drive, dictionary=dictionary, selection=selection)
states[0, -1, 0, 0].item()
print(time.perf_counter() - start)
"""


def _of_processes(code: str, runs: int) -> dict[str, float]:
    """The seconds that a program prints, over some runs of it."""
    seconds = []
    for _ in range(runs):
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        seconds.append(float(result.stdout))
    return {"median_s": statistics.median(seconds), "most_s": max(seconds)}
