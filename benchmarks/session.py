"""One run: the roof, the kernels compiled, every section measured, a record of it all."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.cases import Agenda, Case
from benchmarks.comparisons import loop_rows, peer_rows
from benchmarks.fused import fused_rows
from benchmarks.host import call_overhead, first_result_seconds, import_seconds
from benchmarks.layer_sizes import Layer
from benchmarks.layers import decode_rows, layer_jobs, layer_rows
from benchmarks.measure import Bench, alignment_on, jobs_of
from benchmarks.mixture import mixture_jobs, mixture_rows
from benchmarks.provenance import provenance
from benchmarks.verdicts import verdicts
from pdssm_compiler.cli.consoles import messages
from pdssm_compiler.runtime.devices import target_of
from pdssm_compiler.runtime.tuning.precompile import compile_all
from pdssm_compiler.runtime.tuning.timing import Clock, copy_roof
from pdssm_compiler.suite import Shape

Record = dict[str, Any]


def benchmark(
    agenda: Agenda,
    device: torch.device,
    clock: Clock,
    *,
    workers: int,
    commit: str | None = None,
    seconds: float | None = None,
    keep: Callable[[Record], object] = lambda record: None,
) -> Record:
    """Measure an agenda.

    Args:
        agenda: what to measure.
        device: where.
        clock: how the device is timed.
        workers: processes that compile at a time.
        commit: see :func:`~benchmarks.provenance.provenance`.
        seconds: after which nothing more is begun; what is left out is told. None for no end.
        keep: called with the record after each case, so that a run that is cut short leaves what
            it has.
    """
    begun = time.perf_counter()
    record: Record = provenance(device, commit) | {
        "cache_bytes": clock.cache_bytes,
        "sections": list(agenda.sections),
        "verdicts": {},
    }
    cases = list(agenda.cases())
    target, alignment = target_of(device), alignment_on(device)
    of_sections = {
        "layers": layer_jobs(agenda.layers, target, alignment),
        "mixture": mixture_jobs(agenda.mixture, target, alignment),
    }
    every = [jobs_of(cases, target, alignment)]
    every += [jobs for section, jobs in of_sections.items() if section in agenda.sections]
    jobs = list(dict.fromkeys(chain(*every)))
    start = time.perf_counter()
    with _progress("compiling", len(jobs)) as step:
        compiled = compile_all(jobs, workers, step)
    record["compiling"] = {
        "kernels": len(jobs),
        "seconds": time.perf_counter() - start,
        "failed": [
            {"program": job.text.splitlines()[0], "config": job.config, "error": made.error}
            for job, made in compiled.items()
            if made.error
        ],
    }
    roof = copy_roof(device, clock)
    record["roof_gb_per_s"] = roof / 1e9
    bench = Bench(device, clock, roof, agenda.runs, compiled)
    record["rows"] = []
    record["left_out"] = []
    parts = list(_parts(agenda, cases, bench, record))
    with _progress("measuring", len(parts)) as step:
        for name, measure in parts:
            if seconds is not None and time.perf_counter() - begun > seconds:
                record["left_out"].append(name)
                continue
            measure()
            _forget(device)
            record["verdicts"] = verdicts(record["rows"])
            keep(record)
            step(name)
    keep(record)
    return record


def _parts(
    agenda: Agenda, cases: Sequence[Case], bench: Bench, record: Record
) -> Iterator[tuple[str, Callable[[], None]]]:
    """What a run does one after the other, by name: each adds its rows to the record."""

    def kernels(case: Case) -> None:
        record["rows"] += bench.rows(case)

    def loop(case: Case) -> None:
        record.setdefault("loop", []).extend(loop_rows(bench, case.shape, agenda.loop_tokens))

    def fused(shape: Shape) -> None:
        record.setdefault("fused", []).extend(fused_rows(bench, shape))

    def mixture(layer: Layer) -> None:
        record.setdefault("mixture", []).extend(mixture_rows(bench, layer))

    def layers(length: int) -> None:
        record.setdefault("layers", []).extend(layer_rows(bench, agenda.layers, length))

    def decoding() -> None:
        record.setdefault("layers", []).extend(decode_rows(bench, agenda.layers))

    def peers() -> None:
        ours = [row for row in record["rows"] if row["section"] == "peers"]
        record["peers"] = peer_rows(bench, agenda.peers, ours)

    def host() -> None:
        record["host"] = {
            "call": call_overhead(bench.device),
            "call_with_permutations": call_overhead(bench.device, "permutation"),
            "import": import_seconds(),
            "first_result": first_result_seconds(bench.device),
        }

    for section in agenda.sections:
        for case in cases:
            if case.section == section:
                yield str(case), partial(loop if section == "loop" else kernels, case)
        if section == "fused":
            for shape in agenda.fused:
                yield f"fused {shape.name}", partial(fused, shape)
        if section == "mixture":
            for layer in agenda.mixture:
                yield f"mixture {layer.name}", partial(mixture, layer)
        if section == "layers":
            first, *others = agenda.layers.measured
            yield f"layers T={first}", partial(layers, first)
            yield "layers decoding", decoding
            for length in others:
                yield f"layers T={length}", partial(layers, length)
        if section == "peers":
            yield "other operators", peers
        if section == "host":
            yield "host", host


def _forget(device: torch.device) -> None:
    """Give memory back between cases: the next has tensors of other sizes."""
    if device.type == "cuda":
        # On a device that a kernel has left unusable every call fails; the rows tell.
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[..., None]]:
    """A line that grows; gives the function to call after each step. Where nobody watches, a line
    each step that has a name.
    """
    console = messages()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task(what, total=total)
        start = time.perf_counter()

        def told(name: str) -> None:
            seconds = time.perf_counter() - start
            console.print(f"{seconds:6.0f} s  {name}", markup=False, highlight=False)

        def step(name: str = "") -> None:
            progress.update(task, advance=1, description=f"{what} {name}".strip())
            if quiet and name:
                told(name)

        yield step
        if quiet:
            told(f"{what}: done, {total}")
