"""What ran, and why: the plans of this process, told."""

import json
from dataclasses import dataclass

from pdssm_compiler.runtime.compile_service import BuiltKernel
from pdssm_compiler.runtime.key import KernelKey
from pdssm_compiler.runtime.plan import Plan, plans

_ORIGINS = {
    "compiled": "compiled",
    "disk": "loaded from the disk cache",
    "deployed": "loaded as compiled ahead of time",
}


@dataclass(frozen=True)
class Explanation:
    """One kernel of this process.

    Attributes:
        program: the program's text form, as it was asked for.
        device: the torch device.
        target: what it was compiled for.
        template, config, reason: the schedule, and why it was taken.
        origin: ``compiled`` in this process; loaded from ``disk``, the cache; or ``deployed``:
            loaded from a folder of kernels compiled ahead of time.
        seconds: what that took.
        key: the kernel's key.
    """

    program: str
    device: str
    target: str
    template: str
    config: str
    reason: str
    origin: str
    seconds: float
    key: KernelKey

    def __str__(self) -> str:
        first = self.program.splitlines()[0]
        origin = _ORIGINS[self.origin]
        return (
            f"{first} on {self.device} ({self.target}): {self.template} {self.config}, by "
            f"{self.reason}; {origin} in {self.seconds * 1e3:.0f} ms; key {self.key.digest[:12]}"
        )


def explain_kernel(plan: Plan, built: BuiltKernel) -> Explanation:
    """The story of one kernel of a plan."""
    return Explanation(
        program=plan.program.text,
        device=str(plan.device),
        target=str(built.source.target),
        template=built.schedule.template.name,
        config=json.dumps(built.source.config, sort_keys=True),
        reason=built.schedule.reason,
        origin=built.origin,
        seconds=built.seconds,
        key=built.key,
    )


def explain() -> list[Explanation]:
    """Every kernel this process has called so far, oldest first."""
    return [explain_kernel(plan, built) for plan in plans() for built in plan.kernels.built]
