"""What a process has called, as workloads to tune: :func:`called`, and a file of them."""

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from pdssm_compiler.ir.passes import specialise
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import Map, Table, Vector
from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.errors import ArgumentError, TuningWarning
from pdssm_compiler.runtime.plan import plans
from pdssm_compiler.runtime.tuning.kin import kin
from pdssm_compiler.spec import ELEMENTS, PAYLOADS, ScanSpec
from pdssm_compiler.tuning import Workload, check_workloads

_DIRECTIONS = ("forward", "backward", "active")


def called() -> list[Workload]:
    """What this process has called so far: to be tuned here, or saved by :func:`save_workloads`
    for ``pdssm-compiler tune --spec-file``.

    Of each program the sizes of the first call in each bucket are there, as a schedule is chosen
    once for a bucket; calls that name their own (``config``) are not, as they have none to tune.
    What no workload says (functions of your own, packed sequences, reverse, gradients of a part
    of the inputs, the backward of the dense surrogate) is left out, with a
    :class:`TuningWarning` each.

    Returns:
        Workloads, those called first before others, each with the directions that ran.
    """
    found: dict[Workload, list[str]] = {}
    left_out: dict[str, None] = {}
    for plan in plans():
        for sizes in list(plan.called.values()):
            workload = _workload(plan.program, sizes)
            if workload is None:
                left_out[_left_out(plan.program, sizes)] = None
                continue
            (direction,) = workload.directions
            directions = found.setdefault(replace(workload, directions=_DIRECTIONS), [])
            if direction not in directions:
                directions.append(direction)
    for told in left_out:
        warnings.warn(told, TuningWarning, stacklevel=2)
    return [replace(each, directions=tuple(ran)) for each, ran in found.items()]


def save_workloads(workloads: Sequence[Workload], path: str | Path) -> None:
    """Write workloads to a file that ``pdssm-compiler tune --spec-file`` reads.

    Args:
        workloads: such as :func:`called` gives.
        path: a ``.toml`` file; another name has a JSON object a line.

    Raises:
        ArgumentError: no workloads, or the file cannot be written.
    """
    path = Path(path)
    entries = [_entry(workload) for workload in check_workloads(workloads)]
    if path.suffix == ".toml":
        text = "\n".join(map(_table, entries))
    else:
        text = "".join(f"{json.dumps(entry)}\n" for entry in entries)
    try:
        path.write_text(text, encoding="utf-8")
    except (OSError, UnicodeEncodeError) as error:
        raise ArgumentError(f"cannot write workloads to {path}: {error}") from None


def _workload(program: Program, sizes: Sizes) -> Workload | None:
    """The workload, of one direction, that tunes a program, or one whose log speaks for it."""
    lowered = specialise(program)
    wanted = [lowered.fingerprint, *(other.fingerprint for other, _ in kin(lowered))]
    made: dict[str, Workload] = {}
    for workload in _alike(program, sizes):
        # Programs do not depend on a device.
        (problem,) = workload.problems(torch.device("cpu"))
        made.setdefault(problem.program.fingerprint, workload)
    return next((made[each] for each in wanted if each in made), None)


def _alike(program: Program, sizes: Sizes) -> Iterator[Workload]:
    """Workloads with what is seen of a program's inputs and outputs."""
    inputs = {input_.name: input_ for input_ in program.inputs}
    diagonal, maps = inputs.get("diagonal"), inputs.get("dictionary", inputs.get("destination"))
    if diagonal is None or not isinstance(diagonal.type, Vector):
        return
    options: dict[str, Any] = {"map_source": "none"}
    if maps is not None and isinstance(maps.type, Table):
        options = {"dictionary_size": maps.type.size, "map_class": maps.type.map_class}
    elif maps is not None and isinstance(maps.type, Map):
        options = {"map_source": "token", "map_class": maps.type.map_class}
    options["dtype"] = {name: dtype for dtype, name in ELEMENTS.items()}.get(diagonal.type.element)
    payloads = {storage: dtype for dtype, storage in PAYLOADS.items()}
    stored = [payloads[i.storage] for i in program.inputs if i.storage in payloads]
    options["payload_dtype"] = stored[0] if stored else None
    finals = {output.name for output in program.final_outputs}
    final = "final_state" in finals or "grad_final_state" in inputs
    ends = ("initial_state" in inputs, final)
    for orientation in ("column", "row"):
        try:
            spec = ScanSpec(program.state_size, orientation=orientation, **options)  # type: ignore[arg-type]
        except ArgumentError:
            return
        for states, direction in product(dict.fromkeys((ends, (False, False))), _DIRECTIONS):
            if direction != "active" or spec.map_source == "dictionary":
                yield Workload(spec, *sizes, "", states[0], states[1], (direction,))


def _left_out(program: Program, sizes: Sizes) -> str:
    """Why what was called is not among the workloads."""
    why = (
        "it has functions of its own, runs in reverse, has gradients of a part of its inputs, or "
        "is of the dense surrogate's backward"
    )
    if any(input_.name == "follows" for input_ in program.inputs):
        why = "it is of packed sequences"
    if program.over_matrices:
        why = "it chooses maps by a mixture, or is of that choice's gradient"
    name = "{} with B={} T={} H={}".format(program.text.splitlines()[0], *sizes)
    return f"{name} is no workload: {why}; {settings.TUNE} tunes such calls as they come"


def _entry(workload: Workload) -> dict[str, Any]:
    """The fields of a workload that are not what they are by themselves, as a file has them."""
    found: dict[str, Any] = {}
    for of in (workload, workload.spec):
        for field in fields(of):
            value = getattr(of, field.name)
            if field.name != "spec" and (value != field.default or field.name == "directions"):
                found[field.name] = value
    for name, value in found.items():
        if isinstance(value, torch.dtype):
            found[name] = str(value).removeprefix("torch.")
    return found


def _table(entry: dict[str, Any]) -> str:
    """An entry in TOML, whose text, numbers, truth values and lists are JSON's."""
    lines = (f"{name} = {_toml(value)}\n" for name, value in entry.items())
    return f"[[workload]]\n{''.join(lines)}"


def _toml(value: Any) -> str:
    # JSON writes what is beyond 16 bits as two halves, and leaves one control character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
