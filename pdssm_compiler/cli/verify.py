"""``pdssm-compiler verify``: kernels against the oracle on this device."""

from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pdssm_compiler.cli import options as o


def verify(
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Random inputs for each specification.")] = 3,
    state_size: Annotated[
        int | None,
        typer.Option("--state-size", "-N", help="Verify one specification instead of the set."),
    ] = None,
    dictionary_size: o.DictionarySize = 32,
    dtype: o.DtypeOption = o.Dtype.complex64,
    payload_dtype: o.PayloadOption = None,
    map_source: o.MapSourceOption = o.MapSource.dictionary,
    map_class: o.MapClassOption = o.MapClass.general,
    orientation: o.OrientationOption = o.Orientation.column,
) -> None:
    """Compare values and gradients with the reference in complex128; exit status 1 if any error
    is above the bound |out - ref| ≤ c·ε·s.
    """
    from pdssm_compiler.cli.device import device_of
    from pdssm_compiler.runtime.faults import check
    from pdssm_compiler.verification import default_specs, verify_spec

    where = device_of(device)
    specs = default_specs()
    if state_size is not None:
        specs = [
            o.spec_of(
                state_size,
                dictionary_size,
                dtype,
                payload_dtype,
                map_source,
                map_class,
                orientation,
            )
        ]
    table = Table("specification", "values", "gradients", "check", title=f"verify on {where}")
    wrong = 0
    for spec in track(specs, "verifying", console=Console(stderr=True), transient=True):
        found = [verify_spec(spec, where, seed) for seed in range(seeds)]
        values = max(item.values for item in found)
        gradients = max(item.gradients for item in found)
        right = max(values, gradients) <= 1
        wrong += not right
        payload = f" {spec.payload_dtype}" if spec.payload_dtype else ""
        maps = "" if spec.map_source == "none" else f" {spec.map_class} {spec.orientation}"
        size = f" K={spec.dictionary_size}" if spec.dictionary_size else ""
        name = f"N={spec.state_size}{size} {spec.map_source}{maps} {spec.dtype}{payload}"
        name = name.replace("torch.", "")
        table.add_row(name, f"{values:.3f}", f"{gradients:.3f}", "ok" if right else "WRONG")
    if where.type == "cuda":
        torch.cuda.synchronize(where)
    check()
    console = Console()
    console.print(table)
    console.print("errors are multiples of the allowed one")
    if wrong:
        console.print(f"{wrong} of {len(specs)} specifications are wrong")
        raise typer.Exit(1)
