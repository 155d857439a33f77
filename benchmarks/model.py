"""``python -m benchmarks model``: the choices of the tuner's cost model, held to measurements.

Nothing is measured here: logs are read. See :mod:`pdssm_compiler.runtime.tuning.judge`.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from benchmarks import options as o
from benchmarks.provenance import OutputError, provenance
from pdssm_compiler.cli.consoles import messages, new_table, results
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.tuning.evidence import Evidence, evidence
from pdssm_compiler.runtime.tuning.judge import Judgement, judge
from pdssm_compiler.runtime.tuning.log import folder_name, shipped_logs, user_logs
from pdssm_compiler.runtime.tuning.rows import Row

# The ratios of a verdict, each with what it is called.
_RATIOS = {
    "heuristic": "heuristic",
    "chosen": "model's choice",
    "fastest": "expected fastest",
    "nearest": "fitted GPU's winner",
}


def model(
    fit: Annotated[
        list[str] | None,
        typer.Option(help="A GPU whose rows the model is fitted to: its folder; several times."),
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option(
            help="A GPU whose rows it is held to. Without it, those of --fit, one shape after the "
            "other left out of the fit."
        ),
    ] = None,
    logs: o.Logs = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file to write as well.")] = None,
    commit: o.Commit = None,
) -> None:
    """Hold the cost model to measured rows: the measured time of what it chooses, over the best,
    beside that of the heuristic's choice.
    """
    found = evidence(logs or [shipped_logs(), user_logs()])
    fitted = of_devices(found, fit)
    judged = None if on is None else of_devices(found, on)
    made = judge(fitted, judged)
    show_judgement(made, results())
    for told in found.left_out:
        messages().print(f"left out: {told}", markup=False, soft_wrap=True)
    if out is not None:
        # The model was fitted and held to rows here; where those come from is theirs to say.
        record = {
            "provenance": provenance(torch.device("cpu"), commit),
            "measured": measured_by(fitted if judged is None else judged),
            **asdict(made),
        }
        try:
            out.write_text(json.dumps(record, indent=1) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {out}: {error.strerror}; choose --out") from None


def measured_by(judged: Evidence) -> dict[str, Any]:
    """Where the rows that a model was held to come from, by device."""
    found: dict[str, list[Row]] = {}
    for sample in judged.samples:
        found.setdefault(sample.row.device, []).append(sample.row)
    return {
        device: {
            "rows": len(rows),
            "commits": sorted({row.commit for row in rows}),
            "dates": [choose(row.date for row in rows) for choose in (min, max)],
        }
        for device, rows in found.items()
    }


def of_devices(found: Evidence, folders: list[str] | None) -> Evidence:
    """The rows of some GPUs.

    Raises:
        ArgumentError: a GPU without any.
    """
    here = dict.fromkeys(folder_name(sample.row.device) for sample in found.samples)
    for name in folders or ():
        if name not in here:
            known = ", ".join(here) or "none"
            raise ArgumentError(f"no rows of {name!r} can be used; there are those of {known}")
    if folders is None:
        return found
    return found.only(s for s in found.samples if folder_name(s.row.device) in folders)


def show_judgement(made: Judgement, console: Console) -> None:
    """Print a row for each problem, and the median and the worst of each ratio."""
    held = "held to other rows" if made.across else "each shape left out"
    table = new_table("problem", "rows", "best ms", title=f"fitted to {made.basis}; {held}")
    for heading in (*_RATIOS.values(), "time off by", "pairs in order"):
        table.add_column(heading, justify="right", overflow="fold")
    for verdict in made.verdicts:
        table.add_row(
            verdict.label,
            str(verdict.candidates),
            f"{verdict.best_ms:.4g}",
            *(_ratio(getattr(verdict, name)) for name in _RATIOS),
            f"{np.exp(verdict.off) - 1:+.0%}",
            "" if verdict.ordered is None else f"{verdict.ordered:.0%}",
        )
    table.add_section()
    for place, told in enumerate(("median", "worst")):
        cells = []
        for name in _RATIOS:
            ratios = made.ratios(name)
            cells.append(_ratio(None if ratios is None else ratios[place]))
        off = sorted(abs(np.exp(verdict.off) - 1) for verdict in made.verdicts)
        cells.append(f"{off[-1] if place else float(np.median(off)):.0%}" if off else "")
        table.add_row(told, "", "", *cells, "")
    console.print(table)
    off = ", ".join(f"{name or 'others'} {error:.0%}" for name, error in made.errors.items())
    console.print(
        f"ratios are measured times over the best measured one; between candidates the model "
        f"expects to be off by {off}; {made.skipped} problems have too few rows",
        soft_wrap=True,
    )


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
