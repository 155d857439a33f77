"""``pdssm-compiler compile``: kernels for named targets, present or not."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pdssm_compiler.cli import options as o
from pdssm_compiler.cli.consoles import new_table, results
from pdssm_compiler.spec import ScanSpec

if TYPE_CHECKING:
    from pdssm_compiler.compiled import CompiledScan
    from pdssm_compiler.runtime.entries import Files
    from pdssm_compiler.schedules.source import KernelSource


@o.takes_spec
def compile_command(
    spec: ScanSpec,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="cpu, cuda, a GPU that targets lists (sm_90, h200, …) or a file that describes "
            "one; may be given several times."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "--out",
            help="A folder to save kernels to, for calls of all sizes, on machines that compile "
            "none, and which calls take which: PDSSM_KERNELS names it there.",
        ),
    ] = None,
    template: o.Template = None,
    initial_state: o.InitialState = False,
    final_state: o.FinalState = False,
    packed: o.Packed = False,
    reverse: o.Reverse = False,
) -> None:
    """Compile the forward and backward kernels of a specification, and say what they take."""
    from pdssm_compiler.compiled import compile
    from pdssm_compiler.runtime.backends import BACKENDS

    columns = ("registers", "spilled", "shared_bytes", "barriers")
    table = new_table("target", "kernel", "template", "config", "bytes", *columns)
    needs = {}
    for name in target or [None]:  # type: ignore[list-item]
        compiled = compile(
            spec,
            name,
            config=template,
            initial_state=initial_state,
            output_final_state=final_state,
            packed=packed,
            reverse=reverse,
        )
        for kind, source, files in _kernels(compiled, out):
            backend = BACKENDS[source.backend]
            found = backend.load(source, 0, files).resources()
            config = " ".join(f"{key}={value}" for key, value in source.config.items())
            size = sum(map(len, files.values()))
            cells = (str(found.get(column, "")) for column in columns)
            table.add_row(str(compiled.target), kind, source.template, config, str(size), *cells)
            needs[source.backend] = backend.needs(files)
    results().print(table)
    if out is not None:
        typer.echo(f"kernels, and manifests of which calls take which, saved to {out}")
        typer.echo("besides torch and this pdssm-compiler they need")
        for backend_name, needed in needs.items():
            typer.echo(f"{backend_name}: {needed}")


def _kernels(
    compiled: "CompiledScan", out: Path | None
) -> list[tuple[str, "KernelSource", "Files"]]:
    """What a scan has been compiled to; all that is saved, if anything is."""
    if out is not None:
        return [(saved.kind, saved.source, saved.files) for saved in compiled.save(out)]
    return [
        ("forward", compiled.source, compiled.files),
        ("backward", compiled.backward_source, compiled.backward_files),
    ]
