"""A row of a tuning log: one candidate, measured once, or why it was not.

Rows are JSON objects, one a line. Their form has a version; what does not fit it is told, never
guessed at.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from types import UnionType
from typing import Any, get_args

import torch

from pdssm_compiler.ir.errors import PdssmError, shown
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Problem

# Raised when a field changes its meaning; new fields with a default do not need it.
SCHEMA = 1

# What can become of a candidate.
STATUSES = {
    "ok": "it agrees with the oracle, and was timed",
    "wrong": "it does not agree with the oracle, or wrote where it must not",
    "crash": "it raised an error, or took its process with it",
    "hang": "it did not end in time",
    "timeout": "its compiler did not end in time",
    "out-of-resource": "it took more memory, registers or shared memory than there is",
    "compile-error": "it could not be compiled",
    "infeasible": "its template says that it cannot run the program there",
    "predicted": "it was not measured: a cost model says what it takes",
}
# What a GPU's rows say of it.
FIGURES = ("warp_size", "processors", "registers", "shared_memory", "bandwidth")
_COUNTED = (
    "spread", "compile_seconds", "changes", "threads", "registers", "spilled", "shared_bytes",
)  # fmt: skip


class RowError(PdssmError, ValueError):
    """A line of a log that is no row of this schema."""


@dataclass(frozen=True)
class Row:
    """One candidate.

    Attributes:
        program: fingerprint of the specialised program.
        label: what the program is, for readers.
        direction: ``forward``, ``backward``, ``active`` (the backward with the gradients of hard
            choices) or ``step``.
        batch, length, heads: ``B``, ``T``, ``H`` of the problem.
        template: the template's name.
        config: every field of its config, none left out.
        heuristic: whether a plain call without a log would take it.
        changes: fields that differ from what the template's heuristic says; one more for a
            template that is not the heuristic's.
        status: one of :data:`STATUSES`.
        device: its name in full.
        target: ``kind:arch``.
        threads: of a CPU's kernels; 0 elsewhere.
        versions: of what the kernel was made and timed with.
        commit: of this package.
        date: when, in UTC.
        ms: median time of the device's work; None unless ``ok``.
        spread: how far the least and the most of the timed runs lie apart, of the median; of a
            predicted time, how far the model may be off, of it.
        again_ms: the heuristic's, timed once more at the end.
        floor_ms: the time of a copy of the same bytes.
        compile_seconds: what compiling took, next to nothing where the kernel was cached.
        registers, spilled, shared_bytes: a thread's registers, its spilled bytes, and a block's
            shared memory, where the backend knows them.
        error: what happened, unless ``ok`` or ``predicted``.
        figures: of a GPU: each of :data:`FIGURES`, as its :class:`Target` has it.
        predicted_ms: what a cost model says that it takes; None unless ``predicted``.
        basis: what that model was fitted to, for readers; None unless ``predicted``.
        schema: :data:`SCHEMA`.
    """

    program: str
    label: str
    direction: str
    batch: int
    length: int
    heads: int
    template: str
    config: dict[str, Any]
    heuristic: bool
    changes: int
    status: str
    device: str
    target: str
    threads: int
    versions: dict[str, str]
    commit: str
    date: str
    ms: float | None = None
    spread: float | None = None
    again_ms: float | None = None
    floor_ms: float | None = None
    compile_seconds: float | None = None
    registers: int | None = None
    spilled: int | None = None
    shared_bytes: int | None = None
    error: str | None = None
    figures: dict[str, int] | None = None
    predicted_ms: float | None = None
    basis: str | None = None
    schema: int = field(default=SCHEMA)

    @property
    def bucket(self) -> Problem:
        """The sizes that the row stands for."""
        return Problem.bucket(self.batch * self.heads, self.length)

    @property
    def candidate(self) -> tuple[str, str]:
        """Template and config as one value to compare."""
        return self.template, json.dumps(self.config, sort_keys=True)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """``B``, ``T``, ``H``."""
        return self.batch, self.length, self.heads

    @property
    def place(self) -> tuple[str, int]:
        """What it was measured on: the device by its name in full, which a folder's name may not
        tell from another's, and the number of a CPU's threads.
        """
        return self.device, self.threads

    @property
    def race(self) -> tuple[tuple[str, int], tuple[int, int, int]]:
        """The place and the sizes: only times of one race are compared with each other."""
        return self.place, self.sizes

    def line(self) -> str:
        """The row as a line of a log, its end included."""
        return json.dumps(asdict(self)) + "\n"


def read_row(line: str) -> Row:
    """The row of a line.

    Raises:
        RowError: no JSON object, another schema, or a field that is missing, unknown or of the
            wrong type; the message names it.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RowError(f"no JSON: {error}") from None
    if not isinstance(found, dict):
        raise RowError(f"a row is a JSON object, not {shown(found)}")
    if found.get("schema") != SCHEMA:
        raise RowError(
            f"the row has schema {shown(found.get('schema'))}, and this version reads {SCHEMA}"
        )
    _check_fields(found)
    row = Row(**found)
    _check_meaning(row)
    return row


