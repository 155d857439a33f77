"""Options that the commands share."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cases import SECTIONS

Sections = Annotated[
    str | None, typer.Option(help=f"Which to measure, comma-separated: {', '.join(SECTIONS)}.")
]
Shapes = Annotated[
    str | None,
    typer.Option(help="Shapes of the suite, the worst maps and the loop, comma-separated."),
]
Runs = Annotated[int | None, typer.Option(min=1, help="Repetitions of each time.")]
Most = Annotated[int, typer.Option(min=1, help="Templates to time a kernel, best first.")]
Quick = Annotated[
    bool, typer.Option("--quick", help="Few runs, few sizes, and what plain calls take alone.")
]
Workers = Annotated[
    int | None, typer.Option(min=0, help="Processes that compile; 0 compiles in this one.")
]
Seconds = Annotated[
    float | None, typer.Option(help="Begin nothing more after so long; tell what is left out.")
]
Out = Annotated[Path, typer.Option(help="A folder for the JSON and the plots.")]
Logs = Annotated[
    list[Path] | None,
    typer.Option(
        help="A folder of logs, <gpu>/<program>.jsonl and programs; several times. Without it, "
        "the shipped ones and the user's own."
    ),
]
Commit = Annotated[str | None, typer.Option(help="Where the checkout has no history to ask.")]

# Not the folder of results in the repository: a run of a few sections must not take their place.
OUT = Path("out")
