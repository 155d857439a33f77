"""``python -m benchmarks gpu``: every GPU kernel against the memory roof of this GPU.

The roof is a large copy in the same run; a floor is the fewest bytes a scan can move (each vector
of numbers in once, each out once; selections and dictionaries are not counted). "Backward, active"
is the backward of ``flash_pd_scan``: besides the gradients of diagonal and drive it writes a score
for each token and row (4 bytes, ``4/N`` an element) and adds to a sum for each entry of the
dictionary in each sequence (``4·K·N`` bytes a row; 4 bytes an element are added there, in the
second-level cache). Neither is in its floor. Every template that can run a shape is timed; a star
marks the one that a plain call takes. What would fit the second-level cache is copied until it
does not, and the copies take turns.
"""

from typing import Annotated

import torch
import typer

from benchmarks import options as o
from benchmarks.cases import ALL, GPU
from benchmarks.command import narrowed, run_command
from benchmarks.errors import one_line_errors
from pdssm_compiler.cli.device import device_of
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.tuning.timing import Clock


def gpu(
    sections: o.Sections = None,
    shapes: o.Shapes = None,
    runs: o.Runs = None,
    most: o.Most = ALL,
    quick: o.Quick = False,
    device: Annotated[str, typer.Option(help="cuda or cuda:1.")] = "cuda",
    workers: o.Workers = None,
    seconds: o.Seconds = None,
    out: o.Out = o.OUT,
    commit: o.Commit = None,
) -> None:
    """Measure a GPU: kernels, worst maps, scaling, a step, the torch loop, other operators."""
    agenda = narrowed(GPU, sections, shapes, runs, most, quick)
    where = device_of(device)
    if where.type != "cuda":
        raise ArgumentError(f"--device {device} is no GPU; python -m benchmarks cpu measures CPUs")
    torch.cuda.set_device(where)
    name = torch.cuda.get_device_name(where).lower().replace(" ", "-")
    run_command(agenda, where, Clock.of(where), name, out, workers, seconds, commit)


if __name__ == "__main__":
    with one_line_errors():
        typer.run(gpu)
