"""One run: the roof, the kernels compiled, every section measured, a record of it all."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.cases import Agenda
from benchmarks.comparisons import loop_rows, peer_rows
from benchmarks.host import call_overhead, import_seconds
from benchmarks.measure import Bench, alignment_on, jobs_of
from benchmarks.precompile import Job, compile_all
from benchmarks.provenance import provenance
from benchmarks.timing import Clock
from benchmarks.verdicts import verdicts
from pdssm_compiler.cli.consoles import messages
from pdssm_compiler.runtime.devices import target_of

Record = dict[str, Any]


def copy_roof(device: torch.device, clock: Clock) -> float:
    """Bytes a second of a large copy by torch, reads and writes together."""
    size = 1 << (31 if device.type == "cuda" else 26)
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    times = clock.calls([lambda: target.copy_(source)], 20)
    return 2 * source.numel() / (times["ms"] / 1e3)


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def benchmark(
    agenda: Agenda,
    device: torch.device,
    clock: Clock,
    *,
    workers: int,
    commit: str | None = None,
    keep: Callable[[Record], None] = lambda record: None,
) -> Record:
    """Measure an agenda.

    Args:
        agenda: what to measure.
        device: where.
        clock: how the device is timed.
        workers: processes that compile at a time.
        commit: see :func:`~benchmarks.provenance.provenance`.
        keep: called with the record after each section, so that a run that is cut short leaves
            what it has.
    """
    roof = copy_roof(device, clock)
    record: Record = provenance(device, commit) | {
        "roof_gb_per_s": roof / 1e9,
        "cache_bytes": clock.cache_bytes,
        "sections": agenda.sections,
    }
    cases = list(agenda.cases())
    jobs = list(dict.fromkeys(jobs_of(cases, target_of(device), alignment_on(device))))
    start = time.perf_counter()
    with _progress("compiling", len(jobs)) as step:
        compiled = compile_all(jobs, workers, step)
    record["compiling"] = {
        "kernels": len(jobs),
        "seconds": time.perf_counter() - start,
        "failed": {_named(job): made.error for job, made in compiled.items() if made.error},
    }
    bench = Bench(device, clock, roof, agenda.runs, compiled)
    record["rows"] = rows = []
    others = sum(section in agenda.sections for section in ("peers", "host"))
    with _progress("measuring", len(cases) + others) as step:
        for section in agenda.sections:
            for case in cases:
                if case.section == section:
                    if section == "loop":
                        record.setdefault("loop", []).extend(
                            loop_rows(bench, case.shape, agenda.loop_tokens)
                        )
                    else:
                        rows += bench.rows(case)
                    _forget(device)
                    step(str(case))
            if section == "peers":
                ours = [row for row in rows if row["section"] == "peers"]
                record["peers"] = peer_rows(bench, agenda.peers, ours)
                _forget(device)
                step("peers")
            if section == "host":
                record["host"] = {"call": call_overhead(), "import": import_seconds()}
                step("host")
            record["verdicts"] = verdicts(rows)
            keep(record)
    return record


def _named(job: Job) -> str:
    return f"{job.config} of {job.text.splitlines()[0]}"


def _forget(device: torch.device) -> None:
    """Give memory back between cases: the next has tensors of other sizes."""
    if device.type == "cuda":
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

        def step(name: str = "") -> None:
            progress.update(task, advance=1, description=f"{what} {name}".strip())
            if quiet and name:
                seconds = time.perf_counter() - start
                console.print(f"{seconds:6.0f} s  {name}", markup=False, highlight=False)

        yield step
