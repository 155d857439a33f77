"""The host's own costs: what a warm call adds to its kernel, the import to torch's."""

import statistics
import subprocess
import sys
from collections.abc import Callable

import torch

import pdssm_compiler
from benchmarks.problems import random_problem
from pdssm_compiler.arguments import read_call
from pdssm_compiler.runtime.binding import bind
from pdssm_compiler.runtime.faults import host_word
from pdssm_compiler.runtime.plan import plan_for
from pdssm_compiler.runtime.tuning.timing import host_times
from pdssm_compiler.suite import Shape


def call_overhead(calls: int = 2000, blocks: int = 15) -> dict[str, float]:
    """What a warm ``pd_scan`` costs over its kernel on the CPU, in microseconds: medians over
    blocks of calls, the two timed in turn.
    """
    shape = Shape("tiny", 2, 4, 2, 8, 4)
    problem = random_problem(shape, torch.device("cpu"))
    request = read_call(
        problem.diagonal,
        problem.drive,
        problem.dictionary,
        problem.selection,
        None,
        "general",
        "column",
        None,
        False,
    )

    def whole() -> None:
        pdssm_compiler.pd_scan(problem.diagonal, problem.drive, **problem.maps)

    whole()
    plan = plan_for(request.text, torch.device("cpu"), 0)
    bound, sizes = bind(plan._slots, request.tensors)
    out = torch.view_as_real(torch.empty_like(problem.drive))
    launch = plan.kernels.of(sizes).kernel.launch

    def kernel() -> None:
        launch([*bound, out], host_word.tensor, sizes)

    def block(function: Callable[[], None]) -> float:
        times = host_times(lambda: [function() for _ in range(calls)], 1, warmup=0)
        return times["ms"] * 1e3 / calls

    pairs = [(block(whole), block(kernel)) for _ in range(blocks)]
    return {
        "call_us": statistics.median(pair[0] for pair in pairs),
        "kernel_us": statistics.median(pair[1] for pair in pairs),
        "overhead_us": statistics.median(pair[0] - pair[1] for pair in pairs),
        "least_overhead_us": min(pair[0] - pair[1] for pair in pairs),
    }


def import_seconds(runs: int = 5) -> dict[str, float]:
    """What importing the package adds to importing torch, in seconds: a fresh process each."""
    code = (
        "import time, torch; start = time.perf_counter(); import pdssm_compiler; "
        "print(time.perf_counter() - start)"
    )
    seconds = []
    for _ in range(runs):
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        seconds.append(float(result.stdout))
    return {"median_s": statistics.median(seconds), "most_s": max(seconds)}
