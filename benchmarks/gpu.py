"""``python -m benchmarks.gpu``: every GPU kernel against the memory roof of this GPU.

The roof is a large copy in the same run; a floor is the fewest bytes a scan can move (each input
once, each output once; selections and dictionaries are not counted). "Backward, active" is the
backward of ``flash_pd_scan``: besides the gradients of diagonal and drive it writes a score for
each token and row (4 bytes, ``4/N`` an element) and adds to a sum for each entry of the dictionary
in each sequence (``4·K·N`` bytes a row; 4 bytes an element are added there, in the second-level
cache). Neither is in its floor. Every template that can run a shape is timed; a star marks the one
that a plain call takes.
"""

import argparse
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import pdssm_compiler
from benchmarks.problems import STEP, SUITE, Shape, random_problem
from benchmarks.provenance import provenance, store
from benchmarks.timing import device_times, graph_times
from benchmarks.torch_loop import torch_loop
from pdssm_compiler.arguments import read_call
from pdssm_compiler.ir.passes import specialise
from pdssm_compiler.ir.program import Input
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.compile_service import BuiltKernel, config_text
from pdssm_compiler.runtime.devices import target_of
from pdssm_compiler.runtime.ops import adjoint_of
from pdssm_compiler.runtime.plan import caller_inputs, plan_for, program_of, run
from pdssm_compiler.schedules.registry import candidates
from pdssm_compiler.schedules.templates.base import Problem

# Bytes an element: diagonal, drive in and states out; diagonal, states, gradient in and two out.
_BYTES = {"forward": 24, "backward": 40, "backward, active": 40}
# The inputs whose gradients a backward gives.
_GRADIENTS = {
    "backward": ("diagonal", "drive"),
    "backward, active": ("diagonal", "dictionary", "drive", "selection"),
}


