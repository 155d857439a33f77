"""What runs gave, as JSON, and as a table."""

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from examples.state_tracking.files import replace_file
from examples.state_tracking.training import Run
from pdssm_compiler.runtime.tuning import provenance


def about(device: torch.device) -> dict[str, Any]:
    """Where something was measured, by what, and when."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "versions": provenance.kernel_versions(),
        "commit": provenance.commit(),
        "date": provenance.now(),
        "matrix_products": torch.get_float32_matmul_precision(),
    }


def summary(runs: Sequence[Run], together: int) -> dict[str, Any]:
    """Everything about runs: device, versions, commit, date, and each run's settings and log.

    Args:
        runs: at their ends, or on their way.
        together: how many trained at once.
    """
    return about(runs[0].device) | {
        "together": together,
        "runs": [
            {
                "settings": run.settings.as_json(),
                "done": run.is_done,
                "best": max((line.accuracy for line in run.log), default=0.0),
                "log": [line._asdict() for line in run.log],
            }
            for run in runs
        ],
    }


def store(found: dict[str, Any], path: Path) -> None:
    """Write a summary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(found, indent=1) + "\n").encode())


def table(title: str, runs: Iterable[Run]) -> Table:
    """A row a model, a column a task: the mean of the seeds' best accuracies, in per cent, their
    deviation, and how many seeds.
    """
    by: dict[str, dict[str, list[float]]] = {}
    tasks: dict[str, None] = {}
    for run in runs:
        task, model = run.settings.task, run.settings.model
        tasks[task] = None
        best = max((line.accuracy for line in run.log), default=0.0)
        by.setdefault(model, {}).setdefault(task, []).append(100 * best)
    made = Table(title=title)
    made.add_column("model")
    for task in tasks:
        made.add_column(task, justify="right")
    for model, found in by.items():
        made.add_row(model, *(_cell(found.get(task, [])) for task in tasks))
    return made


def _cell(found: Sequence[float]) -> str:
    if not found:
        return "–"
    mean = f"{statistics.fmean(found):.1f}"
    if len(found) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(found):.1f} ({len(found)})"
