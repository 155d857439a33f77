"""What the rows of a run say together."""

from collections.abc import Sequence
from typing import Any

from benchmarks.measure import Row


def verdicts(rows: Sequence[Row]) -> dict[str, Any]:
    """What holds over several rows.

    Returns:
        ``worst_maps``: of each shape and direction the time of the worst maps, of random ones;
        ``lengths``: how far the times of a constant number of tokens lie apart, of the least;
        ``same_bits``: how many kernels were run twice, and which left other bits. Each only where
        its rows were measured.
    """
    measured = [row for row in rows if "error" not in row and "ms" in row]
    found: dict[str, Any] = {}
    worst = _worst_maps([row for row in measured if row["section"] == "worst"])
    if worst:
        found["worst_maps"] = worst
    lengths = [row["ms"] for row in measured if row.get("sweep") == "T"]
    if len(lengths) > 1:
        found["lengths"] = (max(lengths) - min(lengths)) / min(lengths)
    twice = [row for row in measured if "same_bits" in row]
    if twice:
        others = [row for row in twice if not row["same_bits"]]
        named = [f"{r['shape']} {r['maps']} {r['direction']} {r['template']}" for r in others]
        found["same_bits"] = {"kernels": len(twice), "other": named}
    return found


def _worst_maps(rows: Sequence[Row]) -> list[Row]:
    ms = {(row["shape"], row["direction"], row["maps"]): row["ms"] for row in rows}
    found = []
    for (shape, direction, maps), time in ms.items():
        random = ms.get((shape, direction, "random"))
        if maps == "one row" and random is not None:
            ratio = {"of_random": time / random}
            found.append({"shape": shape, "direction": direction} | ratio)
    return found