def copy_roof(gib: float = 2.0) -> float:
    """Bytes a second of a large device copy, reads and writes together."""
    source = torch.empty(int(gib * 2**30), dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    times = device_times(lambda: target.copy_(source), runs=20)
    return 2 * source.numel() / (times["ms"] / 1e3)


def measure(shape: Shape, roof: float, permutation: bool, runs: int, most: int) -> list[dict]:
    """Forward and backwards of one shape, by the first ``most`` templates that can run it. A step,
    of one token, starts from a state, gives the next, and has no backward.
    """
    is_step = shape.length == 1
    before = torch.randn_like(shape_state(shape)) if is_step else None
    problem = random_problem(shape, torch.device("cuda"), permutation=permutation)
    map_class = "permutation" if permutation else "general"
    request = read_call(
        problem.diagonal,
        problem.drive,
        problem.dictionary,
        problem.selection,
        None,
        map_class,
        "column",
        before,
        is_step,
    )
    states = run(request.text, request.tensors)[0]
    reads = {i.name: t for i, t in zip(_inputs(request.text), request.tensors, strict=True)}
    reads |= {"grad_states": torch.randn_like(states)}
    calls = {"forward": (request.text, request.tensors)}
    for direction, names in _GRADIENTS.items() if not is_step else ():
        derived = adjoint_of(request.text, names, ("states",))
        reads |= dict.fromkeys(derived.saved, states)
        text = derived.program.text
        calls[direction] = text, [reads[input_.name] for input_ in _inputs(text)]
    rows = []
    for direction, (text, tensors) in calls.items():
        chosen = _built(text, tensors, "").schedule.config
        for config in configs(text, tensors[0].device, shape)[:most]:
            row = {"shape": shape.name, "maps": map_class, "direction": direction}
            row |= {"config": asdict(config), "chosen": config == chosen}
            try:
                rows.append(row | _timed(shape, direction, text, tensors, config, roof, runs))
            except RuntimeError as error:
                # A kernel that fails is a result, not the end of the others.
                rows.append(row | {"error": str(error)})
    pdssm_compiler.check()
    return rows


def shape_state(shape: Shape) -> torch.Tensor:
    """A state of every row."""
    sizes = (shape.batch, shape.heads, shape.state_size)
    return torch.empty(sizes, dtype=torch.complex64, device="cuda")


def _timed(
    shape: Shape,
    direction: str,
    text: str,
    tensors: list[torch.Tensor],
    config: Any,
    roof: float,
    runs: int,
) -> dict:
    """Times of one kernel: of its work on the device, and of eager calls, which the host may
    hold up. Promises were verified before.
    """
    call = partial(run, text, tensors, config_text(config), trusted=True)
    times = graph_times(call, runs)
    built = _built(text, tensors, config_text(config))
    moved = _BYTES[direction] * shape.elements
    rate = moved / (times["ms"] / 1e3)
    return {
        **times,
        "eager_ms": device_times(call, runs)["ms"],
        "floor_ms": moved / roof * 1e3,
        "gb_per_s": rate / 1e9,
        "of_roof": rate / roof,
        "program": built.source.program.fingerprint,
        "template": built.source.template,
        "resources": built.kernel.resources(),
    }


def _inputs(text: str) -> tuple[Input, ...]:
    return caller_inputs(program_of(text))


def configs(text: str, device: torch.device, shape: Shape) -> list[Any]:
    """The heuristic config of each template that can run a program at this size."""
    program, target = specialise(program_of(text)), target_of(device)
    problem = Problem.bucket(shape.batch * shape.heads, shape.length)
    found = candidates(program, target, problem)
    return [candidate.config for candidate in found if candidate.problem is None]


def _built(text: str, tensors: list[torch.Tensor], config: str) -> BuiltKernel:
    """The kernel of a call; tensors that torch allocates are aligned."""
    plan = plan_for(text, tensors[0].device, 16, config)
    shape = next(tensor.shape for tensor in tensors if tensor.is_complex())
    return plan.kernels.of(Sizes(*shape[:3]))


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
    parser.add_argument("--most", type=int, default=99, help="templates to time, best first")
    parser.add_argument("--out", type=Path, default=None, help="folder for the JSON")
    parser.add_argument("--commit", default=None, help="where the checkout has no history")
    arguments = parser.parse_args()
    roof = copy_roof()
    rows = [
        row
        for shape in (*SUITE, STEP)
        for permutation in (True, False)
        for row in measure(shape, roof, permutation, arguments.runs, arguments.most)
    ]
    loops = [loop_row(shape, 128) for shape in SUITE]
    record = provenance(torch.device("cuda"), arguments.commit) | {
        "roof_gb_per_s": roof / 1e9,
        "rows": rows,
        "torch_loop_forward": loops,
    }
    title = f"{record['device']}, copy roof {roof / 1e9:.0f} GB/s"
    table = Table(
        "shape", "maps", "direction", "template", "ms", "least–most", "eager", "floor", "of roof",
        "regs",
        title=title,
    )  # fmt: skip
    for row in rows:
        name = row.get("template", "?") + (" *" if row["chosen"] else "")
        cells = [row["shape"], row["maps"], row["direction"], name]
        if "error" in row:
            table.add_row(*cells, row["error"][:60])
            continue
        table.add_row(
            *cells,
            f"{row['ms']:.4f}",
            f"{row['least_ms']:.3f}–{row['most_ms']:.3f}",
            f"{row['eager_ms']:.3f}",
            f"{row['floor_ms']:.3f}",
            f"{row['of_roof']:.0%}",
            str(row["resources"].get("registers", "")),
        )
    console = Console(width=130)
    console.print(table)
    for loop in loops:
        console.print(f"torch loop, {loop['shape']} forward: {loop['ms']:.0f} ms (scaled)")
    name = record["device"].lower().replace(" ", "-")
    console.print(f"stored: {store(name, record, arguments.out)}", markup=False)


if __name__ == "__main__":
    main()
