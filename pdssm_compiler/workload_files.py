"""Files of workloads: :func:`save_workloads`, and what ``tune --spec-file`` reads."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from pdssm_compiler.ir.errors import PdssmError, shown
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.spec import ELEMENTS, PAYLOADS, ScanSpec, one_of
from pdssm_compiler.workloads import (
    DIRECTIONS,
    AnyWorkload,
    ProgramWorkload,
    Workload,
    check_workloads,
)


class SpecFileError(PdssmError, ValueError):
    """A file of specifications cannot be read; the message says where and why."""


def save_workloads(workloads: Sequence[AnyWorkload], path: str | Path) -> None:
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


def read_workloads(path: Path, directions: Sequence[str]) -> list[AnyWorkload]:
    """The workloads of a file: TOML with a table ``[[workload]]`` for each, or JSON lines. Each
    has the fields of :class:`ScanSpec` and of :class:`Workload`, dtypes as torch's names, or
    those of :class:`ProgramWorkload`.

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


_SIZES = ("batch", "length", "heads")
_DTYPES = {str(t).removeprefix("torch."): t for t in (*ELEMENTS, *PAYLOADS)}


def _workload(entry: Any, directions: Sequence[str]) -> AnyWorkload:
    if not isinstance(entry, Mapping):
        raise ArgumentError(f"a workload is a table of fields, not {shown(entry)}")
    if "program" in entry:
        _check_names(entry, {f.name for f in fields(ProgramWorkload)}, ("program", *_SIZES))
        return ProgramWorkload(**entry)
    of_spec = {f.name for f in fields(ScanSpec)}
    own = {f.name for f in fields(Workload)} - {"spec"}
    _check_names(entry, of_spec | own, ("state_size", *_SIZES))
    spec = {name: value for name, value in entry.items() if name in of_spec}
    for name in ("dtype", "payload_dtype"):
        if name in spec:
            spec[name] = _DTYPES[one_of(name, spec[name], tuple(_DTYPES))]
    rest: dict[str, Any] = {name: value for name, value in entry.items() if name in own}
    told = rest.get("directions", list(directions))
    if not isinstance(told, list):
        raise ArgumentError(f"directions is a list of some of {', '.join(DIRECTIONS)}")
    return Workload(ScanSpec(**spec), **rest | {"directions": tuple(told)})


def _check_names(entry: Mapping[str, Any], known: set[str], needed: Sequence[str]) -> None:
    """Refuse fields that there are not, and entries without those that must be there.

    Raises:
        ArgumentError: names the field.
    """
    for name in entry:
        if name not in known:
            told = ", ".join(sorted(known))
            raise ArgumentError(f"unknown field {name!r}; there are {told}")
    for name in needed:
        if name not in entry:
            raise ArgumentError(f"the field {name!r} is missing")


def _entry(workload: AnyWorkload) -> dict[str, Any]:
    """The fields of a workload that are not what they are by themselves, as a file has them."""
    found: dict[str, Any] = {}
    for of in (workload, workload.spec) if isinstance(workload, Workload) else (workload,):
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
    if isinstance(value, str) and "\n" in value and _is_literal(value):
        # A program's text, to be read.
        return f"'''\n{value}'''"
    # JSON writes what is beyond 16 bits as two halves, and leaves one control character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _is_literal(text: str) -> bool:
    """Whether TOML takes text between three quotes as it is."""
    plain = all(sign in "\n\t" or " " <= sign <= "~" for sign in text)
    return plain and "'''" not in text and not text.endswith("'")
