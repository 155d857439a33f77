"""What every measuring command does: an agenda from options, a run, tables, JSON, plots."""

from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.cases import ALL, CHOSEN, SECTIONS, Agenda, chosen_of, few
from benchmarks.plots import plot
from benchmarks.provenance import OutputError, made, store
from benchmarks.session import Record, benchmark
from benchmarks.tables import show
from pdssm_compiler.cli.consoles import messages, results
from pdssm_compiler.runtime.tuning.precompile import processors
from pdssm_compiler.runtime.tuning.timing import Clock

_QUICK_RUNS = 5


def narrowed(
    agenda: Agenda,
    sections: str | None = None,
    shapes: str | None = None,
    runs: int | None = None,
    most: int = ALL,
    quick: bool = False,
) -> Agenda:
    """The part of an agenda that the options ask for.

    Raises:
        ArgumentError: a section or a shape that is not there.
    """
    # What is left out by default can be asked for.
    known = agenda.sections if sections is None else SECTIONS
    named = chosen_of(shapes, [shape.name for shape in agenda.shapes], "shape")
    found = replace(
        agenda,
        sections=chosen_of(sections, known, "section"),
        shapes=tuple(shape for shape in agenda.shapes if shape.name in named),
        runs=runs or (_QUICK_RUNS if quick else agenda.runs),
        most=CHOSEN if quick else most,
    )
    if quick:
        layers = replace(agenda.layers, lengths=few(agenda.layers.lengths))
        sweeps = {size: few(of) for size, of in agenda.sweeps.items()}
        found = replace(found, sweeps=sweeps, layers=layers)
    return found


def run_command(
    agenda: Agenda,
    device: torch.device,
    clock: Clock,
    name: str,
    out: Path,
    workers: int | None,
    seconds: float | None = None,
    commit: str | None = None,
) -> Record:
    """Measure, print, store, draw.

    Raises:
        OutputError: the folder cannot be written to, found before anything is measured.
    """
    made(out)
    record = benchmark(
        agenda,
        device,
        clock,
        workers=processors() if workers is None else workers,
        commit=commit,
        seconds=seconds,
        keep=lambda so_far: store(name, so_far, out),
    )
    console = results()
    show(record, console)
    stored = [out / f"{name}.json"]
    try:
        stored += plot(record, out / name)
    except OutputError as error:
        messages().print(f"no plot: {error}", markup=False, soft_wrap=True)
    for path in stored:
        console.print(f"stored: {path}", markup=False, highlight=False, soft_wrap=True)
    return record
