"""``pdssm-compiler compile``: kernels for named targets, present or not."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pdssm_compiler.cli import options as o
from pdssm_compiler.cli.consoles import results
from pdssm_compiler.ir.errors import PdssmError
from pdssm_compiler.spec import ScanSpec


@o.takes_spec
def compile_command(
    spec: ScanSpec,
    target: Annotated[
        list[str] | None,
        typer.Option(help="cpu, cuda, sm_90, gfx942, …; may be given several times."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A folder to write each kernel's files to.")
    ] = None,
    template: o.Template = None,
    initial_state: o.InitialState = False,
    final_state: o.FinalState = False,
) -> None:
    """Compile the forward and backward kernels of a specification, and say what they take."""
    from pdssm_compiler.compiled import compile
    from pdssm_compiler.runtime.backends import BACKENDS

    columns = ("registers", "spilled", "shared_bytes", "barriers")
    table = Table("target", "kernel", "template", "config", "bytes", *columns)
    for name in target or [None]:  # type: ignore[list-item]
        compiled = compile(
            spec,
            name,
            config=template,
            initial_state=initial_state,
            output_final_state=final_state,
        )
        for kind, source, files in (
            ("forward", compiled.source, compiled.files),
            ("backward", compiled.backward_source, compiled.backward_files),
        ):
            kernel = BACKENDS[source.backend].load(source, 0, files)
            found = kernel.resources()
            config = " ".join(f"{key}={value}" for key, value in source.config.items())
            size = sum(map(len, files.values()))
            cells = (str(found.get(column, "")) for column in columns)
            table.add_row(str(compiled.target), kind, source.template, config, str(size), *cells)
            if out is not None:
                _write(out / f"{compiled.target.arch}-{kind}", files)
    results().print(table)
    if out is not None:
        typer.echo(f"files written to {out}")


class OutputError(PdssmError, OSError):
    """The files could not be written."""


def _write(folder: Path, files: dict[str, bytes]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror}; choose --out") from None
