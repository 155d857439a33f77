"""The plots of a run: what their lines say is what its rows do."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from benchmarks.plots import plot
from benchmarks.tables import per_element

Record = dict[str, Any]


@pytest.fixture
def figures(record: Record, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Figure]:
    """The figures of the run, by what they are."""
    drawn: list[Figure] = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    paths = plot(record, tmp_path / "cpu")
    monkeypatch.undo()
    found = {path.stem.removeprefix("cpu-"): each for path, each in zip(paths, drawn, strict=True)}
    for figure in drawn:
        pyplot.close(figure)
    return found


def test_a_roofline(record: Record, figures: dict[str, Figure]) -> None:
    """A point for each kernel that plain calls take, below the line of the copy."""
    (axes,) = figures["roofline"].axes
    roof, *points = axes.get_lines()
    assert set(roof.get_ydata()) == {record["roof_gb_per_s"]}
    found = {(point.get_xdata()[0], point.get_ydata()[0]) for point in points}
    wanted = {
        (row["floor_ms"], row["gb_per_s"]) for row in record["rows"] if row["section"] == "suite"
    }
    directions = {row["direction"] for row in record["rows"] if row["section"] == "suite"}
    sums = {
        (row["floor_ms"], row["gb_per_s"])
        for row in record["rows"]
        if row["direction"].startswith("forward +")
    }
    assert len(directions) == 4
    assert wanted - sums <= found
    texts = [figure_text.get_text() for figure_text in axes.texts]
    assert {"tiny", "wide"} <= set(texts)


def test_scaling_over_tokens_states_and_sequences(
    record: Record, figures: dict[str, Figure]
) -> None:
    panels = figures["scaling"].axes
    assert [axes.get_xlabel() for axes in panels] == [
        "T, B·T constant", "N, H·N about constant", "B",
    ]  # fmt: skip
    for axes, size in zip(panels, "TNB", strict=True):
        rows = [row for row in record["rows"] if row.get("sweep") == size]
        times, floors = axes.get_lines()
        assert dict(zip(times.get_xdata(), times.get_ydata(), strict=True)) == {
            row["sizes"][size]: per_element(row) for row in rows
        }
        assert list(floors.get_xdata()) == list(times.get_xdata())
