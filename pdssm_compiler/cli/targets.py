"""``pdssm-compiler targets`` and ``describe``: GPUs that are known, and a start for others."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

from pdssm_compiler.cli.consoles import new_table, results
from pdssm_compiler.ir.errors import PdssmError
from pdssm_compiler.schedules.descriptions import bandwidth_text, shared_memory_text
from pdssm_compiler.schedules.target import Target, named_targets
from pdssm_compiler.schedules.target import describe as description_of

_COMMENT = """\
What kernels for this GPU are chosen by: see docs/targets.md. Use it as
pdssm-compiler compile --target THIS_FILE --output FOLDER"""


class TargetCommandError(PdssmError, OSError):
    """There is no GPU to describe, or its description cannot be written."""


def targets() -> None:
    """List the GPUs that have a name: what is known of each, and what --target takes."""
    console = results()
    console.print(target_table(dict(named_targets())))
    console.print(
        "--target also takes cpu, cuda, cuda:1, and a file like those that describe writes"
    )


def target_table(described: dict[str, Target]) -> Table:
    """Targets by what they are called."""
    table = new_table("target", "device", "architecture", title="Targets")
    for heading in ("processors", "warp", "registers", "shared memory", "bandwidth"):
        table.add_column(heading, justify="right", overflow="fold")
    for called, target in described.items():
        memory, rate = target.shared_memory, target.bandwidth
        table.add_row(
            called,
            target.name,
            str(target),
            str(target.processors),
            str(target.warp_size),
            str(target.registers),
            shared_memory_text(memory) if memory else "",
            bandwidth_text(rate) if rate else "",
        )
    return table


def describe(
    target: Annotated[
        str | None,
        typer.Argument(
            help="cuda:1, a name that targets lists, or another description. Without "
            "it, the first GPU that is here."
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="A file to write, ending in .toml.")] = None,
) -> None:
    """Write the description of a GPU, the one that is here or a known one, as a start for that of
    another: change what differs, and name the file wherever a target is named.
    """
    from pdssm_compiler.runtime.devices import find_target

    if target is None and not torch.cuda.is_available():
        raise TargetCommandError(
            "torch sees no GPU to describe; name a known one to start from, such as h100 "
            "(pdssm-compiler targets lists them)"
        )
    found = find_target("cuda" if target is None else target)
    if found.kind not in ("cuda", "hip"):
        raise TargetCommandError(
            f"{found} is no GPU, and has no description; name a GPU that pdssm-compiler targets "
            f"lists"
        )
    text = description_of(found, _COMMENT)
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        # What is there is somebody's work.
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise TargetCommandError(
            f"cannot write {output}: {error.strerror}; name a new file in a folder that can be "
            f"written"
        ) from None
    typer.echo(f"{found.name or found} described in {output}")
