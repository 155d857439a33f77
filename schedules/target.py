"""Targets: what a device can do, as data.

A target is queried (:func:`cpu_target`, :func:`gpu_target`), named (:func:`named_target`) or
described in a file (:func:`described_target`), so that kernels can be made for a device that is
absent. Nothing else tells one GPU from another.
"""

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from pdssm_compiler.ir.errors import PdssmError, shown
from pdssm_compiler.schedules.descriptions import SUFFIX, description_text, read_description

Kind = Literal["cpu", "cuda", "hip", "other"]


class UnknownTargetError(PdssmError, ValueError):
    """No target of that name."""


@dataclass(frozen=True)
class Target:
    """One kind of device.

    Attributes:
        kind: ``cpu``, ``cuda``, ``hip``, or ``other`` for what only torch knows (``mps``, …).
        arch: ``sm_90``, ``gfx942``, a CPU's name as LLVM knows it, or torch's name of an other
            device.
        features: LLVM feature flags of a CPU, for the kernel key; "" for the arch's own.
        warp_size: threads that run in step.
        processors: streaming multiprocessors, compute units or cores.
        registers: 32-bit registers a thread may have.
        shared_memory: bytes of shared memory a program may use.
        name: the device's name, by which tuning logs know it; "" where only the arch is known.
        bandwidth: bytes a second between the device and its memory; 0 where it is not known.
    """

    kind: Kind
    arch: str
    features: str = ""
    warp_size: int = 1
    processors: int = 1
    registers: int = 0
    shared_memory: int = 0
    name: str = ""
    bandwidth: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.arch}"


_DESCRIPTIONS = Path(__file__).parent / "targets"


@cache
def named_targets() -> Mapping[str, Target]:
    """The GPUs that have a name: those whose descriptions are part of the package. Architectures,
    with the figures of the largest part sold, and single models.
    """
    found = {path.stem: described_target(path) for path in _DESCRIPTIONS.glob(f"*{SUFFIX}")}
    # Architectures first, each before the models of it.
    order = sorted(found, key=lambda n: (n != found[n].arch, found[n].kind, len(n), n))
    return MappingProxyType({name: found[name] for name in order})


def named_target(name: str) -> Target:
    """A target by name: ``cpu`` (this machine's), an architecture such as ``sm_90``, or a model
    such as ``h200``.

    Raises:
        UnknownTargetError: no such name; the message lists those there are.
    """
    if name == "cpu":
        return cpu_target()
    if name not in named_targets():
        raise unknown_target(name, ["cpu", *named_targets()])
    return named_targets()[name]


def unknown_target(name: str, known: list[str]) -> UnknownTargetError:
    """The error for a name that is not known."""
    return UnknownTargetError(
        f"unknown target {shown(name)}; known targets: {', '.join(known)}, and the path of a "
        f"description, ending in {SUFFIX}"
    )


def described_target(path: Path) -> Target:
    """The GPU that a file describes (:mod:`pdssm_compiler.schedules.descriptions`).

    Raises:
        DescriptionError: the file cannot be read, or something in it is not allowed.
    """
    return Target(**read_description(path))


def describe(target: Target, comment: str = "") -> str:
    """The description of a GPU, to be written to a file; what is not known is left out, and must
    be filled in.
    """
    fields = {name: value for name, value in asdict(target).items() if value}
    return description_text(fields, comment)


def cpu_target() -> Target:
    """This machine's processor.

    Its features stand in for its name: LLVM resolves the name when a kernel is compiled, and a
    warm start must not load LLVM to learn it.
    """
    told = _cpu_info()
    features = told.get("flags", told.get("Features"))
    name = told.get("model name") or platform.processor() or platform.machine()
    flags = platform.processor() if features is None else " ".join(sorted(features.split()))
    return Target("cpu", platform.machine(), flags, name=name)


def _cpu_info() -> dict[str, str]:
    """What Linux says of the first processor."""
    found: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            for line in lines:
                if not line.strip():
                    break
                key, _, value = line.partition(":")
                found[key.strip()] = value.strip()
    except OSError:
        pass
    return found


def gpu_target(
    kind: Kind,
    arch: str,
    warp_size: int,
    processors: int,
    shared_memory: int,
    name: str = "",
    bandwidth: int = 0,
) -> Target:
    """A target for a GPU that was queried; limits the query does not give come from the named
    target of the same architecture, or from the smallest one. Bandwidth alone is not guessed.
    """
    known = named_targets()
    like = known.get(arch, known["sm_80" if kind == "cuda" else "gfx90a"])
    return Target(
        kind, arch, "", warp_size, processors, like.registers, shared_memory, name, bandwidth
    )
