"""The application and its commands."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cpu import cpu
from benchmarks.gpu import gpu
from benchmarks.model import model
from benchmarks.plots import plot
from benchmarks.provenance import load, made
from benchmarks.search import search
from benchmarks.tables import show
from benchmarks.untuned import untuned
from pdssm_compiler.cli.consoles import results

Stored = Annotated[Path, typer.Argument(help="The JSON of an earlier run.")]

app = typer.Typer(
    name="python -m benchmarks",
    help="Times of scans against the memory roof, a torch loop and other operators.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("gpu")(gpu)
app.command("cpu")(cpu)
app.command("untuned")(untuned)
app.command("model")(model)
app.command("search")(search)


@app.command("show")
def show_command(stored: Stored) -> None:
    """Print the tables of an earlier run again, also of one that was cut short."""
    show(load(stored), results())


@app.command("plot")
def plot_command(
    stored: Stored,
    out: Annotated[
        Path | None, typer.Option(help="A folder for the plots; without it, beside the JSON.")
    ] = None,
) -> None:
    """Draw the plots of an earlier run again."""
    record = load(stored)
    folder = stored.parent if out is None else made(out)
    for path in plot(record, folder / stored.stem):
        results().print(f"stored: {path}", markup=False, highlight=False, soft_wrap=True)
