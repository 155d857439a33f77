"""``pdssm-compiler cache``: what it holds, why a kernel is not in it, clearing it."""

import re
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from pdssm_compiler.cli import options as o
from pdssm_compiler.cli.consoles import new_table, results
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.spec import ScanSpec

if TYPE_CHECKING:
    from pdssm_compiler.runtime.cache import KernelCache
    from pdssm_compiler.runtime.inventory import StoredKernel, WantedKernel

app = typer.Typer(
    help="The kernel cache: list it, explain misses, clear it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
# As many letters of a hash as tell two apart.
_LETTERS = 12


@app.command("ls")
def list_entries() -> None:
    """List what is in the cache, the most recently used first."""
    from pdssm_compiler.runtime.inventory import inventory

    cache = _cache()
    columns = ("key", "program", "template", "target", "size", "made", "used", "versions")
    table = new_table(*columns, title=Text(str(cache.root)))
    stored = inventory(cache)
    for kernel in stored:
        table.add_row(
            kernel.folder.name[:_LETTERS],
            Text(kernel.problem or f"{kernel.program} {_short(kernel)}"),
            str(kernel.key.get("template", "")),
            str(kernel.key.get("target", "")),
            decimal(kernel.bytes),
            _ago(kernel.made),
            _ago(kernel.used),
            _versions(kernel),
        )
    console = results()
    console.print(table)
    total = decimal(sum(cache.unused().values()))
    console.print(f"{_entries(len(stored))}, {total} of {decimal(cache.limit)}")


@app.command("explain")
@o.takes_spec
def explain(
    spec: ScanSpec,
    target: Annotated[
        str | None, typer.Option(help="cpu, cuda, or an architecture such as sm_90 or gfx942.")
    ] = None,
    template: o.Template = None,
    initial_state: o.InitialState = False,
    final_state: o.FinalState = False,
    packed: o.Packed = False,
    reverse: o.Reverse = False,
    entries: Annotated[
        int, typer.Option(min=1, help="How many entries to compare a miss with.")
    ] = 2,
) -> None:
    """Say which kernels of a specification are in the cache, for calls of any sizes, and of each
    that is not, in what the nearest entries differ from it. Nothing is compiled.
    """
    from pdssm_compiler.compiled import wanted_kernels
    from pdssm_compiler.runtime.inventory import inventory, state_of

    cache = _cache()
    stored = inventory(cache)
    wanted = wanted_kernels(
        spec,
        target,
        template,
        initial_state=initial_state,
        output_final_state=final_state,
        packed=packed,
        reverse=reverse,
    )
    columns = ("kernel", "template", "alignment", "key", "cache")
    table = new_table(*columns, title=Text(str(cache.root)))
    misses = []
    for kernel in wanted:
        key, state = kernel.key, state_of(cache, kernel.key)
        cells = (kernel.kind, key.template, str(key.alignment), key.digest[:_LETTERS])
        table.add_row(*cells, Text(state))
        if state == "miss":
            misses.append(_miss(kernel, stored, entries))
    console = results()
    console.print(table)
    for miss in misses:
        console.print(miss)


@app.command("clear")
def clear(
    older_than: Annotated[
        str | None,
        typer.Option(help="Remove what was not used for so long: 90s, 15m, 12h, 30d or 8w."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove all there is.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove kernels from the cache. Processes that run them are not disturbed."""
    if (older_than is None) is not everything:
        raise ArgumentError("say what to remove: either --older-than, such as 30d, or --all")
    cache = _cache()
    seconds = 0.0 if older_than is None else _seconds(older_than)
    going = cache.unused(seconds)
    if not yes:
        said = f"remove {_entries(len(going))}, {decimal(sum(going.values()))}, of {cache.root}?"
        typer.confirm(said, abort=True)
    typer.echo(f"removed {_entries(cache.clear(seconds))}")


def _cache() -> "KernelCache":
    from pdssm_compiler.runtime import settings
    from pdssm_compiler.runtime.cache import default_cache

    cache = default_cache()
    if cache is None:
        raise ArgumentError(f"the cache is off: {settings.CACHE_ENABLED}=0; unset it")
    return cache


def _miss(wanted: "WantedKernel", stored: "list[StoredKernel]", entries: int) -> Table | str:
    """A table of what is wanted beside what is there."""
    from pdssm_compiler.runtime.inventory import differences, nearest

    title = f"{wanted.kind} {wanted.key.template} {wanted.key.digest[:_LETTERS]}"
    near = nearest(wanted, stored)[:entries]
    if not near:
        return f"{title}: there is nothing to compare it with"
    names = (f"{kernel.folder.name[:_LETTERS]}\n{kernel.program}" for kernel in near)
    table = new_table("differs in", f"wanted\n{wanted.program}", *names, title=title)
    found = [differences(wanted.key, kernel) for kernel in near]
    for name in dict.fromkeys(name for each in found for name in each):
        (mine, *_) = (each[name][0] for each in found if name in each)
        there = (each[name][1] if name in each else "the same" for each in found)
        table.add_row(name, _cut(mine), *map(_cut, there))
    return table


def _cut(value: str) -> str:
    """A value as it fits a table: hashes by their first letters."""
    return value[:_LETTERS] if re.fullmatch("[0-9a-f]{64}", value) else value


def _short(kernel: "StoredKernel") -> str:
    """As many letters of the program's fingerprint as tell it from others."""
    return str(kernel.key.get("program", ""))[:8]


def _versions(kernel: "StoredKernel") -> str:
    told = [kernel.key.get(name, "") for name in ("compilers", "loaders", "cuda_compiler")]
    ours = [f"pdssm-compiler={kernel.version}"] if kernel.version else []
    return " ".join([*ours, *filter(None, told)])


def _entries(count: int) -> str:
    return f"{count} entr{'y' if count == 1 else 'ies'}"


def _ago(seconds: float) -> str:
    """A time in the largest unit that it has one of."""
    unit = max((u for u in _UNITS if _UNITS[u] <= seconds), key=lambda u: _UNITS[u], default="s")
    return f"{seconds / _UNITS[unit]:.0f} {unit}"


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if found is None or not float(found[1]):
        raise ArgumentError(
            f"--older-than is a number and s, m, h, d or w, such as 30d, not {text!r}"
        )
    return float(found[1]) * _UNITS[found[2]]
