"""Targets: what a device can do, as data.

A target is queried (:func:`cpu_target`, :func:`gpu_target`) or named (:func:`named_target`), so
that kernels can be made for a device that is absent. Nothing else tells one GPU from another.
"""

import platform
from dataclasses import dataclass
from typing import Literal

from pdssm_compiler.ir.errors import PdssmError

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
    """

    kind: Kind
    arch: str
    features: str = ""
    warp_size: int = 1
    processors: int = 1
    registers: int = 0
    shared_memory: int = 0
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.arch}"


_KIB = 1024

# Shared memory is what one program may use, from each architecture's published limits; the number
# of processors is that of the largest part sold.
NAMED_TARGETS: dict[str, Target] = {
    target.arch: target
    for target in (
        Target("cuda", "sm_80", "", 32, 108, 255, 163 * _KIB),
        Target("cuda", "sm_86", "", 32, 84, 255, 99 * _KIB),
        Target("cuda", "sm_89", "", 32, 142, 255, 99 * _KIB),
        Target("cuda", "sm_90", "", 32, 132, 255, 227 * _KIB),
        Target("cuda", "sm_100", "", 32, 148, 255, 227 * _KIB),
        Target("cuda", "sm_120", "", 32, 188, 255, 99 * _KIB),
        Target("hip", "gfx90a", "", 64, 110, 512, 64 * _KIB),
        Target("hip", "gfx942", "", 64, 304, 512, 64 * _KIB),
    )
}


def named_target(name: str) -> Target:
    """A target by name: ``cpu`` (this machine's), or an architecture such as ``sm_90``.

    Raises:
        UnknownTargetError: no such name; the message lists those there are.
    """
    if name == "cpu":
        return cpu_target()
    if name not in NAMED_TARGETS:
        known = ", ".join(["cpu", *NAMED_TARGETS])
        raise UnknownTargetError(f"unknown target {name!r}; known targets: {known}")
    return NAMED_TARGETS[name]


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
    kind: Kind, arch: str, warp_size: int, processors: int, shared_memory: int, name: str = ""
) -> Target:
    """A target for a GPU that was queried; limits the query does not give come from the named
    target of the same architecture, or from the smallest one.
    """
    like = NAMED_TARGETS.get(arch, NAMED_TARGETS["sm_80" if kind == "cuda" else "gfx90a"])
    return Target(kind, arch, "", warp_size, processors, like.registers, shared_memory, name)
