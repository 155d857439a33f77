"""Learning curves, and accuracy over length."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def curves(found: Mapping[str, Any], path: Path) -> None:
    """Accuracy over steps and over seconds, a line a run.

    Args:
        found: what :func:`examples.state_tracking.results.summary` gives.
        path: where the picture goes.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2, sharey=True), ("step", "seconds"), strict=True):
        for run in found["runs"]:
            named = run["settings"]
            label = f"{named['task']}, {named['model']}, seed {named['seed']}"
            points = [(line[what], 100 * line["accuracy"]) for line in run["log"]]
            axes.plot(*zip(*points, strict=True), label=label)
        axes.set_xlabel(what)
        axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
    figure.axes[0].set_ylabel("accuracy on test lengths, %")
    figure.suptitle(f"{found['device']}, commit {found['commit'][:7]}")
    figure.savefig(path, dpi=150)


def over_lengths(found: Sequence[tuple[str, Mapping[int, tuple[float, int]]]], path: Path) -> None:
    """Accuracy over length, a line a run; the seeds of a task and model share a colour.

    Args:
        found: names of runs, and what :func:`examples.state_tracking.lengths.over_lengths` gives.
        path: where the picture goes.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    seeds = Counter(_without_seed(name) for name, _ in found)
    colours = {kind: f"C{number}" for number, kind in enumerate(seeds)}
    told = set[str]()
    for name, measured in found:
        kind = _without_seed(name)
        label = None if kind in told else f"{kind}, seeds: {seeds[kind]}"
        told.add(kind)
        rights = [100 * right for right, _ in measured.values()]
        axes.plot(list(measured), rights, "o-", color=colours[kind], alpha=0.6, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("tokens")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=150)


def _without_seed(name: str) -> str:
    return name.rpartition("-")[0]
