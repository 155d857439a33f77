"""Tuning a scan for a device and sizes: :func:`tune`, :func:`predict` for a GPU that is not here,
and where their workloads come from.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from pdssm_compiler.ir.errors import PdssmError, shown
from pdssm_compiler.ir.programs import pd_scan
from pdssm_compiler.ir.types import is_number
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.devices import DEVICE_TYPES, find_target
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.ops import adjoint_of
from pdssm_compiler.runtime.plan import caller_inputs
from pdssm_compiler.runtime.tuning.effort import Effort
from pdssm_compiler.runtime.tuning.predict import Prediction, predict_problems
from pdssm_compiler.runtime.tuning.problem import TuningProblem
from pdssm_compiler.runtime.tuning.race import Result, Told
from pdssm_compiler.runtime.tuning.tuner import tune_problems
from pdssm_compiler.schedules.descriptions import SUFFIX
from pdssm_compiler.schedules.target import Target, named_targets
from pdssm_compiler.spec import ELEMENTS, PAYLOADS, ScanSpec, one_of
from pdssm_compiler.suite import CPU_SUITE, STEP, SUITE, Shape

# ``active`` is the backward of ``flash_pd_scan``, with the gradients of its logits.
DIRECTIONS = ("forward", "backward", "active", "step")
# Of a tensor of states: a petabyte.
_MOST_NUMBERS = 1 << 47


class SpecFileError(PdssmError, ValueError):
    """A file of specifications cannot be read; the message says where and why."""


@dataclass(frozen=True)
class Workload:
    """A scan at some sizes.

    Attributes:
        spec: the scan.
        batch, length, heads: ``B``, ``T``, ``H``.
        name: what to call it; "" for its sizes.
        initial_state: whether calls give one.
        final_state: whether they want the last state.
        directions: of :data:`DIRECTIONS`.
    """

    spec: ScanSpec
    batch: int
    length: int
    heads: int
    name: str = ""
    initial_state: bool = False
    final_state: bool = False
    directions: tuple[str, ...] = ("forward", "backward")

    def __post_init__(self) -> None:
        for name in ("batch", "length", "heads"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ArgumentError(f"{name} must be an int of at least 1, got {shown(value)}")
        for name in ("initial_state", "final_state"):
            if type(getattr(self, name)) is not bool:
                told = shown(getattr(self, name))
                raise ArgumentError(f"{name} must be true or false, got {told}")
        if not isinstance(self.name, str) or not self.name.isprintable():
            raise ArgumentError(f"name must be printable text, got {shown(self.name)}")
        numbers = self.batch * self.length * self.heads * self.spec.state_size
        if numbers > _MOST_NUMBERS:
            raise ArgumentError(
                f"batch={shown(self.batch)} length={shown(self.length)} "
                f"heads={shown(self.heads)} are {numbers:.1e} numbers a tensor, more than any "
                f"device holds; use the sizes of a call"
            )
        if isinstance(self.directions, str) or not self.directions:
            told = shown(self.directions)
            raise ArgumentError(f"directions are some of {', '.join(DIRECTIONS)}, got {told}")
        for direction in self.directions:
            one_of("direction", direction, DIRECTIONS)

    def problems(self, device: torch.device) -> Iterator[TuningProblem]:
        """The programs that its calls run, each a problem to tune.

        Raises:
            ArgumentError: a direction that the scan does not have.
        """
        # A schedule's chunks are what is tuned.
        spec = replace(self.spec, chunk_length=None)
        program = pd_scan(
            spec.program_spec(initial_state=self.initial_state, final_state=self.final_state)
        )
        sizes = Sizes(self.batch, self.length, self.heads)
        for direction in self.directions:
            if direction == "step":
                step = pd_scan(spec.program_spec(initial_state=True, final_state=True))
                text, of = step.text, Sizes(self.batch, 1, self.heads)
            elif direction == "forward":
                text, of = program.text, sizes
            else:
                if direction == "active" and spec.map_source != "dictionary":
                    raise ArgumentError(
                        f"the direction 'active' is of flash_pd_scan, whose maps are in a "
                        f"dictionary, not of map_source={spec.map_source!r}; leave it out"
                    )
                wrt = tuple(
                    input_.name
                    for input_ in caller_inputs(program)
                    if direction == "active" or is_number(input_.type)
                )
                arriving = ("final_state", "states") if self.final_state else ("states",)
                text, of = adjoint_of(program.text, wrt, arriving).program.text, sizes
            yield TuningProblem(text, self._label(of), direction, of, str(device))

    def _label(self, sizes: Sizes) -> str:
        spec = self.spec
        maps = "" if spec.map_source == "none" else f" {spec.map_class} {spec.map_source}"
        size = f" K={spec.dictionary_size}" if spec.dictionary_size else ""
        row = " row" if spec.orientation == "row" and maps else ""
        kept = spec.payload_dtype or spec.dtype
        told = f"N={spec.state_size}{size}{maps}{row} {str(kept).removeprefix('torch.')}"
        sizes_told = f"B={sizes.batch} T={sizes.length} H={sizes.heads}"
        return f"{self.name or sizes_told}: {told}"


def tune(
    workloads: ScanSpec | Workload | Sequence[Workload],
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
        directions: of a specification: ``"forward"``, ``"backward"``, ``"active"`` (the backward
            of :func:`flash_pd_scan`), ``"step"`` (one token, from a state to the next).
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
    workloads: ScanSpec | Workload | Sequence[Workload],
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
    workloads: ScanSpec | Workload | Sequence[Workload],
    batch: int | None,
    length: int | None,
    heads: int | None,
    directions: Sequence[str],
) -> Sequence[Workload]:
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
    return [workloads] if isinstance(workloads, Workload) else check_workloads(workloads)


def check_workloads(workloads: object) -> Sequence[Workload]:
    """Refuse what is no sequence of workloads; gives it back.

    Raises:
        ArgumentError: names what is none.
    """
    each: Sequence[Any] = workloads if isinstance(workloads, Sequence) else [workloads]
    for one in each:
        if not isinstance(one, Workload):
            raise ArgumentError(
                f"workloads must be a list of Workload, got {shown(one)}; make one with "
                f"Workload(spec, batch, length, heads)"
            )
    return each


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


def suite(device: torch.device, directions: Sequence[str]) -> list[Workload]:
    """The shipped suite: the shapes for a device, each with permutations and with maps at random,
    in the directions asked for; of the step, its own.
    """
    shapes = CPU_SUITE if device.type == "cpu" else SUITE
    scans = tuple(direction for direction in directions if direction != "step")
    found = [_shape(shape, maps, scans) for shape in shapes for maps in _SUITE_MAPS if scans]
    if "step" in directions:
        found += [_shape(STEP, maps, ("step",)) for maps in _SUITE_MAPS]
    return found


_SUITE_MAPS = ("permutation", "general")


def _shape(shape: Shape, maps: str, directions: tuple[str, ...]) -> Workload:
    spec = ScanSpec(shape.state_size, shape.dictionary_size, map_class=maps)  # type: ignore[arg-type]
    return Workload(
        spec, shape.batch, shape.length, shape.heads, shape.name, directions=directions
    )


def read_workloads(path: Path, directions: Sequence[str]) -> list[Workload]:
    """The workloads of a file: TOML with a table ``[[workload]]`` for each, or JSON lines. Each
    has the fields of :class:`ScanSpec` and of :class:`Workload`; dtypes are torch's, as text.

    Args:
        path: the file; ``.toml``, or lines of JSON.
        directions: of those that name none.

    Raises:
        SpecFileError: the file or an entry cannot be read; the message names the entry.
    """
    try:
        # A mark at its beginning is no content.
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecFileError(f"{path} cannot be read: {error}; name another --spec-file") from None
    try:
        if path.suffix == ".toml":
            entries = _tables(tomllib.loads(content))
        else:
            entries = [json.loads(line) for line in content.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise SpecFileError(
            f"{path} is neither TOML (.toml) nor a JSON object a line: {error}"
        ) from None
    if not entries:
        raise SpecFileError(f"{path} has no workload: a [[workload]] in TOML, or a line of JSON")
    found = []
    for number, entry in enumerate(entries, 1):
        try:
            found.append(_workload(entry, directions))
        except (PdssmError, TypeError) as error:
            raise SpecFileError(f"{path}, workload {number}: {error}") from None
    return found


def _tables(content: Mapping[str, Any]) -> list[Any]:
    """The workloads of TOML.

    Raises:
        ValueError: what is there is none.
    """
    for name in content:
        if name != "workload":
            raise ValueError(f"it has {name!r}, and only [[workload]] is read")
    found = content.get("workload", [])
    if not isinstance(found, list):
        raise ValueError("workload is to be a table each: [[workload]]")
    return found


_DTYPES = {str(t).removeprefix("torch."): t for t in (*ELEMENTS, *PAYLOADS)}


def _workload(entry: Any, directions: Sequence[str]) -> Workload:
    if not isinstance(entry, Mapping):
        raise ArgumentError(f"a workload is a table of fields, not {shown(entry)}")
    of_spec = {f.name for f in fields(ScanSpec)}
    own = {f.name for f in fields(Workload)} - {"spec"}
    for name in entry:
        if name not in of_spec | own:
            known = ", ".join(sorted(of_spec | own))
            raise ArgumentError(f"unknown field {name!r}; there are {known}")
    for name in ("state_size", "batch", "length", "heads"):
        if name not in entry:
            raise ArgumentError(f"the field {name!r} is missing")
    spec = {name: value for name, value in entry.items() if name in of_spec}
    for name in ("dtype", "payload_dtype"):
        if name in spec:
            spec[name] = _DTYPES[one_of(name, spec[name], tuple(_DTYPES))]
    rest: dict[str, Any] = {name: value for name, value in entry.items() if name in own}
    told = rest.get("directions", list(directions))
    if not isinstance(told, list):
        raise ArgumentError(f"directions is a list of some of {', '.join(DIRECTIONS)}")
    return Workload(ScanSpec(**spec), **rest | {"directions": tuple(told)})