def _check_fields(found: Mapping[str, Any]) -> None:
    known = {f.name: f for f in fields(Row)}
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise RowError(f"unknown field {unknown[0]!r}")
    for name, declared in known.items():
        if name not in found:
            if declared.default is MISSING:
                raise RowError(f"the field {name!r} is missing")
            continue
        value, types = found[name], _types_of(declared.type)
        # A whole number of milliseconds is a number of them; True is no number.
        fits = type(value) in types or (float in types and type(value) is int)
        if not fits:
            wanted = " or ".join(t.__name__ for t in types)
            raise RowError(f"{name} must be {wanted}, got {shown(value)}")


def _types_of(declared: Any) -> tuple[type, ...]:
    """The types whose values a field takes: of a union all, of ``dict[…]`` dict."""
    parts = get_args(declared) if isinstance(declared, UnionType) else (declared,)
    return tuple(getattr(part, "__origin__", part) for part in parts)


def _check_meaning(row: Row) -> None:
    if row.status not in STATUSES:
        raise RowError(f"unknown status {row.status!r}; there are {', '.join(STATUSES)}")
    if (row.status == "ok") != (row.ms is not None):
        raise RowError("a row has a time exactly if its status is ok")
    for name in ("predicted_ms", "basis"):
        if (row.status == "predicted") != (getattr(row, name) is not None):
            raise RowError(f"a row has {name} exactly if its status is predicted")
    for name in ("ms", "predicted_ms", "again_ms", "floor_ms"):
        time = getattr(row, name)
        if time is not None and not 0 < time < float("inf"):
            raise RowError(f"{name} is a time above 0, not {time}")
    for name in _COUNTED:
        count = getattr(row, name)
        if count is not None and not 0 <= count < float("inf"):
            raise RowError(f"{name} is at least 0, not {count}")
    if row.status == "predicted" and (row.spread is None or row.figures is None):
        raise RowError("a predicted row has a spread, and the figures of its GPU")
    if row.figures is not None:
        _check_figures(row.figures)
    for name in ("batch", "length", "heads"):
        if getattr(row, name) < 1:
            raise RowError(f"{name} is at least 1, not {getattr(row, name)}")
    for name, value in row.config.items():
        if type(value) not in (int, bool, type(None)):
            raise RowError(f"the config's {name} must be an int, true, false or null")
    for name, version in row.versions.items():
        if not isinstance(version, str):
            raise RowError(f"the version of {name} must be text, got {shown(version)}")


def _check_figures(figures: Mapping[str, Any]) -> None:
    if sorted(figures) != sorted(FIGURES):
        raise RowError(f"figures are {', '.join(FIGURES)}, got {shown(sorted(figures))}")
    for name, value in figures.items():
        if type(value) is not int or value < 0:
            raise RowError(f"the figure {name} must be an int of at least 0, got {shown(value)}")


def place_of(target: Target) -> tuple[str, int]:
    """What :attr:`Row.place` says of what is measured on a target now."""
    return target.name, torch.get_num_threads() if target.kind == "cpu" else 0


def figures_of(target: Target) -> dict[str, int] | None:
    """What a row says of a GPU; None of another device."""
    if target.kind not in ("cuda", "hip"):
        return None
    return {name: getattr(target, name) for name in FIGURES}
