"""What a process has called, as workloads to tune: :func:`called`."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import torch

from pdssm_compiler.ir.passes import specialise
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import Map, Matrices, Table, Vector
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.plan import plans
from pdssm_compiler.runtime.tuning.kin import kin
from pdssm_compiler.schedules.templates.base import Problem
from pdssm_compiler.spec import ELEMENTS, PAYLOADS, ScanSpec
from pdssm_compiler.workloads import DIRECTIONS, AnyWorkload, ProgramWorkload, Workload

_CPU = torch.device("cpu")
# Of scans; a step is a scan of one token.
_SCANS = ("forward", "backward", "active", "dense")
_MIXTURES = ("mixture", "mixture_gradient")


def called() -> list[AnyWorkload]:
    """What this process has called so far: to be tuned here, or saved by
    :func:`pdssm_compiler.save_workloads` for ``pdssm-compiler tune --spec-file``.

    Of each program the sizes of the first call in each bucket are there, as a schedule is chosen
    once for a bucket; calls that name their own (``config``) are not, as they have none to tune.

    Returns:
        Workloads, those called first before others, each with the directions that ran. What no
        :class:`Workload` says (functions of your own, gradients of a part of the inputs) is a
        :class:`ProgramWorkload`, behind them.
    """
    found: dict[Workload, list[str]] = {}
    others: list[ProgramWorkload] = []
    for plan in plans():
        for sizes in list(plan.called.values()):
            workload = _workload(plan.program, sizes)
            if workload is None:
                others.append(ProgramWorkload(plan.program.text, *sizes))
                continue
            (direction,) = workload.directions
            directions = found.setdefault(replace(workload, directions=DIRECTIONS), [])
            if direction not in directions:
                directions.append(direction)
    named = [replace(each, directions=tuple(ran)) for each, ran in found.items()]
    # What a workload runs besides.
    known = {key for each in named for key in _keys(each)}
    return [*named, *(each for each in others if not known.issuperset(_keys(each)))]


def _keys(workload: AnyWorkload) -> Iterator[tuple[str, Problem]]:
    """The programs of a workload, each with its bucket of sizes."""
    for problem in workload.problems(_CPU):
        yield problem.program.fingerprint, problem.bucket


def _workload(program: Program, sizes: Sizes) -> Workload | None:
    """The workload, of one direction, that tunes a program, or one whose log speaks for it."""
    lowered = specialise(program)
    wanted = [lowered.fingerprint, *(other.fingerprint for other, _ in kin(lowered))]
    made: dict[str, Workload] = {}
    for workload in _alike(program, sizes):
        # Programs do not depend on a device. What a direction runs besides is not what is told.
        first = next(iter(workload.problems(_CPU)))
        made.setdefault(first.program.fingerprint, workload)
    return next((made[each] for each in wanted if each in made), None)


def _alike(program: Program, sizes: Sizes) -> Iterator[Workload]:
    """Workloads with what is seen of a program's inputs and outputs."""
    of = _mixtures if program.over_matrices else _scans
    try:
        yield from of(program, sizes)
    except ArgumentError:
        # It is none of ours.
        return


def _scans(program: Program, sizes: Sizes) -> Iterator[Workload]:
    inputs = {input_.name: input_ for input_ in program.inputs}
    diagonal, maps = inputs.get("diagonal"), inputs.get("dictionary", inputs.get("destination"))
    if diagonal is None or not isinstance(diagonal.type, Vector):
        return
    options: dict[str, Any] = {"map_source": "none"}
    directions: tuple[str, ...] = _SCANS[:2]
    if maps is not None and isinstance(maps.type, Table):
        options = {"dictionary_size": maps.type.size, "map_class": maps.type.map_class}
        directions = _SCANS
    elif maps is not None and isinstance(maps.type, Map):
        options = {"map_source": "token", "map_class": maps.type.map_class}
        directions = ("forward", "backward", "dense")
    options["dtype"] = _dtype(ELEMENTS, diagonal.type.element)
    stored = [_dtype(PAYLOADS, i.storage) for i in program.inputs]
    options["payload_dtype"] = next((dtype for dtype in stored if dtype is not None), None)
    finals = {output.name for output in program.final_outputs}
    final = "final_state" in finals or "grad_final_state" in inputs
    ends = ("initial_state" in inputs, final)
    packed = "follows" in inputs
    for orientation in ("column", "row"):
        spec = ScanSpec(program.state_size, orientation=orientation, **options)  # type: ignore[arg-type]
        every = product(dict.fromkeys((ends, (False, False))), directions, (False, True))
        for (start, end), direction, reverse in every:
            yield Workload(
                spec,
                *sizes,
                initial_state=start,
                final_state=end,
                directions=(direction,),
                reverse=reverse,
                packed=packed,
            )


def _mixtures(program: Program, sizes: Sizes) -> Iterator[Workload]:
    (matrices,) = (i.type for i in program.inputs if isinstance(i.type, Matrices))
    reals = {dtype: f"f{int(element[1:]) // 2}" for dtype, element in ELEMENTS.items()}
    noise = any(input_.name == "noise_scale" for input_ in program.inputs)
    for orientation, direction in product(("column", "row"), _MIXTURES):
        spec = ScanSpec(
            program.state_size,
            matrices.size,
            dtype=_dtype(reals, matrices.element),  # type: ignore[arg-type]
            map_source="token",
            orientation=orientation,  # type: ignore[arg-type]
        )
        yield Workload(spec, *sizes, directions=(direction,), noise=noise)


def _dtype(named: dict[torch.dtype, Any], name: str) -> torch.dtype | None:
    """The dtype that has a name."""
    return next((dtype for dtype, each in named.items() if each == name), None)
