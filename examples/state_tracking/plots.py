"""Learning curves, and accuracy over length."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def curves(found: Mapping[str, Any], path: Path) -> None:
    """Accuracy over steps and over seconds, a line a run; the seeds of a task and model share a
    colour.

    Args:
        found: what :func:`examples.state_tracking.results.summary` gives.
        path: where the picture goes.
    """
    figure = Figure(figsize=(12, 4), layout="constrained")
    kinds = ["{task}-{model}".format(**run["settings"]) for run in found["runs"]]
    for axes, what in zip(figure.subplots(1, 2, sharey=True), ("step", "seconds"), strict=True):
        for run, style in zip(found["runs"], _styles(kinds), strict=True):
            points = [(line[what], 100 * line["accuracy"]) for line in run["log"]]
            axes.plot(*zip(*points, strict=True), **style)
        axes.set_xlabel(what)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize="small")
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
    styles = _styles([name.rpartition("-")[0] for name, _ in found])
    for (_, measured), style in zip(found, styles, strict=True):
        rights = [100 * right for right, _ in measured.values()]
        axes.plot(list(measured), rights, "o-", **style)
    axes.set_xscale("log")
    axes.set_xlabel("tokens")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=150)


def _styles(kinds: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A colour for each kind, and a label for the first of it."""
    seeds = Counter(kinds)
    colours = {kind: f"C{number % 10}" for number, kind in enumerate(seeds)}
    told = set[str]()
    for kind in kinds:
        label = None if kind in told else f"{kind}, seeds: {seeds[kind]}"
        told.add(kind)
        yield {"color": colours[kind], "alpha": 0.6, "label": label}
