"""Transition graphs side by side."""

import math
from collections.abc import Sequence
from pathlib import Path

from aalpy.automata import MooreMachine
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.state_tracking.machines import transitions


def draw(machines: Sequence[tuple[str, MooreMachine]], path: Path) -> None:
    """Each machine with its states on a circle, coloured by answers, an arrow a letter.

    Args:
        machines: titles, and machines.
        path: where the picture goes.
    """
    figure = Figure(figsize=(4.5 * len(machines), 4.5), layout="constrained")
    for axes, (title, found) in zip(figure.subplots(1, len(machines)), machines, strict=True):
        axes.set_title(title)
        _graph(axes, found)
    figure.savefig(path, dpi=150)


def _graph(axes: Axes, found: MooreMachine) -> None:
    known = transitions(found)
    turn = 2 * math.pi / len(known)
    at = {name: (math.cos(n * turn), math.sin(n * turn)) for n, name in enumerate(known)}
    colours = colormaps["tab10"]
    few = len(known) <= 12
    for name, (_, leads) in known.items():
        for letter, to in leads.items():
            _arrow(axes, at[name], at[to], letter, colours((letter - 1) % 10), few)
    for name, (answer, _) in known.items():
        colour = "white" if answer is None else colormaps["Pastel1"]((answer - 1) % 9)
        axes.scatter(*at[name], s=700 if few else 60, color=colour, edgecolors="black", zorder=3)
        if few:
            label = name if answer is None else f"{name}\n→{answer}"
            axes.annotate(label, at[name], ha="center", va="center", fontsize=8, zorder=4)
    axes.set_xlim(-1.6, 1.6)
    axes.set_ylim(-1.6, 1.6)
    axes.set_aspect("equal")
    axes.axis("off")


def _arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    letter: int,
    colour: tuple[float, float, float, float],
    labelled: bool,
) -> None:
    if start == end:
        out = (1.35 * start[0], 1.35 * start[1])
        if labelled:
            axes.annotate(f"{letter}⟲", out, color=colour, ha="center", va="center")
        return
    bend = 0.12 + 0.06 * letter
    style = {"arrowstyle": "-|>", "color": colour, "shrinkA": 14, "shrinkB": 14}
    axes.annotate(
        "", end, start, arrowprops=style | {"connectionstyle": f"arc3,rad={bend}"}, zorder=2
    )
    if labelled:
        middle = [(a + b) / 2 for a, b in zip(start, end, strict=True)]
        across = (end[1] - start[1], start[0] - end[0])
        place = [m + bend * c / 2 for m, c in zip(middle, across, strict=True)]
        axes.annotate(str(letter), place, color=colour, ha="center", va="center", fontsize=8)
