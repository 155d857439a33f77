"""``python -m benchmarks cpu``: the CPU kernels against the memory roof and the plain torch loop.

Also the host's own costs: what a warm call adds to its kernel, and what the import adds to
torch's. A CPU's calls take what they find in its caches, and so does its copy.
"""

from typing import Annotated

import torch
import typer

from benchmarks import options as o
from benchmarks.cases import ALL, CPU
from benchmarks.command import narrowed, run_command
from benchmarks.errors import one_line_errors
from pdssm_compiler.runtime.tuning.timing import Clock


def cpu(
    sections: o.Sections = None,
    shapes: o.Shapes = None,
    runs: o.Runs = None,
    most: o.Most = ALL,
    quick: o.Quick = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch and of kernels.")] = 2,
    workers: o.Workers = None,
    seconds: o.Seconds = None,
    out: o.Out = o.OUT,
    commit: o.Commit = None,
) -> None:
    """Measure this machine's CPU: kernels, worst maps, scaling, a step, the torch loop, the host's
    own costs.
    """
    torch.set_num_threads(threads)
    where = torch.device("cpu")
    agenda = narrowed(CPU, sections, shapes, runs, most, quick)
    run_command(agenda, where, Clock.of(where), "cpu", out, workers, seconds, commit)


if __name__ == "__main__":
    with one_line_errors():
        typer.run(cpu)
