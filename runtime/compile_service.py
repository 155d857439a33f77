"""From a program and a target to a loaded kernel: choose a schedule, look in the cache, compile.

A schedule is chosen in this order, and the first that answers wins: the config the caller gave;
what was chosen ahead of time, of the template that the caller named if one was named
(:mod:`pdssm_compiler.runtime.bundles`); the heuristic of the template the caller named; what a
tuning log says for the sizes (:mod:`pdssm_compiler.runtime.tuning.resolve`); the heuristic of the
first template that can run the program, those that suit the sizes first; plain PyTorch, where no
other backend is to be had for the device. What needs a backend that is missing is passed over,
which the reason then tells, unless the kernel is there already.
"""

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

from pdssm_compiler.ir.errors import shown
from pdssm_compiler.ir.passes import specialise
from pdssm_compiler.ir.program import Program
from pdssm_compiler.runtime.backends import BACKENDS, Kernel
from pdssm_compiler.runtime.bundles import chosen_ahead
from pdssm_compiler.runtime.cache import KernelCache, default_cache
from pdssm_compiler.runtime.deployed import deployed
from pdssm_compiler.runtime.entries import Entries, Files
from pdssm_compiler.runtime.errors import BackendUnavailableError, NoTemplateError
from pdssm_compiler.runtime.key import KernelKey, key_of
from pdssm_compiler.runtime.tuning.resolve import (
    found_wrong,
    other_threads,
    pass_over,
    tuned,
)
from pdssm_compiler.schedules.registry import TEMPLATES, candidates
from pdssm_compiler.schedules.source import KernelSource
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Problem, Template


@dataclass(frozen=True)
class Schedule:
    """A template with a config, and why it was taken.

    Attributes:
        template: the template.
        config: its config.
        reason: why.
        logged: whether a tuning log says so.
    """

    template: Template[Any]
    config: Any
    reason: str
    logged: bool = False

    @property
    def kernel(self) -> tuple[str, Any]:
        """What makes the kernel: whatever the reason, it is the same."""
        return self.template.name, self.config


@dataclass(frozen=True)
class BuiltKernel:
    """A kernel and how it came to be.

    Attributes:
        source: what was generated.
        kernel: what runs.
        schedule: the choice behind the source.
        key: the kernel's key.
        origin: ``compiled``; ``disk``, the cache; or ``deployed``, compiled ahead of time.
        seconds: what compiling, or loading from disk, took.
    """

    source: KernelSource
    kernel: Kernel
    schedule: Schedule
    key: KernelKey
    origin: str
    seconds: float


def choose(
    program: Program,
    target: Target,
    config: Any = None,
    problem: Problem | None = None,
    *,
    ahead: bool = True,
    logs: bool = True,
    wrong: bool = False,
) -> Schedule:
    """The schedule for a specialised program.

    Args:
        program: the specialised program.
        target: what it shall run on.
        config: a template's config, to be taken as it is, or a template's name, to take what its
            heuristic says.
        problem: the sizes to choose for, as far as they are known.
        ahead: whether what was chosen ahead of time has a say.
        logs: whether tuning logs have a say.
        wrong: whether a heuristic may say what this machine's log has found wrong.

    Raises:
        NoTemplateError: no template, or not the given one, can run the program there, or all were
            found wrong.
    """
    problem = problem or Problem()
    if ahead and (config is None or isinstance(config, str)):
        found_ahead = _ahead_of_time(program, target, config, problem)
        if found_ahead is not None:
            return found_ahead
    if config is not None:
        return _asked_for(program, target, config, problem)
    if logs:
        measured = (
            Schedule(each.template, each.config, each.reason, logged=True)
            for each in tuned(program, target, problem)
        )
        found_measured = _first_to_be_had(program, target, measured)
        if found_measured is not None:
            return found_measured
    found = candidates(program, target, problem)
    missing = {c.template.backend: BACKENDS[c.template.backend].unavailable() for c in found}
    reason, tried, said = "heuristic", [], dict(missing)
    unheard = other_threads(program, target, problem) if logs else ""
    if unheard:
        reason += f"; {unheard}"
    for template, chosen, refused in found:
        lacking = missing[template.backend]
        if refused is None and not wrong:
            refused = found_wrong(program, target, problem, template, chosen)
            if refused is not None:
                pass_over(f"{template.name} {chosen}, which the heuristic says,", refused)
                reason += f"; without {template.name}, which was wrong here"
        if refused is None:
            if lacking is None:
                return Schedule(template, chosen, reason)
            schedule = Schedule(template, chosen, f"{reason}; its kernel was there: {lacking}")
            if _is_there(program, target, schedule):
                return schedule
            lacking += _nearest(_loose_key(program, target, schedule), default_cache())
            said[template.backend] = lacking
            reason += f"; without {template.name}: {lacking}"
        tried.append(f"{template.name}: {refused or lacking}")
    if all(missing.values()):
        why = "; ".join(filter(None, said.values())) or f"no other backend is for {target}"
        for template, chosen, refused in candidates(program, target, problem, fallback=True):
            if refused is None:
                return Schedule(template, chosen, f"heuristic: {why}")
            tried.append(f"{template.name}: {refused}")
    raise NoTemplateError(
        f"no template can run a state size of {program.state_size} on {target}: "
        f"{'; '.join(tried) or 'there is none for this kind of device'}; the config "
        f"'torch-chunks' or 'torch-tokens' runs it as plain PyTorch, slowly"
    )


