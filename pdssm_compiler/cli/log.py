"""``pdssm-compiler log``: what the tuning logs say, and clearing the user's own."""

from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap
from typing import Annotated

import typer

from pdssm_compiler.cli.consoles import messages, results
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.tuning.log import (
    files_below,
    is_predicted,
    programs_below,
    read_log,
    shipped_logs,
    user_logs,
)
from pdssm_compiler.runtime.tuning.rows import Row
from pdssm_compiler.runtime.tuning.winners import winners

app = typer.Typer(
    help="The tuning logs: list what they say, clear this user's own.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

# A terminal that is narrower breaks lines by itself.
_NARROWEST = 40

Folder = Annotated[
    str | None, typer.Option(help="Only the logs of one device: their folder, as ls prints it.")
]


@app.command("ls")
def list_logs(device: Folder = None) -> None:
    """List the winner of each program and bucket of sizes: of this user's logs, which tune and
    predictions have left, then of those shipped with the package. Lines that are no rows are told
    of.
    """
    roots = {"this user's": user_logs(), "shipped": shipped_logs()}
    if device is not None and not any(_folders(root, device) for root in roots.values()):
        every = {name for root in roots.values() for name in _folders(root, None)}
        known = ", ".join(sorted(every))
        raise ArgumentError(f"no logs of {device!r}; there are those of {known or 'none'}")
    console, wrong = results(), list[str]()
    for told, root in roots.items():
        folders = _folders(root, device)
        if not folders:
            of = "" if device is None else f" of {device}"
            console.print(f"{told}: none{of} in {root}", soft_wrap=True)
        for folder, paths in folders.items():
            console.print(f"{told}: {folder}", soft_wrap=True, highlight=False)
            for path in paths:
                rows, damaged = read_log(path)
                wrong += damaged
                for line in _lines(path, rows):
                    # No table: in a terminal, the cell of a config would be tall.
                    for part in wrap(
                        line, max(_NARROWEST, console.width),
                        initial_indent="  ", subsequent_indent="    ",
                    ):  # fmt: skip
                        console.print(part, soft_wrap=True, highlight=False)
    for line in wrong:
        messages().print(line, highlight=False, soft_wrap=True)


@app.command("clear")
def clear(
    device: Folder = None,
    everything: Annotated[bool, typer.Option("--all", help="Those of all devices.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove logs and predictions of this user; calls take what is shipped, or heuristics, until
    something is tuned again. What is shipped stays, and so does the cache of kernels.
    """
    if (device is None) is not everything:
        raise ArgumentError("say what to remove: either --device, a folder of log ls, or --all")
    root = user_logs()
    paths = [path for paths in _folders(root, device).values() for path in paths]
    if device is not None and not paths:
        known = ", ".join(_folders(root, None)) or "none"
        raise ArgumentError(f"no logs of {device!r} in {root}; there are those of {known}")
    if not yes:
        typer.confirm(f"remove {_files(len(paths))} of {root}?", abort=True)
    try:
        # What a program is says nothing without its rows.
        for path in [*paths, *(programs_below(root) if everything else ())]:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise ArgumentError(f"cannot remove all of {root}: {error}") from None
    typer.echo(f"removed {_files(len(paths))}")


def _folders(root: Path, device: str | None) -> dict[str, list[Path]]:
    """The files of rows, by their folder."""
    found: dict[str, list[Path]] = {}
    for path in files_below(root):
        if device in (None, path.parent.name):
            found.setdefault(path.parent.name, []).append(path)
    return found


def _lines(path: Path, rows: list[Row]) -> Iterator[str]:
    """A log's winners."""
    predicted = is_predicted(path)
    best = winners(rows, predicted)
    for row in best:
        config = " ".join(f"{name}={value}" for name, value in row.config.items())
        threads = f" on {row.threads} threads" if row.threads else ""
        sizes = f"B={row.batch} T={row.length} H={row.heads}"
        # What the sizes are is said once.
        what = f"{row.label.removeprefix(f'{sizes}: ')} {row.direction}, {sizes}{threads}"
        ms = row.predicted_ms if predicted else row.ms
        time = f"{ms:.4g} ms {'predicted' if predicted else 'measured'} {row.date[:10]}"
        yield _plain(f"{what}: {time}, {row.template} {config}")
    if not best:
        yield f"{path.name}: none, nothing right among {len(rows)} rows"


def _plain(line: str) -> str:
    """A line that does nothing to a terminal, whoever wrote the log."""
    return "".join(c if c.isprintable() else "?" for c in line)


def _files(count: int) -> str:
    return f"{count} file{'' if count == 1 else 's'}"
