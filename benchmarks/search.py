"""``python -m benchmarks search``: how near the tuner's searches come to the best of their spaces.

Nothing is measured here, and nobody has measured a whole space of some hundred candidates. So
spaces are completed: a candidate that a race has measured keeps its time, every other one takes
what the cost model of :mod:`pdssm_compiler.runtime.tuning.expected` makes of all rows, times a
deviation that no model knows. A search knows nothing of either; it is told the times of what it
asks for, with the noise of a timing. What comes of it says how well spaces like these are
searched, not what a kernel takes.
"""

import math
from collections.abc import Mapping
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from benchmarks import options as o
from benchmarks.model import measured_by, of_devices
from benchmarks.provenance import made, provenance, store
from pdssm_compiler.cli.consoles import new_table, results
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.tuning.effort import EFFORTS
from pdssm_compiler.runtime.tuning.evidence import Sample, evidence
from pdssm_compiler.runtime.tuning.expected import Model
from pdssm_compiler.runtime.tuning.log import shipped_logs, user_logs
from pdssm_compiler.runtime.tuning.problem import TuningProblem
from pdssm_compiler.runtime.tuning.search import Search
from pdssm_compiler.runtime.tuning.space import Entry, Space, space_of

# Problems of which less was measured say little of their spaces.
_LEAST_ROWS = 8
# How far two timings of one candidate lie apart, typically.
_NOISE = 0.01
# What is told of each problem, over the best of its space.
_CHOICES = ("heuristic", "random", "quick", "full")

Times = Mapping[Entry, float]
Row = dict[str, Any]


def search(
    on: Annotated[
        list[str] | None, typer.Option(help="A GPU whose races are completed: its folder.")
    ] = None,
    logs: o.Logs = None,
    deviation: Annotated[
        float, typer.Option(min=0, max=1, help="Of the logarithm, of what was not measured.")
    ] = 0.04,
    seeds: Annotated[int, typer.Option(min=1, help="Spaces that are made of each problem.")] = 3,
    out: o.Out = o.OUT,
    commit: o.Commit = None,
) -> None:
    """Search spaces that the cost model completes: what each effort takes, over the best.

    Raises:
        ArgumentError: no such GPU, or too few rows.
    """
    found = of_devices(evidence(logs or [shipped_logs(), user_logs()]), on)
    folder = made(out)
    problems = problems_of(found.samples)
    if not problems:
        raise ArgumentError(
            f"no log has {_LEAST_ROWS} rows of one problem; name a folder of whole logs, such as "
            f"benchmarks/results/races, by --logs"
        )
    model = Model.fitted(found)
    rows = [
        row_of(model, samples, deviation, seed) for samples in problems for seed in range(seeds)
    ]
    record = provenance(torch.device("cpu"), commit) | {
        "measured": measured_by(found), "deviation": deviation, "noise": _NOISE, "rows": rows,
        "summary": summary(rows),
    }  # fmt: skip
    show(record, results())
    path = store("search", record, folder)
    results().print(f"stored: {path}", markup=False, highlight=False, soft_wrap=True)


def problems_of(samples: tuple[Sample, ...]) -> list[list[Sample]]:
    """The samples of each problem on each GPU of which enough was measured."""
    problems: dict[object, list[Sample]] = {}
    for sample in samples:
        problems.setdefault((sample.target, sample.problem), []).append(sample)
    return [each for each in problems.values() if len(each) >= _LEAST_ROWS]


def row_of(model: Model, samples: list[Sample], deviation: float, seed: int) -> Row:
    """What searches of a problem's completed space take, over its best."""
    random = np.random.default_rng(seed)
    space, times = completed(model, samples, deviation, random)
    best = min(times.values())
    row: Row = {
        "program": f"{samples[0].row.label} {samples[0].row.direction}",
        "device": samples[0].row.device,
        "seed": seed,
        "candidates": len(times),
        "heuristic": times[space.first[0]] / best,
    }
    for name in ("quick", "full"):
        seen = searched(space, times, name, random)
        row[f"{name}_measured"] = len(seen)
        row[name] = times[min(seen, key=seen.__getitem__)] / best
    others = list(space.others)
    drawn = random.permutation(len(others))[: row["quick_measured"] - len(space.first)]
    row["random"] = min(times[e] for e in (*space.first, *(others[n] for n in drawn))) / best
    row["quick_over_full"] = row["quick"] / row["full"]
    return row


def completed(
    model: Model, samples: list[Sample], deviation: float, random: np.random.Generator
) -> tuple[Space, dict[Entry, float]]:
    """A problem's space and the seconds of each candidate."""
    first = samples[0]
    problem = TuningProblem(
        first.program.text, first.row.label, first.row.direction, Sizes(*first.row.sizes),
        absent=first.target,
    )  # fmt: skip
    whole = space_of(problem)
    known = [
        tuple(e for e in each if model.knows(e.template)) for each in (whole.first, whole.others)
    ]
    entries = [*known[0], *known[1]]
    law = model.expected(problem.program, first.target, entries, first.row.sizes, beaten=True)
    off = np.exp(random.normal(0.0, deviation, len(entries)))
    raced = {(s.row.template, s.config): (s.row.ms or 0.0) / 1e3 for s in samples}
    times = {
        entry: raced.get((entry.template.name, entry.config), float(seconds * by))
        for entry, seconds, by in zip(entries, law.seconds, off, strict=True)
    }
    return Space(known[0], known[1], ()), times


def searched(
    space: Space, times: Times, effort: str, random: np.random.Generator
) -> dict[Entry, float]:
    """What a search has measured."""
    seen: dict[Entry, float] = {}
    search = Search(space, EFFORTS[effort])
    while batch := search.next(seen):
        seen |= {e: times[e] * math.exp(random.normal(0.0, _NOISE)) for e in batch}
    return seen


def summary(rows: list[Row]) -> Row:
    """Of each choice, over the best: the median, the worst, and how many are more than 5 % off."""
    found = {}
    for name in (*_CHOICES, "quick_over_full"):
        ratios = [row[name] for row in rows]
        over = sum(ratio > 1.05 for ratio in ratios)
        found[name] = {"median": median(ratios), "worst": max(ratios), "over_5_percent": over}
    return found


def show(record: dict[str, Any], console: Console) -> None:
    """Print a row for each problem, the worst of its spaces, and what holds for all."""
    table = new_table(
        "program", "candidates", *_CHOICES, "quick\nover full",
        title=f"completed spaces, what was not measured off by {record['deviation']:.0%}",
    )  # fmt: skip
    by_program: dict[tuple[str, str], list[Row]] = {}
    for row in record["rows"]:
        by_program.setdefault((row["device"], row["program"]), []).append(row)
    for (_, program), rows in by_program.items():
        worst = [f"{max(r[n] for r in rows):.3f}" for n in (*_CHOICES, "quick_over_full")]
        table.add_row(program, str(rows[0]["candidates"]), *worst)
    console.print(table)
    number = len(record["rows"])
    for name, told in record["summary"].items():
        console.print(
            f"{name.replace('_', ' ')}: median {told['median']:.3f}, worst {told['worst']:.3f}, "
            f"more than 1.05 in {told['over_5_percent']} of {number}",
            soft_wrap=True, highlight=False,
        )  # fmt: skip
