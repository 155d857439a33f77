"""Descriptions of GPUs: the form in which a target is written down.

A description is a TOML file of what kernels are chosen by. Those of known GPUs are data of this
package (``schedules/targets``); a user writes one for a GPU that is not among them, and names the
file wherever a target is named. Everything in it is checked, so that a mistake in a file is told
here and not by a kernel.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from pdssm_compiler.ir.errors import PdssmError, shown

# What a description's file name ends in, which tells it from a target's name.
SUFFIX = ".toml"

_SHARED_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20}
_BANDWIDTH_UNITS = {"GB/s": 10**9, "TB/s": 10**12}
_ARCHES = {"cuda": r"sm_[1-9][0-9]{1,2}", "hip": r"gfx[1-9][0-9]{1,2}[0-9a-f]"}
# 32-bit registers a thread can name.
_MOST_REGISTERS = {"cuda": 255, "hip": 512}
_MOST_PROCESSORS = 4096
_SHARED_MEMORY = (16 << 10, 1 << 20)
_BANDWIDTH = (10**9, 10**14)
_LONGEST_NAME = 100


class DescriptionError(PdssmError, ValueError):
    """A description says what no GPU is; the message names file and key, and what is allowed."""


class _RefusedError(Exception):
    """A value that a key does not take; the text says which it takes."""


class _Key(NamedTuple):
    """A key of a description.

    Attributes:
        read: the field from the key's value and the fields before it.
        example: a line of a file.
        optional: whether it may be left out.
    """

    read: Callable[[Any, Mapping[str, Any]], Any]
    example: str
    optional: bool = False


def read_description(path: Path) -> dict[str, Any]:
    """The fields of a :class:`pdssm_compiler.schedules.target.Target`, in a file.

    Raises:
        DescriptionError: the file cannot be read, is not TOML, or a key is unknown, missing, or
            has a value that is not allowed.
    """
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DescriptionError(
            f"{path}: the description cannot be read: {error.strerror}; name a file that "
            f"pdssm-compiler describe has written"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DescriptionError(
            f"{path}: not TOML: {error}; write a key and a value a line, such as "
            f"{_KEYS['arch'].example}"
        ) from None
    for key in told:
        if key not in _KEYS:
            raise DescriptionError(f"{path}: unknown key {key!r}; {_meant(key)}")
    found: dict[str, Any] = {}
    for key, (read, example, optional) in _KEYS.items():
        if key not in told:
            if optional:
                continue
            raise DescriptionError(f"{path}: the key {key} is missing; write, such as, {example}")
        try:
            found[key] = read(told[key], found)
        except _RefusedError as refused:
            raise DescriptionError(
                f"{path}: {key} must be {refused}, got {shown(told[key])}"
            ) from None
    return found


def description_text(fields: Mapping[str, Any], comment: str = "") -> str:
    """The description of a GPU with these fields; reading it gives them back.

    Args:
        fields: as :func:`read_description` gives them.
        comment: for the lines before it.
    """
    lines = [f"# {line}" for line in comment.splitlines()]
    for key in _KEYS:
        if key in fields:
            lines.append(f"{key} = {_written(key, fields[key])}")
    return "\n".join(lines) + "\n"


def shared_memory_text(size: int) -> str:
    """A size of shared memory, in bytes, as a description has it."""
    return f"{size >> 10} KiB" if size % 1024 == 0 else f"{size} B"


def bandwidth_text(rate: int) -> str:
    """A bandwidth, in bytes a second, as a description has it."""
    return f"{(Decimal(rate) / _BANDWIDTH_UNITS['GB/s']).normalize():f} GB/s"


def _written(key: str, value: Any) -> str:
    if key == "shared_memory":
        value = shared_memory_text(value)
    elif key == "bandwidth":
        value = bandwidth_text(value)
    # For printable text and whole numbers, JSON is TOML.
    return json.dumps(value, ensure_ascii=False)


def _meant(key: str) -> str:
    near = difflib.get_close_matches(key, _KEYS, 1)
    hint = f"write {near[0]}; " if near else ""
    return f"{hint}the keys are {', '.join(_KEYS)}"


def _name(value: Any, found: Mapping[str, Any]) -> str:
    if isinstance(value, str) and value.isprintable() and 0 < len(value) <= _LONGEST_NAME:
        return value
    raise _RefusedError(f"the device's name, printable text of up to {_LONGEST_NAME} characters")


def _kind(value: Any, found: Mapping[str, Any]) -> str:
    if value in ("cuda", "hip"):
        return str(value)
    raise _RefusedError(
        '"cuda" for an NVIDIA GPU or "hip" for one of AMD (a CPU needs no description: the target '
        "cpu is the one that compiles)"
    )


def _arch(value: Any, found: Mapping[str, Any]) -> str:
    kind = found["kind"]
    if isinstance(value, str) and re.fullmatch(_ARCHES[kind], value):
        return value
    examples = '"sm_90" (NVIDIA\'s)' if kind == "cuda" else '"gfx942" (AMD\'s)'
    raise _RefusedError(f"an architecture of the kind {kind!r} such as {examples}")


def _warp_size(value: Any, found: Mapping[str, Any]) -> int:
    # It belongs to the architecture, so that kernels that differ in it never share a key.
    arch = found["arch"]
    size = 64 if re.fullmatch(r"gfx9..", arch) else 32
    if _whole(value) and value == size:
        return size
    raise _RefusedError(f"{size}, which it is on {arch}")


def _count(
    least: int, most: Callable[[Mapping[str, Any]], int]
) -> Callable[[Any, Mapping[str, Any]], int]:
    def read(value: Any, found: Mapping[str, Any]) -> int:
        if _whole(value) and least <= value <= most(found):
            return int(value)
        raise _RefusedError(f"a whole number from {least} to {most(found)}")

    return read


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _quantity(
    units: Mapping[str, int], limits: tuple[int, int], said: Callable[[int], str]
) -> Callable[[Any, Mapping[str, Any]], int]:
    """A number with a unit, in text."""
    least, most = limits

    def read(value: Any, found: Mapping[str, Any]) -> int:
        allowed = f"a number and a unit ({', '.join(units)}) from {said(least)} to {said(most)}"
        match = re.fullmatch(r"(\d{1,20}(?:\.\d{1,20})?) ?(\S+)", str(value), re.ASCII)
        if not isinstance(value, str) or match is None or match[2] not in units:
            raise _RefusedError(f'{allowed}, such as "{said(most)}"')
        size = Decimal(match[1]) * units[match[2]]
        if not least <= size <= most or size % 1:
            raise _RefusedError(allowed)
        return int(size)

    return read


_KEYS = {
    "name": _Key(_name, 'name = "NVIDIA H100 80GB HBM3"', optional=True),
    "kind": _Key(_kind, 'kind = "cuda"'),
    "arch": _Key(_arch, 'arch = "sm_90"'),
    "processors": _Key(_count(1, lambda found: _MOST_PROCESSORS), "processors = 132"),
    "warp_size": _Key(_warp_size, "warp_size = 32"),
    "registers": _Key(_count(32, lambda found: _MOST_REGISTERS[found["kind"]]), "registers = 255"),
    "shared_memory": _Key(
        _quantity(_SHARED_UNITS, _SHARED_MEMORY, shared_memory_text), 'shared_memory = "227 KiB"'
    ),
    "bandwidth": _Key(
        _quantity(_BANDWIDTH_UNITS, _BANDWIDTH, bandwidth_text), 'bandwidth = "3350 GB/s"'
    ),
}
