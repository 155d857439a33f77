"""``pdssm-compiler run``: a regular expression's automaton over real text, exactly."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import Progress
from rich.table import Table

from pdssm_compiler.cli.consoles import messages, new_table, results
from pdssm_compiler.ir.errors import PdssmError


class PlotError(PdssmError, OSError):
    """The plot could not be written."""


def run(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Files or folders; without any, the Python standard library."),
    ] = None,
    regex: Annotated[
        list[str] | None, typer.Option(help="A pattern of your own; may be given several times.")
    ] = None,
    pattern: Annotated[
        list[str] | None,
        typer.Option(help="A known pattern: integers, identifiers, strings, dotted-quads."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1.")] = None,
    max_mib: Annotated[int, typer.Option("--max-mib", min=1, help="Text to read, in MiB.")] = 8,
    plot: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path("pdssm-run.png"),
) -> None:
    """Build the automaton of each pattern, scan the text with it on a device, and hold every state
    to the automaton and every match to Python's re. Exit status 1 if one differs.
    """
    from pdssm_compiler.automata import build_bimachine, byte_automaton, load_corpus
    from pdssm_compiler.automata.device_search import search
    from pdssm_compiler.cli.device import device_of
    from pdssm_compiler.runtime.explain import explain

    where = device_of(device)
    if plot.is_dir() or plot.suffix not in (".png", ".pdf", ".svg"):
        raise PlotError(f"--plot names a .png, .pdf or .svg file, not {plot}")
    if not plot.absolute().parent.is_dir():
        raise PlotError(f"there is no folder {plot.parent} to write the plot to; choose --plot")
    corpus = load_corpus(files or None, max_bytes=max_mib << 20)
    patterns = _patterns(regex, pattern)
    machines = {name: build_bimachine(byte_automaton(text)) for name, text in patterns.items()}
    console = results()
    for line in corpus.skipped:
        messages().print(f"skipped: {line}", markup=False, soft_wrap=True)
    reports = {}
    told = messages()
    with Progress(console=told, transient=True, disable=not told.is_terminal) as progress:
        for name, machine in machines.items():
            task = progress.add_task(name, total=corpus.total_bytes)
            reports[name] = search(
                machine,
                corpus.texts,
                where,
                progress=lambda count, task=task: progress.advance(task, count),  # type: ignore[misc]
            )
    ran = explain()[-1]
    what = torch.cuda.get_device_name(where) if where.type == "cuda" else "CPU"
    console.print(
        f"{len(corpus.texts)} texts, {corpus.total_bytes / 2**20:.1f} MiB, on {where} ({what}, "
        f"{torch.get_num_threads()} threads); {ran.template} {ran.config} by {ran.reason}",
        markup=False,
        soft_wrap=True,
    )
    console.print(_table(reports))
    _plot(reports, str(where), plot)
    console.print(f"plot: {plot}", markup=False, soft_wrap=True)
    if not all(report.exact for report in reports.values()):
        raise typer.Exit(1)


def _patterns(regex: list[str] | None, named: list[str] | None) -> dict[str, str]:
    from pdssm_compiler.automata import DEFAULT_PATTERNS
    from pdssm_compiler.runtime.errors import ArgumentError

    chosen: dict[str, str] = {}
    for name in named or ([] if regex else list(DEFAULT_PATTERNS)):
        if name not in DEFAULT_PATTERNS:
            raise ArgumentError(
                f"unknown pattern {name!r}; known: {', '.join(DEFAULT_PATTERNS)}; or give your "
                f"own with --regex"
            )
        chosen[name] = DEFAULT_PATTERNS[name].pattern
    for text in regex or []:
        chosen[text] = text
    return chosen


def _table(reports: dict) -> Table:  # type: ignore[type-arg]
    table = new_table(
        "pattern", "backward K×N", "forward K×N", "matches", "MB/s", "× torch loop", "check"
    )
    for name, report in reports.items():
        if report.exact:
            check = "every state and match"
        else:
            texts = f", matches in {report.wrong_texts[0]}" if report.wrong_texts else ""
            check = f"WRONG: {report.wrong_states} states{texts}"
        table.add_row(
            name,
            "×".join(map(str, report.backward)),
            "×".join(map(str, report.forward)),
            str(report.matches),
            f"{report.bytes_per_second / 1e6:.1f}",
            f"{report.loop_ratio:.0f}",
            check,
        )
    return table


def _plot(reports: dict, device: str, path: Path) -> None:  # type: ignore[type-arg]
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(reports)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 0.6 * len(names) + 2.2))
    left.barh(names, [r.bytes_per_second / 1e6 for r in reports.values()], color="tab:blue")
    left.set_xlabel(f"text through both scans, MB/s, {device}")
    right.barh(names, [r.loop_ratio for r in reports.values()], color="tab:orange")
    right.set_xlabel("times the speed of a plain torch loop")
    right.set_yticks([])
    for axes in (left, right):
        axes.bar_label(axes.containers[0], fmt="%.0f", padding=3)
        axes.margins(x=0.15)
        axes.invert_yaxis()
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise PlotError(f"cannot write the plot to {path}: {error}; choose --plot") from None
    finally:
        pyplot.close(figure)
