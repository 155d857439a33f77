"""Bundles: kernels compiled ahead of time, with the choices they were compiled for.

A folder of kernels (:mod:`pdssm_compiler.runtime.entries`) has a *manifest* for each scan and
target that was compiled whole: which schedule a call of any sizes takes, and why. Where the folder
is loaded, calls follow it, so a kernel that was made is the kernel that is asked for, whatever the
heuristics of the device that is there would say. A manifest is data: it can name a config, and no
more.
"""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pdssm_compiler.ir.program import Program
from pdssm_compiler.runtime.entries import EntryError
from pdssm_compiler.runtime.errors import CacheWarning
from pdssm_compiler.runtime.key import generator_hash
from pdssm_compiler.runtime.trust import distrust
from pdssm_compiler.schedules.registry import TEMPLATES
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Problem, Template

# Of the files' form: one that another version wrote is not read.
SCHEMA = 1
# In place of rows, where neither rows nor tokens are known.
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Choice:
    """A schedule, and which calls take it.

    Attributes:
        template: its name.
        config: the config, none of its fields left out.
        reason: why it was chosen.
        sizes: the buckets of the calls (:meth:`Problem.bucket`); that of unknown sizes is among
            them for one schedule.
        kernels: folders of the entries, one for each alignment; none for plain PyTorch.
    """

    template: str
    config: Mapping[str, Any]
    reason: str
    sizes: tuple[Problem, ...]
    kernels: tuple[str, ...]


