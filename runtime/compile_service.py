"""From a program and a target to a loaded kernel: choose a schedule, look in the cache, compile.

A schedule is chosen in this order, and the first that answers wins: the config the caller gave;
the heuristic of the template the caller named; the heuristic of the first template that can run
the program, those that suit the sizes first, and none whose backend is missing, which the reason
then tells; plain PyTorch, where no other backend is to be had for the device. (Tuned configs will
stand after the first two.)
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from pdssm_compiler.ir.errors import shown
from pdssm_compiler.ir.passes import specialise
from pdssm_compiler.ir.program import Program
from pdssm_compiler.runtime.backends import BACKENDS, Kernel
from pdssm_compiler.runtime.cache import KernelCache, default_cache
from pdssm_compiler.runtime.errors import BackendUnavailableError, NoTemplateError
from pdssm_compiler.runtime.key import KernelKey, key_of
from pdssm_compiler.schedules.registry import TEMPLATES, candidates
from pdssm_compiler.schedules.source import KernelSource
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Problem, Template


@dataclass(frozen=True)
class Schedule:
    """A template with a config, and why it was taken."""

    template: Template[Any]
    config: Any
    reason: str


@dataclass(frozen=True)
class BuiltKernel:
    """A kernel and how it came to be.

    Attributes:
        source: what was generated.
        kernel: what runs.
        schedule: the choice behind the source.
        key: the kernel's key.
        origin: ``compiled`` or ``disk``.
        seconds: what compiling, or loading from disk, took.
    """

    source: KernelSource
    kernel: Kernel
    schedule: Schedule
    key: KernelKey
    origin: str
    seconds: float


def choose(
    program: Program, target: Target, config: Any = None, problem: Problem | None = None
) -> Schedule:
    """The schedule for a specialised program.

    Args:
        program: the specialised program.
        target: what it shall run on.
        config: a template's config, to be taken as it is, or a template's name, to take what its
            heuristic says.
        problem: the sizes to choose for, as far as they are known.

    Raises:
        NoTemplateError: no template, or not the given one, can run the program there.
    """
    problem = problem or Problem()
    if config is not None:
        return _asked_for(program, target, config, problem)
    found = candidates(program, target, problem)
    missing = {c.template.backend: BACKENDS[c.template.backend].unavailable() for c in found}
    reason = "heuristic"
    if all(missing.values()):
        why = "; ".join(filter(None, missing.values())) or f"no other backend is for {target}"
        reason = f"heuristic: {why}"
        found = candidates(program, target, problem, fallback=True)
    tried = []
    for template, chosen, refused in found:
        lacking = missing.get(template.backend)
        if refused is None and lacking is None:
            return Schedule(template, chosen, reason)
        if refused is None:
            reason += f"; without {template.name}: {lacking}"
        tried.append(f"{template.name}: {refused or lacking}")
    raise NoTemplateError(
        f"no template can run a state size of {program.state_size} on {target}: "
        f"{'; '.join(tried) or 'there is none for this kind of device'}; the config "
        f"'torch-chunks' or 'torch-tokens' runs it as plain PyTorch, slowly"
    )


def _asked_for(program: Program, target: Target, config: Any, problem: Problem) -> Schedule:
    """The schedule that the caller named."""
    template = template_of(config)
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
) -> tuple[dict[str, bytes], str]:
    """The compiled files of a source and where they came from; compiles what is not cached."""
    backend = BACKENDS[source.backend]
    if cache is None:
        return _compile(source, alignment), "compiled"
    files = cache.load(key)
    if files is not None:
        return files, "disk"
    with cache.lock(key):
        # Another process may have been first while this one waited.
        files = cache.load(key)
        if files is not None:
            return files, "disk"
        missing = backend.unavailable()
        if missing:
            files = cache.load_of_any_compiler(key)
            if files is not None:
                return files, "disk"
            raise BackendUnavailableError(f"cannot compile for {source.target}: {missing}")
        files = _compile(source, alignment)
        cache.store(key, files)
    return files, "compiled"


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
