"""``pdssm-compiler verify``: kernels against the oracle on this device."""

from typing import Annotated

import torch
import typer
from rich.progress import track

from pdssm_compiler.cli import options as o
from pdssm_compiler.cli.consoles import messages, new_table, results
from pdssm_compiler.spec import ScanSpec

# Small ones: what a kernel does at an edge, it does there.
_BATCH, _LENGTH, _HEADS = 2, 37, 3
# Of packed sequences: empty ones, one token, less and more than a chunk of some template.
LENGTHS = (5, 0, 1, 17, 0, 14, 0)


@o.takes_spec
def verify(
    spec: ScanSpec | None = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:1.")] = None,
    template: o.Template = None,
    batch: o.SomeBatch = None,
    length: o.SomeLength = None,
    heads: o.Heads = _HEADS,
    seeds: Annotated[int, typer.Option(min=1, help="Random inputs for each specification.")] = 3,
    packed: o.Packed = False,
    reverse: o.Reverse = False,
) -> None:
    """Compare values and gradients with the reference in complex128; exit status 1 if any error
    is above the bound |out - ref| ≤ c·ε·s. With --state-size one specification, otherwise a set;
    at small sizes, B=2 T=37 H=3, unless told. Of packed sequences, -B of -T tokens each if either
    is told, otherwise a few of several lengths.
    """
    from pdssm_compiler.cli.device import device_of
    from pdssm_compiler.runtime.faults import check
    from pdssm_compiler.verification import check_memory, default_specs, verify_spec

    where = device_of(device)
    specs = default_specs() if spec is None else [spec]
    told = batch is not None or length is not None
    sizes = (batch or _BATCH, length or _LENGTH, heads)
    at = "B={} T={} H={}".format(*sizes)
    lengths: tuple[int, ...] | None = None
    if packed and not told:
        at, lengths = f"packed H={heads}", LENGTHS
    else:
        for one in specs:
            check_memory(one, where, sizes, packed)
        if packed:
            at, lengths = f"packed {at}", (sizes[1],) * sizes[0]
    title = f"verify on {where}, {at}"
    table = new_table("specification", "values", "gradients", "check", title=title)
    wrong = 0
    console = messages()
    quiet = not console.is_terminal
    for one in track(specs, "verifying", console=console, transient=True, disable=quiet):
        found = [
            verify_spec(one, where, seed, sizes, template, lengths, reverse)
            for seed in range(seeds)
        ]
        values = max(item.values for item in found)
        gradients = max(item.gradients for item in found)
        right = max(values, gradients) <= 1
        wrong += not right
        check_ = "ok" if right else "WRONG"
        table.add_row(_name(one), f"{values:.3f}", f"{gradients:.3f}", check_)
    if where.type == "cuda":
        torch.cuda.synchronize(where)
    check()
    console = results()
    console.print(table)
    console.print("errors are multiples of the allowed one")
    if wrong:
        console.print(f"{wrong} of {len(specs)} specifications are wrong")
        raise typer.Exit(1)


def _name(spec: ScanSpec) -> str:
    payload = f" {spec.payload_dtype}" if spec.payload_dtype else ""
    maps = "" if spec.map_source == "none" else f" {spec.map_class} {spec.orientation}"
    size = f" K={spec.dictionary_size}" if spec.dictionary_size else ""
    name = f"N={spec.state_size}{size} {spec.map_source}{maps} {spec.dtype}{payload}"
    return name.replace("torch.", "")