@dataclass(frozen=True)
class Choices:
    """What was chosen for a program.

    Attributes:
        kind: what the program is of the scan; ``helper`` inverts or checks maps.
        program: fingerprint of the specialised program.
        refused: the templates for this kind of device that cannot run it, and why.
        choices: together for all sizes.
    """

    kind: str
    program: str
    refused: Mapping[str, str]
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Manifest:
    """What was chosen for a scan on a target.

    Attributes:
        target: what it was compiled for.
        generator: hash of the code generator that did.
        programs: each program that calls run.
    """

    target: Target
    generator: str
    programs: tuple[Choices, ...]

    @property
    def kernels(self) -> tuple[str, ...]:
        """The folders of all entries that calls may take."""
        return tuple(k for of in self.programs for choice in of.choices for k in choice.kernels)

    @property
    def file_name(self) -> str:
        """One file for each scan and target: what is compiled again replaces it."""
        programs = sorted((each.kind, each.program) for each in self.programs)
        digest = _hash({"target": asdict(self.target), "programs": programs})
        return f"manifest-{self.target.arch}-{digest[:12]}.json"

    def write(self, folder: Path) -> Path:
        """Write it beside its kernels, all of it or nothing.

        Raises:
            OSError: what the file system says.
        """
        record = {"schema": SCHEMA} | asdict(self)
        for program in record["programs"]:
            for choice in program["choices"]:
                choice["sizes"] = _sizes_text(choice["sizes"])
        record["hash"] = _hash(record)
        path = folder / self.file_name
        handle, staged = tempfile.mkstemp(prefix="staged-", dir=folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(json.dumps(record, indent=1))
            Path(staged).chmod(0o644)
            Path(staged).rename(path)
        except OSError:
            Path(staged).unlink(missing_ok=True)
            raise
        return path


def read_manifests(folder: Path) -> list[Manifest]:
    """The manifests in a folder that can be trusted and were written by this version; of the
    others there is a warning.
    """
    found = []
    for path in sorted(folder.glob("manifest-*.json")):
        try:
            found.append(_read(path))
        except EntryError as error:
            warnings.warn(
                f"the choices in {path} are ignored: {error}", CacheWarning, stacklevel=2
            )
    return found


def _read(path: Path) -> Manifest:
    """Raises EntryError: it cannot be read, or cannot be trusted."""
    try:
        reason = distrust(path)
        if reason is not None:
            raise EntryError(reason)
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.pop("hash") != _hash(record):
            raise EntryError("it does not match its hash")
        if record["schema"] != SCHEMA:
            raise EntryError(f"it is of the schema {record['schema']}, not {SCHEMA}")
        if record["generator"] != generator_hash():
            raise EntryError("another version of the code generator made it; compile again")
        told = {f.name: type(f.default) for f in fields(Target) if f.name not in ("kind", "arch")}
        told |= {"kind": str, "arch": str}
        target = {name: _of(type_, record["target"][name]) for name, type_ in told.items()}
        programs = tuple(map(_choices, record["programs"]))
        return Manifest(Target(**target), record["generator"], programs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EntryError(f"{type(error).__name__}: {error}") from error


def _choices(record: Mapping[str, Any]) -> Choices:
    return Choices(
        _of(str, record["kind"]),
        _of(str, record["program"]),
        {_of(str, name): _of(str, why) for name, why in record["refused"].items()},
        tuple(map(_choice, record["choices"])),
    )


def _choice(record: Mapping[str, Any]) -> Choice:
    return Choice(
        _of(str, record["template"]),
        dict(record["config"]),
        _of(str, record["reason"]),
        tuple(_sizes(record["sizes"])),
        tuple(_of(str, kernel) for kernel in record["kernels"]),
    )


def _hash(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _sizes_text(sizes: Iterable[Mapping[str, int | None]]) -> dict[str, str]:
    """Buckets as a reader scans them: the lengths of each number of rows."""
    lengths: dict[str, list[str]] = {}
    for each in sizes:
        of_rows = lengths.setdefault(_UNKNOWN if each["rows"] is None else str(each["rows"]), [])
        if each["length"] is not None:
            of_rows.append(str(each["length"]))
    return {rows: " ".join(each) for rows, each in lengths.items()}


def _sizes(told: Mapping[str, str]) -> Iterator[Problem]:
    for rows, lengths in told.items():
        if rows == _UNKNOWN:
            yield Problem()
        else:
            yield from (Problem(int(rows), int(length)) for length in lengths.split())


def _of(type_: type, value: Any) -> Any:
    if type(value) is not type_:
        raise TypeError(f"{value!r} stands where a {type_.__name__} should")
    return value


@dataclass(frozen=True)
class AheadOfTime:
    """What a manifest says.

    Attributes:
        template: the template.
        config: its config.
        reason: for what it was chosen, and why.
    """

    template: Template[Any]
    config: Any
    reason: str


def chosen_ahead(
    manifests: Iterable[Manifest], program: Program, target: Target, problem: Problem
) -> Iterator[AheadOfTime]:
    """What manifests say about a specialised program at some sizes: those of the device's own name
    first, then those for as many processors. What the device cannot run is warned of.
    """
    fitting = [each for each in manifests if unfit(each.target, target) is None]
    fitting.sort(
        key=lambda m: (m.target.name != target.name, abs(m.target.processors - target.processors))
    )
    for manifest in fitting:
        told = manifest.target.name or manifest.target.arch
        for choice in _for_program(manifest.programs, program.fingerprint):
            if problem.nearest_bucket not in choice.sizes:
                continue
            template = TEMPLATES.get(choice.template)
            try:
                if template is None:
                    raise ValueError(f"there is no template {choice.template!r}")
                config = template.config_type(**choice.config)
                refused = template.feasible(program, target, config)
                if refused:
                    raise ValueError(refused)
            except (TypeError, ValueError) as error:
                warnings.warn(
                    f"what was chosen ahead of time for {told} does not run on {target}: "
                    f"{choice.template} {dict(choice.config)}: {error}",
                    CacheWarning,
                    stacklevel=2,
                )
                continue
            reason = f"choice ahead of time for {told}: {choice.reason}"
            yield AheadOfTime(template, config, reason)


def _for_program(programs: Sequence[Choices], fingerprint: str) -> Iterator[Choice]:
    for program in programs:
        if program.program == fingerprint:
            yield from program.choices


def unfit(made_for: Target, target: Target) -> str | None:
    """Why kernels for one target do not run on another; None if they do."""
    if str(made_for) != str(target):
        return f"they are for {made_for}"
    lacking = set(made_for.features.split()) - set(target.features.split())
    if lacking:
        return f"they use {', '.join(sorted(lacking)[:5])} of a {made_for}"
    return None
