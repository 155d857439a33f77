"""``pdssm-compiler doctor``: what is here and what works, found by trying."""

import importlib.metadata
import platform
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from rich.table import Table

from pdssm_compiler.cli.consoles import new_table, results
from pdssm_compiler.cli.targets import target_table

if TYPE_CHECKING:
    from pdssm_compiler.schedules.target import Target

_PACKAGES = ("torch", "triton", "apache-tvm", "apache-tvm-ffi", "apache-tvm-ffi-orcjit", "numpy")
_KINDS = {"cpu": "CPUs", "cuda": "NVIDIA GPUs", "hip": "AMD GPUs", "other": "all that torch has"}


def doctor(
    target: Annotated[
        str | None,
        typer.Option(
            help="Only say what there is for this one: a GPU such as sm_90, or a file "
            "that describes one."
        ),
    ] = None,
) -> None:
    """Say which devices, packages, caches and backends are here, what can be compiled and run, and
    whether scans work on each device. Exit status 1 if one does not, or only by plain PyTorch.

    With --target, what is known of it, which templates can run scans there, and whether they
    compile. Exit status 1 if none does.
    """
    console = results()
    if target is not None:
        _examine(target)
        return
    console.print(_packages())
    console.print(_cache())
    console.print(_backends())
    console.print(_capabilities())
    works, table = _devices()
    console.print(table)
    if not works:
        raise typer.Exit(1)


def _packages() -> Table:
    table = new_table("package", "version", title="Packages")
    table.add_row("python", f"{platform.python_version()} on {platform.platform()}")
    for name in ("pdssm-compiler", *_PACKAGES):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "missing"
        table.add_row(name, version)
    return table


def _cache() -> Table:
    from pdssm_compiler.runtime import settings
    from pdssm_compiler.runtime.cache import default_cache
    from pdssm_compiler.runtime.deployed import deployed

    table = new_table("", "", title="Kernel cache", show_header=False)
    for kernels in deployed():
        count = len(list(kernels.keys()))
        table.add_row("ahead of time", f"{count} kernels in {kernels.root}")
        for manifest in kernels.manifests:
            for_ = " ".join(filter(None, (str(manifest.target), manifest.target.name)))
            table.add_row("", f"{len(manifest.programs)} programs with choices for {for_}")
    cache = default_cache()
    if cache is None:
        table.add_row("disk cache", f"off ({settings.CACHE_ENABLED}=0)")
        return table
    entries = cache.entries()
    table.add_row("folder", str(cache.root))
    table.add_row("entries", str(len(entries)))
    table.add_row("bytes", f"{sum(size for _, _, size in entries)} of {cache.limit}")
    table.add_row("writable", cache.writable() or "yes")
    return table


def _backends() -> Table:
    from pdssm_compiler.runtime.backends import BACKENDS
    from pdssm_compiler.schedules.registry import TEMPLATES

    table = new_table("backend", "templates", "for", title="Backends")
    for name in BACKENDS:
        templates = [t for t in TEMPLATES.values() if t.backend == name]
        kinds = dict.fromkeys(_KINDS[kind] for t in templates for kind in t.kinds)
        table.add_row(name, ", ".join(t.name for t in templates), ", ".join(kinds))
    return table


def _capabilities() -> Table:
    from pdssm_compiler.runtime.capabilities import capabilities

    table = new_table("way", "what it does", "possible", title="Possible here")
    for way, does, missing in capabilities():
        table.add_row(way, does, f"no: {missing}" if missing else "yes")
    return table


def _devices() -> tuple[bool, Table]:
    from pdssm_compiler.ir.passes import specialise
    from pdssm_compiler.ir.programs import pd_scan
    from pdssm_compiler.runtime.compile_service import choose
    from pdssm_compiler.runtime.devices import target_of
    from pdssm_compiler.verification import default_spec

    program = specialise(
        pd_scan(default_spec().program_spec(initial_state=True, final_state=True))
    )
    table = new_table("device", "target", "backend", "state", title="Devices")
    devices = [torch.device("cpu")]
    devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    all_work = True
    for device in devices:
        target = target_of(device)
        schedule = choose(program, target)
        backend, problem = schedule.template.backend, _try(device)
        state = problem or "works: a scan and its gradients agree with the reference"
        # Plain PyTorch in a compiler's stead is right and slow: something is to be installed.
        all_work = all_work and problem is None and backend != "torch"
        table.add_row(str(device), str(target), backend, f"{state}{_without(schedule.reason)}")
    if len(devices) == 1:
        table.add_row("GPU", "", "", "none that torch can see; kernels compile all the same")
    return all_work, table


def _examine(named: str) -> None:
    """What is known of a target, and what its kernels come to."""
    from pdssm_compiler.runtime.devices import find_target

    target = find_target(named)
    console = results()
    console.print(target_table({named: target}))
    works, table = _kernels_for(target)
    console.print(table)
    if not works:
        raise typer.Exit(1)


def _kernels_for(target: "Target") -> tuple[bool, Table]:
    """The templates that can run a scan there, and whether a kernel of each backend's can be made:
    one that can is enough.
    """
    from pdssm_compiler.ir.errors import PdssmError
    from pdssm_compiler.ir.passes import specialise
    from pdssm_compiler.ir.programs import pd_scan
    from pdssm_compiler.runtime.cache import default_cache
    from pdssm_compiler.runtime.compile_service import obtain
    from pdssm_compiler.runtime.key import key_of
    from pdssm_compiler.schedules.registry import candidates
    from pdssm_compiler.schedules.templates.base import Problem
    from pdssm_compiler.verification import default_spec

    table = new_table("backend", "templates that can run it", "state", title="Kernels of a scan")
    program = specialise(
        pd_scan(default_spec().program_spec(initial_state=True, final_state=True))
    )
    found = [each for each in candidates(program, target, Problem()) if each.problem is None]
    works = False
    for backend in dict.fromkeys(each.template.backend for each in found):
        mine = [each for each in found if each.template.backend == backend]
        source = mine[0].template.lower(program, target, mine[0].config)
        try:
            files, _ = obtain(source, key_of(source, 0), 0, default_cache())
            state = f"{source.template} compiles, {sum(map(len, files.values()))} bytes"
            works = True
        except (PdssmError, RuntimeError) as error:
            state = f"{type(error).__name__}: {error}"
        table.add_row(backend, ", ".join(each.template.name for each in mine), state)
    return works, table


def _without(reason: str) -> str:
    """What a schedule's reason says besides that it is the heuristic's."""
    missing = reason.removeprefix("heuristic").lstrip(":; ")
    return f"; {missing}" if missing else ""


def _try(device: torch.device) -> str | None:
    """None if a small scan and its gradients are right, otherwise what happened."""
    from pdssm_compiler.ir.errors import PdssmError
    from pdssm_compiler.verification import default_spec, verify_spec

    try:
        worst = verify_spec(default_spec(), device, seed=0).worst
    except (PdssmError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return None if worst <= 1 else f"wrong: {worst:.1f} times the allowed error"
