"""``python -m benchmarks untuned``: how far what calls take before any tuning on a device is from
the best that was measured there.

Nothing is measured: the device's log says the times, so tune the same workloads before
(``pdssm-compiler tune``), which measures what the heuristic says and what shipped logs say before
all else. "Nearest" is what a call would take if this device had no log: the row of the nearest
GPU's that is shipped, if there is one for the sizes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from benchmarks import options as o
from benchmarks import targets
from benchmarks.provenance import made, provenance, store
from pdssm_compiler.cli.consoles import new_table, results
from pdssm_compiler.cli.device import device_of
from pdssm_compiler.runtime.tuning.log import folder_name
from pdssm_compiler.runtime.tuning.race import Result
from pdssm_compiler.runtime.tuning.resolve import Tuned, tuned
from pdssm_compiler.runtime.tuning.rows import Row
from pdssm_compiler.runtime.tuning.tuner import tune_problems
from pdssm_compiler.workload_files import read_workloads
from pdssm_compiler.workloads import DIRECTIONS, AnyWorkload, suite

# What stands for a choice that was not measured, or that there is not.
_NONE = "–"


def untuned(
    spec_file: Annotated[
        list[Path] | None, typer.Option(help="Workloads, besides the suite; may be repeated.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")] = "cuda",
    out: o.Out = o.OUT,
    commit: o.Commit = None,
) -> None:
    """Compare what calls take untuned with the best of a device's log: the suite's programs, and
    those of files.
    """
    where = device_of(device)
    folder = made(out)
    workloads: list[AnyWorkload] = [*suite(where, DIRECTIONS)]
    for path in spec_file or ():
        workloads += read_workloads(path, ("forward",))
    problems = [problem for each in workloads for problem in each.problems(where)]
    # A log is asked, and nothing measured.
    rows = [row_of(result) for result in tune_problems(problems, "none") if result.winner]
    record = provenance(where, commit) | {"rows": rows, "worst": worst(rows)}
    results().print(table(record))
    for line in lines(record):
        results().print(line, highlight=False, markup=False, soft_wrap=True)
    path = store(f"{folder_name(record['device'])}-untuned", record, folder)
    results().print(f"stored: {path}", markup=False, highlight=False, soft_wrap=True)


def row_of(result: Result) -> dict[str, Any]:
    """A program's times: the best, and what untuned calls take over it (None if not measured)."""
    best = result.winner
    assert best is not None
    assert best.ms is not None
    problem = result.problem
    told = tuned(problem.program, problem.target, problem.bucket, own=False)
    near = next((each for each in told if each.near), None)
    base = result.heuristic
    return {
        "program": str(problem),
        "direction": problem.direction,
        "best": _candidate(best),
        "best_ms": best.ms,
        "heuristic": base and _candidate(base),
        "heuristic_over_best": _over(base, best.ms),
        "nearest": near and f"{near.template.name} {asdict(near.config)}, {near.reason}",
        "nearest_over_best": near and _over(_row_of(near, result.rows), best.ms),
        "candidates": sum(row.ms is not None for row in result.rows),
    }


def _candidate(row: Row) -> str:
    return f"{row.template} {row.config}"


def _over(row: Row | None, best: float) -> float | None:
    return row.ms / best if row is not None and row.ms is not None else None


def _row_of(choice: Tuned, rows: Sequence[Row]) -> Row | None:
    wanted = (choice.template.name, asdict(choice.config))
    return next((row for row in rows if (row.template, row.config) == wanted), None)


def worst(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The largest ratios and whose they are."""
    found = {}
    for choice in ("heuristic", "nearest"):
        over = [(row[f"{choice}_over_best"], row["program"]) for row in rows]
        known = [each for each in over if each[0] is not None]
        if known:
            ratio, program = max(known)
            found[choice] = {"over_best": ratio, "program": program, "programs": len(known)}
    return found


def table(record: dict[str, Any]) -> Table:
    """A row a program."""
    made = new_table(
        "program", "best ms", "of\ncandidates", "heuristic\nover best", "nearest\nover best",
        "best", title=f"untuned calls on {record['device']}",
    )  # fmt: skip
    for row in record["rows"]:
        ratios = (row["heuristic_over_best"], row["nearest_over_best"])
        told = [f"{ratio:.3f}" if ratio else _NONE for ratio in ratios]
        made.add_row(
            row["program"], f"{row['best_ms']:.4g}", str(row["candidates"]), *told, row["best"]
        )
    return made


def lines(record: dict[str, Any]) -> Iterator[str]:
    """The worst of each, beside what is wanted."""
    names = {"heuristic": "the heuristic", "nearest": "the log of the nearest GPU"}
    for choice, found in record["worst"].items():
        yield (
            f"{names[choice]} takes at most {found['over_best']:.3f} times the best of "
            f"{found['programs']} programs (wanted: {targets.UNTUNED}): {found['program']}"
        )
