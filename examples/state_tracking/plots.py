"""Learning curves, times to the end of them, and accuracy over length."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
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
    axes.set_ylim(0, 104)
    axes.set_xlabel("tokens")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=150)


def times(found: Mapping[str, Any], path: Path) -> None:
    """Seconds of training until a run's accuracy was enough, a line of points a task and model;
    runs whose never was are not in it.

    Args:
        found: as for :func:`curves`.
        path: where the picture goes.
    """
    seconds: dict[str, list[float]] = {}
    for run in found["runs"]:
        settings, last = run["settings"], run["log"][-1]
        if last["accuracy"] > settings["enough"]:
            kind = "{task}-{model}".format(**settings)
            seconds.setdefault(kind, []).append(last["seconds"])
    figure = Figure(figsize=(7, 1.5 + 0.25 * len(seconds)), layout="constrained")
    axes = figure.subplots()
    for place, of_kind in enumerate(seconds.values()):
        axes.plot(of_kind, [place] * len(of_kind), "o", alpha=0.6)
    axes.set_yticks(range(len(seconds)), [f"{kind} ({len(s)})" for kind, s in seconds.items()])
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds of training until the accuracy was enough")
    axes.grid(alpha=0.3)
    figure.suptitle(f"{found['device']}, commit {found['commit'][:7]}")
    figure.savefig(path, dpi=150)


def _styles(kinds: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A colour for each kind, and a label for the first of it."""
    seeds = Counter(kinds)
    palette = colormaps["tab10" if len(seeds) <= 10 else "tab20"]
    colours = {kind: palette(number % palette.N) for number, kind in enumerate(seeds)}
    told = set[str]()
    for kind in kinds:
        label = None if kind in told else f"{kind}, seeds: {seeds[kind]}"
        told.add(kind)
        yield {"color": colours[kind], "alpha": 0.6, "label": label}
