"""``python -m benchmarks.gpu``: the Triton kernels against the memory roof of this GPU.

The roof is a large copy in the same run; a floor is the fewest bytes a scan can move (each input
once, each output once; selections and dictionaries are not counted).
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import pdssm_compiler
from benchmarks.problems import SUITE, Shape, random_problem
from benchmarks.provenance import provenance, store
from benchmarks.timing import device_times
from benchmarks.torch_loop import torch_loop
from pdssm_compiler.runtime.plan import Plan

# Bytes an element: diagonal, drive in and states out; diagonal, states, gradient in and two out.
_BYTES = {"forward": 24, "backward": 40}


def copy_roof(gib: float = 2.0) -> float:
    """Bytes a second of a large device copy, reads and writes together."""
    source = torch.empty(int(gib * 2**30), dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    times = device_times(lambda: target.copy_(source), runs=20)
    return 2 * source.numel() / (times["ms"] / 1e3)


def measure(shape: Shape, roof: float, permutation: bool, runs: int) -> list[dict]:
    """Forward and backward of one shape."""
    problem = random_problem(shape, torch.device("cuda"), permutation=permutation)
    map_class = "permutation" if permutation else "general"
    inputs = [problem.diagonal, problem.drive]

    def forward() -> torch.Tensor:
        return pdssm_compiler.pd_scan(*inputs, **problem.maps, map_class=map_class)[0]

    with plans_run() as ran:
        forward()
    rows = [_row(shape, map_class, ran, device_times(forward, runs), roof)]
    leaves = [tensor.requires_grad_() for tensor in inputs]
    states = forward()
    grad = torch.randn_like(states)

    def backward() -> None:
        torch.autograd.grad(states, leaves, grad, retain_graph=True)

    with plans_run() as ran:
        backward()
    rows.append(_row(shape, map_class, ran, device_times(backward, runs), roof))
    pdssm_compiler.check()
    return rows


@contextmanager
def plans_run() -> Iterator[list[Plan]]:
    """The plans that calls inside run, in order; plans are kept for all calls of a program, so
    the last one made may be another's.
    """
    ran: list[Plan] = []
    run = Plan.run

    def recorded(plan: Plan, *arguments: Any, **options: Any) -> list[torch.Tensor]:
        ran.append(plan)
        return run(plan, *arguments, **options)

    Plan.run = recorded  # type: ignore[method-assign]
    try:
        yield ran
    finally:
        Plan.run = run  # type: ignore[method-assign]


def _row(shape: Shape, map_class: str, ran: list[Plan], times: dict, roof: float) -> dict:
    # The call's own plan runs first, and runs its helpers (an inverted dictionary) inside.
    plan, *helpers = ran
    direction = plan.program.direction
    moved = _BYTES[direction] * shape.elements
    rate = moved / (times["ms"] / 1e3)
    return {
        "shape": shape.name,
        "maps": map_class,
        "direction": direction,
        **times,
        "floor_ms": moved / roof * 1e3,
        "gb_per_s": rate / 1e9,
        "of_roof": rate / roof,
        "program": plan.program.fingerprint,
        "config": plan.built.source.config,
        "resources": plan.built.kernel.resources(),
        "helpers": len(helpers),
    }


def loop_row(shape: Shape, tokens: int) -> dict:
    """The plain torch loop on the first tokens of a shape, scaled to all."""
    problem = random_problem(shape, torch.device("cuda"))
    maps = problem.dictionary.long()[
        torch.arange(shape.heads, device="cuda"), problem.selection[:, :tokens].long()
    ]
    slices = (problem.diagonal[:, :tokens], problem.drive[:, :tokens], maps)
    times = device_times(lambda: torch_loop(*slices), runs=5, warmup=2)
    return {"shape": shape.name, "tokens": tokens, "ms": times["ms"] * shape.length / tokens}


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--out", type=Path, default=None, help="folder for the JSON")
    parser.add_argument("--commit", default=None, help="where the checkout has no history")
    arguments = parser.parse_args()
    roof = copy_roof()
    rows = [
        row
        for shape in SUITE
        for permutation in (True, False)
        for row in measure(shape, roof, permutation, arguments.runs)
    ]
    loops = [loop_row(shape, 128) for shape in SUITE]
    record = provenance(torch.device("cuda"), arguments.commit) | {
        "roof_gb_per_s": roof / 1e9,
        "rows": rows,
        "torch_loop_forward": loops,
    }
    title = f"{record['device']}, copy roof {roof / 1e9:.0f} GB/s"
    table = Table(
        "shape", "maps", "direction", "ms", "least–most", "floor", "of roof", "regs", title=title
    )
    for row in rows:
        table.add_row(
            row["shape"],
            row["maps"],
            row["direction"],
            f"{row['ms']:.3f}",
            f"{row['least_ms']:.3f}–{row['most_ms']:.3f}",
            f"{row['floor_ms']:.3f}",
            f"{row['of_roof']:.0%}",
            str(row["resources"].get("registers", "")),
        )
    console = Console(width=110)
    console.print(table)
    for loop in loops:
        console.print(f"torch loop, {loop['shape']} forward: {loop['ms']:.0f} ms (scaled)")
    name = record["device"].lower().replace(" ", "-")
    console.print(f"stored: {store(name, record, arguments.out)}", markup=False)


if __name__ == "__main__":
    main()
