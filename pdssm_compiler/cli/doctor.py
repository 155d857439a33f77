"""``pdssm-compiler doctor``: what is here and what works, found by trying."""

import importlib.metadata
import platform
import shutil

import torch
import typer
from rich.table import Table

from pdssm_compiler.cli.consoles import results

_PACKAGES = ("torch", "triton", "apache-tvm", "apache-tvm-ffi", "apache-tvm-ffi-orcjit", "numpy")


def doctor() -> None:
    """Say which devices, packages, caches and toolchains are here, and whether scans work on
    each device. Exit status 1 if one does not.
    """
    console = results()
    console.print(_packages())
    console.print(_cache())
    works, table = _devices()
    console.print(table)
    console.print(_toolchains())
    if not works:
        raise typer.Exit(1)


def _packages() -> Table:
    table = Table("package", "version", title="Packages")
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

    table = Table("", "", title="Kernel cache", show_header=False)
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


def _devices() -> tuple[bool, Table]:
    from pdssm_compiler.runtime.backends import BACKENDS
    from pdssm_compiler.runtime.devices import target_of

    table = Table("device", "target", "backend", "state", title="Devices")
    devices = [torch.device("cpu")]
    devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    all_work = True
    for device in devices:
        target = target_of(device)
        backends = dict.fromkeys(t.backend for t in TEMPLATES.values() if target.kind in t.kinds)
        for backend in backends:
            # A backend that is missing is told; what its device then runs is another's row.
            problem = BACKENDS[backend].unavailable() or _try(device, backend)
            all_work = all_work and problem is None
            state = "works: a scan and its gradients agree with the reference"
            table.add_row(str(device), str(target), backend, problem or state)
    if len(devices) == 1:
        table.add_row("GPU", "", "", "none that torch can see; kernels compile all the same")
    return all_work, table


def _try(device: torch.device) -> str | None:
    """None if a small scan and its gradients are right, otherwise what happened."""
    from pdssm_compiler.ir.errors import PdssmError
    from pdssm_compiler.verification import default_spec, verify_spec

    try:
        worst = verify_spec(default_spec(), device, seed=0).worst
    except (PdssmError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return None if worst <= 1 else f"wrong: {worst:.1f} times the allowed error"


def _toolchains() -> Table:
    table = Table("tool", "found", "needed for", title="Toolchains")
    compiler = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    table.add_row("C compiler", compiler or "no", "Triton's launcher on a GPU; nothing on a CPU")
    table.add_row("nvcc", "yes" if shutil.which("nvcc") else "no", "nothing")
    return table