def _ahead_of_time(
    program: Program, target: Target, template: str | None, problem: Problem
) -> Schedule | None:
    """What was chosen ahead of time, if its kernel is there or can be made."""
    manifests = [manifest for kernels in deployed() for manifest in kernels.manifests]
    chosen = (
        Schedule(each.template, each.config, each.reason)
        for each in chosen_ahead(manifests, program, target, problem)
        if template in (None, each.template.name)
    )
    return _first_to_be_had(program, target, chosen)


def _first_to_be_had(
    program: Program, target: Target, schedules: Iterable[Schedule]
) -> Schedule | None:
    """The first schedule whose kernel is there or can be made."""
    for schedule in schedules:
        lacking = BACKENDS[schedule.template.backend].unavailable()
        if lacking is None:
            return schedule
        if _is_there(program, target, schedule):
            return replace(schedule, reason=f"{schedule.reason}; its kernel was there: {lacking}")
    return None


def _loose_key(program: Program, target: Target, schedule: Schedule) -> KernelKey:
    """The key of a kernel that no compiler is needed for: what depends on alignment is loaded by
    its compiler.
    """
    return key_of(schedule.template.lower(program, target, schedule.config), 0)


def _is_there(program: Program, target: Target, schedule: Schedule) -> bool:
    """Whether a kernel can be loaded where nothing can be compiled."""
    key = _loose_key(program, target, schedule)
    found = _find(key, schedule.template.backend, default_cache(), stand_ins=True)
    return found is not None


def choices(
    program: Program, target: Target, config: Any = None
) -> list[tuple[Schedule, list[Problem]]]:
    """Every schedule that a call of some sizes asks for, that of unknown sizes first, each with
    the buckets of these sizes; see :func:`choose`. One that is taken for several reasons is there
    for each. Nothing chosen ahead of time has a say.
    """
    explicit = config is not None and not isinstance(config, str)
    found: dict[Schedule, list[Problem]] = {}
    schedule = choose(program, target, config, ahead=False)
    for problem in Problem.buckets():
        if not explicit:
            schedule = choose(program, target, config, problem, ahead=False)
        found.setdefault(schedule, []).append(problem)
    return list(found.items())


def _asked_for(program: Program, target: Target, config: Any, problem: Problem) -> Schedule:
    """The schedule that the caller named."""
    template = template_of(config)
    refused = template.takes(program)
    if refused:
        raise NoTemplateError(f"{config} cannot run this program: {refused}; leave the choice out")
    reason, chosen = "explicit config", config
    if isinstance(config, str):
        reason, chosen = "explicit template", template.heuristic(program, target, problem)
    refused = template.feasible(program, target, chosen)
    if refused:
        raise NoTemplateError(
            f"{config} cannot run on {target}: {refused}; choose another, or leave the choice to "
            f"the heuristics"
        )
    return Schedule(template, chosen, reason)


def template_of(config: Any) -> Template[Any]:
    """The template that a config is of, or that a name names.

    Raises:
        NoTemplateError: there is none.
    """
    known = ", ".join(TEMPLATES)
    if isinstance(config, str):
        if config in TEMPLATES:
            return TEMPLATES[config]
        raise NoTemplateError(f"unknown template {shown(config)}; there are {known}")
    for template in TEMPLATES.values():
        if template.accepts(config):
            return template
    raise NoTemplateError(
        f"{shown(config)} is not a config of any template; pass one, or a template's name: {known}"
    )


def config_text(config: Any) -> str:
    """A config as text, what the torch op carries: its template's name, and its fields unless the
    name alone was given; "" for None.

    Raises:
        NoTemplateError: not a config of any template.
    """
    if config is None:
        return ""
    name = template_of(config).name
    if isinstance(config, str):
        return name
    return f"{name} {json.dumps(asdict(config), sort_keys=True)}"


