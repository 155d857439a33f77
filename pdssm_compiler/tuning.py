"""Tuning a scan for a device and sizes: :func:`tune`, and :func:`predict` for a GPU that is not
here.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pdssm_compiler.ir.errors import shown
from pdssm_compiler.runtime.devices import DEVICE_TYPES, find_target
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.tuning.effort import Effort
from pdssm_compiler.runtime.tuning.predict import Prediction, predict_problems
from pdssm_compiler.runtime.tuning.race import Result, Told
from pdssm_compiler.runtime.tuning.tuner import tune_problems
from pdssm_compiler.schedules.descriptions import SUFFIX
from pdssm_compiler.schedules.target import Target, named_targets
from pdssm_compiler.spec import ScanSpec
from pdssm_compiler.workloads import AnyWorkload, ProgramWorkload, Workload, check_workloads


def tune(
    workloads: ScanSpec | AnyWorkload | Sequence[AnyWorkload],
    *,
    batch: int | None = None,
    length: int | None = None,
    heads: int | None = None,
    directions: Sequence[str] = ("forward", "backward"),
    device: str | torch.device = "cpu",
    effort: str | Effort = "quick",
    budget: float | None = None,
    workers: int | None = None,
    commit: str | None = None,
    told: Told = lambda progress: None,
) -> list[Result]:
    """Measure candidates of all backends on a device; calls of the same sizes take the winners
    from then on, in this process and in others that use the same cache folder.

    What is measured is kept in a log as soon as it is known, and not measured again with the same
    versions: interrupt it, and call it again to go on. Where several processes tune the same, as
    ranks do, one measures, and all of them have its rows.

    Args:
        workloads: what to tune: a specification, whose sizes the next three give, or workloads,
            which have theirs.
        batch: ``B`` of a specification's calls.
        length: their ``T``.
        heads: their ``H``.
        directions: of a specification, as :class:`~pdssm_compiler.Workload` has them: among
            others ``"active"`` and ``"dense"`` (the backward of :func:`flash_pd_scan` by these
            surrogates) and ``"step"`` (one token, from a state to the next).
        device: a torch device.
        effort: ``"none"`` (says what calls take, measures nothing), ``"quick"``, ``"full"``.
        budget: seconds from now, also those that starting processes, waiting for others and
            compiling take; None for no end. The programs share it. What is being compiled or
            measured at the end is given up, but of each program that is begun, what the heuristic
            says is measured in any case.
        workers: processes that compile; 0 for this one, None for as many as there are processors.
        commit: of this package, for the log, where it has no history to ask.
        told: called with how far it is.

    Returns:
        One result a program, with the rows of its log.

    Raises:
        ArgumentError: sizes that are missing or not needed, an unknown direction, effort or
            device, a log that cannot be written.
        NoTemplateError: nothing can run a scan there.
        TuningTimeoutError: another process tunes the same, and does not go on.
    """
    if budget is not None and not (isinstance(budget, int | float) and 0 <= budget < float("inf")):
        raise ArgumentError(f"budget must be seconds, at least 0, or None, got {shown(budget)}")
    if workers is not None and not (isinstance(workers, int) and workers >= 0):
        raise ArgumentError(
            f"workers must be a whole number of at least 0, or None, got {shown(workers)}; 0 "
            f"compiles in this process"
        )
    where = _this_one(device)
    named = _named(workloads, batch, length, heads, directions)
    problems = [problem for each in named for problem in each.problems(where)]
    return tune_problems(
        problems, effort, budget=budget, workers=workers, commit=commit, told=told
    )


def predict(
    workloads: ScanSpec | AnyWorkload | Sequence[AnyWorkload],
    target: str | Path | Target,
    *,
    batch: int | None = None,
    length: int | None = None,
    heads: int | None = None,
    directions: Sequence[str] = ("forward", "backward"),
    commit: str | None = None,
) -> list[Prediction]:
    """Choose for a GPU that is not here by the cost model alone: every candidate that can run
    there is ranked by what was measured on other GPUs, and nothing is compiled or measured. What
    is compiled for that GPU from then on follows, for the same sizes, unless something was
    measured on it.

    Args:
        workloads: what to choose for; as :func:`tune` takes it.
        target: a GPU's architecture or model (``"h200"``), or the path of a file that describes
            one (``"my-gpu.toml"``).
        batch: ``B`` of a specification's calls.
        length: their ``T``.
        heads: their ``H``.
        directions: of a specification, as :func:`tune` takes them.
        commit: of this package, where it has no history to ask.

    Returns:
        One prediction a program: what was ranked, or why calls go on with the heuristic.

    Raises:
        ArgumentError: a target that is here, or no GPU; else as :func:`tune`.
        UnknownTargetError: a name that is not known.
        DescriptionError: a description that cannot be read, or says what is not allowed.
        NoTemplateError: nothing can run a scan there.
    """
    absent = _absent(target)
    named = _named(workloads, batch, length, heads, directions)
    problems = [
        replace(problem, absent=absent)
        for each in named
        for problem in each.problems(torch.device("cpu"))
    ]
    return predict_problems(problems, commit=commit)


def _absent(target: str | Path | Target) -> Target:
    """The GPU that a target names, which need not be here.

    Raises:
        ArgumentError: a device of this machine, or no GPU.
    """
    found = find_target(target)
    described = isinstance(target, Path | Target) or str(target).endswith(SUFFIX)
    if not described and str(target) not in named_targets():
        raise ArgumentError(
            f"the target {shown(target)} is a device of this machine: measure on it, with tune "
            f"(--device); a prediction is for a GPU that has a name or a description"
        )
    if found.kind not in ("cuda", "hip"):
        raise ArgumentError(f"{found} is no GPU, and the cost model knows only GPUs")
    return found


def _named(
    workloads: ScanSpec | AnyWorkload | Sequence[AnyWorkload],
    batch: int | None,
    length: int | None,
    heads: int | None,
    directions: Sequence[str],
) -> Sequence[AnyWorkload]:
    """Workloads, whichever way they were told.

    Raises:
        ArgumentError: sizes that are missing or not needed, an unknown direction.
    """
    if isinstance(workloads, ScanSpec):
        if batch is None or length is None or heads is None:
            raise ArgumentError("tuning needs the sizes of a specification: batch, length, heads")
        if isinstance(directions, str):
            raise ArgumentError(
                f"directions are several, got {directions!r}; pass ({directions!r},)"
            )
        return [Workload(workloads, batch, length, heads, directions=tuple(directions))]
    if not (batch is length is heads is None):
        raise ArgumentError("workloads have sizes of their own; leave out batch, length, heads")
    if isinstance(workloads, Workload | ProgramWorkload):
        return [workloads]
    return check_workloads(workloads)


def _this_one(named: str | torch.device) -> torch.device:
    """The GPU that ``"cuda"`` names now: other processes have another current one.

    Raises:
        ArgumentError: a device that scans do not run on, or that is not here.
    """
    try:
        device = torch.device(named)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in DEVICE_TYPES:
        raise ArgumentError(
            f"scans run on devices of {', '.join(DEVICE_TYPES)}, got {shown(named)}; name one, or "
            f"predict for a GPU that is not here"
        )
    if device.type != "cuda":
        return device
    if (device.index or 0) >= torch.cuda.device_count():
        raise ArgumentError(
            f"torch sees no device {str(device)!r}; name one that is here, or predict for a GPU "
            f"that is not"
        )
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.device("cuda", index)
