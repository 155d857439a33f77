"""Plots of a record: how near the roof each kernel is, and how time follows each size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.layers import STEP
from benchmarks.measure import Row
from benchmarks.provenance import OutputError
from benchmarks.tables import per_element

Record = dict[str, Any]

_MARKERS = {"forward": "o", "backward": "s", "backward, active": "D"}
_COLOURS = {"permutation": "tab:blue", "random": "tab:orange", "one row": "tab:red"}
# How earlier records call them.
_RENAMED = {"general": "random"}


def plot(record: Record, stem: Path) -> list[Path]:
    """Draw what the record has rows for; gives the files, ``<stem>-roofline.png``,
    ``<stem>-scaling.png`` and ``<stem>-layers.png``.

    Raises:
        OutputError: nothing to draw, or a file cannot be written.
    """
    drawn = []
    for name, rows, draw in (
        ("roofline", _kernels(record), _roofline),
        ("scaling", _points(record), _scaling),
        ("layers", _steps(record), _layers),
    ):
        if rows:
            drawn.append(_draw(record, rows, draw, stem.with_name(f"{stem.name}-{name}.png")))
    if not drawn:
        raise OutputError(
            "there are no kernels in these results to plot; measure the sections suite, scaling "
            "or layers"
        )
    return drawn


def _kernels(record: Record) -> list[Row]:
    """The kernels that plain calls take, one a problem and direction."""
    rows = [row for row in record.get("rows", ()) if row.get("chosen", True) and "ms" in row]
    single = [row for row in rows if row["direction"] in _MARKERS and "sweep" not in row]
    return [row for row in single if row.get("payload", "float32") == "float32"]


def _points(record: Record) -> list[Row]:
    return [row for row in record.get("rows", ()) if "sweep" in row and "ms" in row]


def _steps(record: Record) -> list[Row]:
    """Forward and backward of layers, over T."""
    rows = [row for row in record.get("layers", ()) if "ms" in row]
    return [row for row in rows if row["direction"] == STEP]


def _draw(record: Record, rows: list[Row], draw: Callable[..., Any], path: Path) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = draw(pyplot, rows, record["roof_gb_per_s"])
    figure.suptitle(
        f"{record['device']}, commit {record['commit'][:12]}, {record['date'][:10]}", fontsize=10
    )
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose --out") from None
    finally:
        pyplot.close(figure)
    return path


def _roofline(pyplot: Any, rows: list[Row], roof: float) -> Any:
    """Bytes a second over the floor of each kernel, below the line of the copy."""
    figure, axes = pyplot.subplots(figsize=(9, 5.5))
    axes.axhline(roof, color="black", label=f"copy, {roof:.0f} GB/s")
    for row in rows:
        maps = _RENAMED.get(row["maps"], row["maps"])
        point = row["floor_ms"], row["gb_per_s"]
        axes.plot(
            *point,
            _MARKERS[row["direction"]],
            color=_COLOURS[maps],
            label=f"{row['direction']}, {maps} maps",
        )
    for name, floor, height in _labels(rows, apart=0.03 * roof):
        axes.annotate(
            name, (floor, height), (5, 0), textcoords="offset points", fontsize=7, va="center"
        )
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_ylim(0, 1.08 * max([roof, *(row["gb_per_s"] for row in rows)]))
    axes.set_xlabel("floor: ms at the rate of the copy")
    axes.set_ylabel("reached, GB/s")
    # One entry for each kind of point.
    handles, labels = axes.get_legend_handles_labels()
    kinds = dict(zip(labels, handles, strict=True))
    axes.legend(kinds.values(), kinds.keys(), fontsize=7, loc="lower right")
    return figure


def _labels(rows: list[Row], apart: float) -> list[tuple[str, float, float]]:
    """Names beside the points, with their places: above one another where points of about the same
    floor lie close, and one name for those of one shape.
    """
    placed: list[tuple[str, float, float]] = []
    for row in sorted(rows, key=lambda row: row["gb_per_s"]):
        near = [p for p in placed if abs(p[1] / row["floor_ms"] - 1) < 0.2]
        height = row["gb_per_s"]
        if any(p[0] == row["shape"] and height - p[2] < apart for p in near):
            continue
        height = max([height, *(p[2] + apart for p in near)])
        placed.append((row["shape"], row["floor_ms"], height))
    return placed


def _scaling(pyplot: Any, rows: list[Row], roof: float) -> Any:
    """Time an element over each size, above the line of the floor."""
    sweeps = list(dict.fromkeys(row["sweep"] for row in rows))
    figure, panels = pyplot.subplots(1, len(sweeps), figsize=(4 * len(sweeps), 4), squeeze=False)
    for axes, size in zip(panels[0], sweeps, strict=True):
        points = sorted((row for row in rows if row["sweep"] == size), key=_size)
        sizes = [_size(row) for row in points]
        axes.plot(sizes, [per_element(row) for row in points], "o-", label="forward, random maps")
        floors = [row["floor_ms"] / row["ms"] * per_element(row) for row in points]
        axes.plot(sizes, floors, "k--", label=f"copy, {roof:.0f} GB/s")
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.set_xlabel({"T": "T, B·T constant", "N": "N, H·N about constant"}.get(size, size))
        axes.legend(fontsize=7)
    panels[0][0].set_ylabel("ps an element of the states")
    return figure


def _size(row: Row) -> int:
    return row["sizes"][row["sweep"]]


def _layers(pyplot: Any, rows: list[Row], _: float) -> Any:
    """Time a token and memory over T, a line a layer; where memory was not counted, time alone."""
    panels: list[tuple[str, Callable[[Row], float | None]]] = [
        ("µs a thousand tokens, both ways", _us_a_thousand),
        ("MiB at the peak, above parameters", lambda row: row["peak_mib"]),
    ]
    counted = any(row["peak_mib"] for row in rows)
    shown = panels if counted else panels[:1]
    figure, axes_of = pyplot.subplots(1, len(shown), figsize=(5 * len(shown), 4), squeeze=False)
    for axes, (label, value) in zip(axes_of[0], shown, strict=True):
        for name in dict.fromkeys(row["layer"] for row in rows):
            points = sorted((row for row in rows if row["layer"] == name), key=_length)
            axes.plot([_length(p) for p in points], [value(p) for p in points], "o-", label=name)
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("T, B·T constant while B > 1")
        axes.set_ylabel(label)
        axes.legend(fontsize=7)
    return figure


def _us_a_thousand(row: Row) -> float:
    """Milliseconds a million tokens, which are microseconds a thousand."""
    return float(row["ms"]) * 1e6 / (row["sizes"]["B"] * row["sizes"]["T"])


def _length(row: Row) -> int:
    return int(row["sizes"]["T"])