def read_config(text: str) -> Any:
    """The config of :func:`config_text`.

    Raises:
        NoTemplateError: an unknown template or a field that its config does not have.
    """
    if not text:
        return None
    name, _, fields = text.partition(" ")
    template = template_of(name)
    if not fields:
        return name
    try:
        return template.config_type(**json.loads(fields))
    except (TypeError, ValueError) as error:
        raise NoTemplateError(f"not a config of {name}: {fields!r} ({error})") from None


def backward_config(config: Any) -> Any:
    """What a config says about the backward: fields are the forward kernel's alone, a template's
    name is for both.
    """
    return config if isinstance(config, str) else None


def lower(
    program: Program, target: Target, config: Any = None, problem: Problem | None = None
) -> tuple[KernelSource, Schedule]:
    """Specialise a program, choose its schedule and generate its source."""
    lowered = specialise(program)
    schedule = choose(lowered, target, config, problem)
    return schedule.template.lower(lowered, target, schedule.config), schedule


def build(program: Program, target: Target, alignment: int = 0, config: Any = None) -> BuiltKernel:
    """A kernel for this machine's device, from the cache or compiled.

    Args:
        program: any program; it is specialised first.
        target: the device it will run on.
        alignment: bytes that every pointer will be a multiple of, 16 or 0 for the element's size.
        config: see :func:`choose`.

    Raises:
        NoTemplateError: no schedule.
        BackendUnavailableError: what the backend needs is missing here.
    """
    lowered = specialise(program)
    return build_schedule(lowered, target, choose(lowered, target, config), alignment)


def build_schedule(
    program: Program, target: Target, schedule: Schedule, alignment: int
) -> BuiltKernel:
    """The kernel of a specialised program by a schedule; see :func:`build`."""
    source = schedule.template.lower(program, target, schedule.config)
    key = key_of(source, alignment)
    start = time.perf_counter()
    files, origin = obtain(source, key, alignment, default_cache())
    with _room_needed(source):
        kernel = BACKENDS[source.backend].load(source, alignment, files)
    seconds = time.perf_counter() - start
    return BuiltKernel(source, kernel, schedule, key, origin, seconds)


def obtain(
    source: KernelSource, key: KernelKey, alignment: int, cache: KernelCache | None
) -> tuple[Files, str]:
    """The compiled files of a source and where they came from; compiles what is not there.

    Raises:
        BackendUnavailableError: it is not there, and what compiling needs is missing.
    """
    found = _find(key, source.backend, cache)
    if found is not None:
        return found
    missing = BACKENDS[source.backend].unavailable()
    if missing:
        found = _find(key, source.backend, cache, stand_ins=True)
        if found is not None:
            return found
        raise BackendUnavailableError(
            f"cannot compile for {source.target}: {missing}{_nearest(key, cache)}"
        )
    with cache.lock(key) if cache else nullcontext():
        # Another process may have been first while this one waited.
        files = cache.load(key) if cache else None
        if files is not None:
            return files, "disk"
        files = _compile(source, alignment)
        if cache:
            cache.store(key, files)
    return files, "compiled"


def _places(cache: KernelCache | None) -> list[Entries]:
    return [*deployed(), *([cache] if cache else [])]


def _find(
    key: KernelKey, backend: str, cache: KernelCache | None, stand_ins: bool = False
) -> tuple[Files, str] | None:
    """A kernel that is there and can be loaded, and where it was.

    Args:
        key: the kernel's.
        backend: what it is of.
        cache: the cache, None to do without.
        stand_ins: whether what is in the cache may be another compiler's. What was deployed may.
    """
    for place in _places(cache):
        files = place.load(key)
        if files is None and (stand_ins or place is not cache):
            files = place.load_stand_in(key)
        if files is not None and BACKENDS[backend].cannot_load(files) is None:
            return files, place.origin
    return None


def _nearest(key: KernelKey, cache: KernelCache | None) -> str:
    """In what the kernels of a program that are there differ from the one that is wanted."""
    near = [
        other.obstacles(key)
        for place in _places(cache)
        for other in place.keys()  # noqa: SIM118
        if (other.program, other.template) == (key.program, key.template)
    ]
    if not near:
        return ""
    nearest = min(near, key=lambda obstacles: len(obstacles))
    return f"; a kernel that is there is of another {' and '.join(nearest)}"


def _compile(source: KernelSource, alignment: int) -> dict[str, bytes]:
    with _room_needed(source):
        return BACKENDS[source.backend].compile(source, alignment)


@contextmanager
def _room_needed(source: KernelSource) -> Iterator[None]:
    """Compilers hand files on through a temporary folder."""
    try:
        yield
    except OSError as error:
        raise BackendUnavailableError(
            f"cannot compile for {source.target}: {error}; set TMPDIR to a folder that can be "
            f"written and has room"
        ) from error
