"""``python -m benchmarks.cpu``: the CPU kernels against the plain torch loop, in one run.

Also the host's own costs: what a warm call adds to its kernel, and what the import adds to
torch's.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import pdssm_compiler
from benchmarks.problems import Shape, random_problem
from benchmarks.provenance import provenance, store
from benchmarks.timing import host_times
from benchmarks.torch_loop import torch_loop
from pdssm_compiler.runtime.binding import bind
from pdssm_compiler.runtime.faults import host_word
from pdssm_compiler.runtime.plan import plans

SHAPES = (Shape("N32", 4, 2048, 8, 32, 32), Shape("N128", 4, 2048, 8, 128, 8))
TARGETS = {("N32", "forward"): 30, ("N128", "forward"): 15} | {
    ("N32", "backward"): 20,
    ("N128", "backward"): 8,
}


# Bytes an element must move: diagonal and drive in, states out; diagonal, states and gradient in,
# two gradients out.
_BYTES = {"forward": 24, "backward": 40}


def copy_roof(runs: int = 15) -> float:
    """Bytes a second of a large copy by torch, reads and writes together."""
    source = torch.randn(1 << 24)
    target = torch.empty_like(source)
    times = host_times(lambda: target.copy_(source), runs)
    return 2 * source.nbytes / (times["ms"] / 1e3)


def measure(shape: Shape, runs: int, loop_runs: int) -> list[dict]:
    """Forward and backward of one shape, ours and the loop's, interleaved by direction."""
    device = torch.device("cpu")
    problem = random_problem(shape, device)
    maps = problem.dictionary.long()[torch.arange(shape.heads), problem.selection.long()]
    inputs = [problem.diagonal, problem.drive]
    ours = host_times(lambda: pdssm_compiler.pd_scan(*inputs, **problem.maps), runs)
    loop = host_times(lambda: torch_loop(*inputs, maps), loop_runs, warmup=1)
    rows = [{"shape": shape.name, "direction": "forward", "scan": ours, "loop": loop}]
    grad = torch.randn_like(problem.drive)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    states, _ = pdssm_compiler.pd_scan(*leaves, **problem.maps)
    ours = host_times(lambda: torch.autograd.grad(states, leaves, grad, retain_graph=True), runs)
    looped = torch_loop(*leaves, maps)
    error = ((states - looped).abs().max() / looped.abs().max()).detach()
    loop = host_times(
        lambda: torch.autograd.grad(looped, leaves, grad, retain_graph=True), loop_runs, warmup=1
    )
    rows.append({"shape": shape.name, "direction": "backward", "scan": ours, "loop": loop})
    for row in rows:
        row["ratio"] = row["loop"]["ms"] / row["scan"]["ms"]
        row["target_ratio"] = TARGETS[row["shape"], row["direction"]]
        row["largest_error"] = float(error)
        row["gb_per_s"] = _BYTES[row["direction"]] * shape.elements / row["scan"]["ms"] / 1e6
    return rows


def call_overhead(calls: int = 2000, blocks: int = 15) -> dict[str, float]:
    """What a warm ``pd_scan`` costs over its kernel, in microseconds: medians over blocks of
    calls, the two timed in turn.
    """
    shape = Shape("tiny", 2, 4, 2, 8, 4)
    problem = random_problem(shape, torch.device("cpu"))

    def whole() -> None:
        pdssm_compiler.pd_scan(problem.diagonal, problem.drive, **problem.maps)

    whole()
    plan = plans()[-1]
    tensors = [problem.diagonal, problem.dictionary, problem.drive, problem.selection]
    bound, sizes = bind(plan._slots, tensors)
    out = torch.view_as_real(torch.empty_like(problem.drive))
    launch = plan.kernels.of(sizes).kernel.launch

    def kernel() -> None:
        launch([*bound, out], host_word.tensor, sizes)

    def block(function) -> float:  # type: ignore[no-untyped-def]
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


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--loop-runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None, help="folder for the JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    roof = copy_roof()
    rows = [row for s in SHAPES for row in measure(s, arguments.runs, arguments.loop_runs)]
    overhead, imported = call_overhead(), import_seconds()
    record = provenance(torch.device("cpu")) | {
        "copy_roof_gb_per_s": roof / 1e9,
        "rows": rows,
        "call": overhead | {"target_overhead_us": 25},
        "import": imported | {"target_s": 0.3},
    }
    columns = ("shape", "direction", "scan ms", "least–most", "loop ms", "ratio", "target", "GB/s")
    table = Table(*columns, title=f"copy roof {roof / 1e9:.1f} GB/s")
    for row in rows:
        scan = row["scan"]
        table.add_row(
            row["shape"],
            row["direction"],
            f"{scan['ms']:.2f}",
            f"{scan['least_ms']:.2f}–{scan['most_ms']:.2f}",
            f"{row['loop']['ms']:.0f}",
            f"{row['ratio']:.0f}×",
            f"≥ {row['target_ratio']}×",
            f"{row['gb_per_s']:.1f}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"a warm call adds {overhead['overhead_us']:.1f} µs to its kernel "
        f"({overhead['call_us']:.1f} against {overhead['kernel_us']:.1f}; target 25); the import "
        f"adds {imported['median_s']:.3f} s to torch's (target 0.3)"
    )
    console.print(f"stored: {store('cpu', record, arguments.out)}", markup=False)


if __name__ == "__main__":
    main()
