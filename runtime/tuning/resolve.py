"""From a program, a device and sizes to what was measured fastest for them.

In this order, and the first that has rows for the sizes answers: the log on this machine; the log
that is shipped for this device; what the cost model has predicted for it, where that was asked
for; on a GPU, the log of the nearest one which has any: of the same kind and family, the same
architecture first, then the most alike in name. (A CPU's caches and cores say nothing of
another's.)

What stands in a device's own log speaks if its rows name the device, and on a CPU if they were
measured with as many threads as torch uses now: two threads say nothing of eight. Of what was
measured on the device, here or where it was shipped, the bucket's own rows come before those of
lengths near it.

A config that this machine's log has found wrong is taken for no sizes, whoever names it but the
caller (:func:`found_wrong`).

A prediction speaks for its own bucket alone, and for a GPU of its own figures: another is asked
for as quickly. What the nearest GPU's log says of the bucket is in it already.

Logs are read once a process and key. A choice is made once for each bucket of sizes
(:mod:`pdssm_compiler.runtime.kernels`), so calls read nothing.

Where calls tune by themselves, the log on this machine grows while processes run, so there it
speaks for its own programs and buckets of sizes alone, each of which is tuned once: what a call
takes does not depend on what was called before, in this process or in another.
"""

import json
import threading
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any

from pdssm_compiler.ir.program import Program
from pdssm_compiler.runtime import settings
from pdssm_compiler.runtime.errors import TuningWarning
from pdssm_compiler.runtime.tuning.kin import kin
from pdssm_compiler.runtime.tuning.log import (
    file_name,
    folder_name,
    is_predicted,
    predicted_name,
    shipped_logs,
    user_logs,
    warned_rows,
)
from pdssm_compiler.runtime.tuning.provenance import kernel_versions
from pdssm_compiler.runtime.tuning.rows import Row, figures_of, place_of
from pdssm_compiler.runtime.tuning.winners import winners
from pdssm_compiler.schedules.registry import TEMPLATES
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.schedules.templates.base import Problem, Template

# Shorter scans than this are about starting and ending: no other length speaks for them.
_SHORT = 64
# How many times longer or shorter the scans may be that speak for one.
_LENGTHS = 4
# How far the bandwidth of a GPU may be from that of the one that was predicted for.
_BANDWIDTHS = 0.1


@dataclass(frozen=True)
class Tuned:
    """What a log says.

    Attributes:
        template: the template.
        config: its config.
        reason: which log, and the sizes it was measured for.
        near: whether it is another device's log.
        predicted: whether nothing was measured, and a cost model says so.
    """

    template: Template[Any]
    config: Any
    reason: str
    near: bool
    predicted: bool = False


@dataclass(frozen=True)
class _Source:
    """A log that may speak for a target.

    Attributes:
        told: what to call it.
        path: where it is.
        lengths: whether it speaks for lengths near its own as well.
        place: what its rows were measured on, as :attr:`Row.place` says; None for another device.
        predicted: whether its rows were predicted, not measured.
    """

    told: str
    path: Path
    lengths: bool = True
    place: tuple[str, int] | None = None
    predicted: bool = False


def tuned(
    program: Program, target: Target, problem: Problem, *, own: bool = True
) -> Iterator[Tuned]:
    """What logs say about a specialised program at some sizes, best source first; nothing where
    the sizes are not known. What cannot run any more is warned of once, and passed over; what
    another device's log names, without a word.

    Args:
        program: specialised.
        target: what it runs on.
        problem: its sizes.
        own: whether this machine's log is asked as well, or only those that are shipped.
    """
    if problem.rows is None or problem.length is None:
        return
    for source, other, row in _spoken(program, target, problem, own):
        try:
            if source.predicted:
                _check_figures(row, target)
            template, config = _template_and_config(row, program, target, problem)
            refused = found_wrong(program, target, problem, template, config) if own else None
        except ValueError as error:
            # What is best on another GPU may well not fit this one, and nobody has to mend that.
            if source.place is None:
                continue
            refused = str(error)
        if refused is not None:
            pass_over(f"{source.path}: {row.template} {row.config}", refused)
            continue
        told = f"{source.told}, from {row.basis}" if source.predicted else source.told
        told = f"{told}, for {_told(row)}" + (f" of the scan {other}" if other else "")
        yield Tuned(template, config, told, source.place is None, source.predicted)


def _spoken(
    program: Program, target: Target, problem: Problem, own: bool
) -> Iterator[tuple[_Source, str, Row]]:
    """The row of each source that has one for the sizes, best first, and what tells the program
    that it is of from the one in hand.
    """
    here: list[tuple[_Source, str, Row]] = []
    for source, of, other in _sources(program, target):
        if not own and user_logs() in source.path.parents:
            continue
        measured_here = source.place is not None and not source.predicted
        if not measured_here:
            yield from _exact_first(here, problem)
            here = []
        row = _for_sizes(_rows_of(source), problem, source.lengths)
        if row is None or row.program != of.fingerprint:
            continue
        if measured_here:
            here.append((source, other, row))
        else:
            yield source, other, row
    yield from _exact_first(here, problem)


def _exact_first(
    found: list[tuple[_Source, str, Row]], problem: Problem
) -> list[tuple[_Source, str, Row]]:
    assert problem.rows is not None
    assert problem.length is not None
    bucket = Problem.bucket(problem.rows, problem.length)
    return sorted(found, key=lambda each: each[2].bucket != bucket)


def found_wrong(
    program: Program, target: Target, problem: Problem, template: Template[Any], config: Any
) -> str | None:
    """What this machine's log says of a config that did not agree with the oracle on the device,
    by the same versions, at whatever sizes; None if it says nothing of the kind.

    Args:
        program: specialised.
        target: what it runs on.
        problem: the sizes. Where calls tune, the rows of other buckets have no say: which of them
            are there depends on what was called before.
        template: the config's.
        config: the config.
    """
    if not target.name or problem.rows is None or problem.length is None:
        return None
    path = user_logs() / folder_name(target.name) / file_name(program)
    bucket = Problem.bucket(problem.rows, problem.length)
    anywhere = settings.tune_effort() == "none"
    wanted = (template.name, json.dumps(asdict(config), sort_keys=True))
    for row in _wrong(path):
        known = row.candidate == wanted and row.device == target.name
        if known and (anywhere or row.bucket == bucket):
            return f"{path} says that it was wrong, for {_told(row)}: {row.error}"
    return None


def forget(log: Path | None = None) -> None:
    """Read a log anew, or all of them."""
    with _lock:
        if log is not None:
            _read.pop(log, None)
            _bad.pop(log, None)
            return
        _read.clear()
        _bad.clear()
        _folders.clear()
        _warned.clear()


_lock = threading.Lock()
_read: dict[Path, list[tuple[Problem, Row]]] = {}
_bad: dict[Path, list[Row]] = {}
_folders: dict[Path, list[str]] = {}
_warned: set[str] = set()


def _sources(program: Program, target: Target) -> Iterator[tuple[_Source, Program, str]]:
    """Logs that may speak for a target, best first, each with the program that it is of and what
    tells that from the one in hand: the device's own, of whichever program, come before any of
    another GPU.
    """
    alike, place = ((program, ""), *kin(program)), place_of(target)
    if target.name:
        own, grows = folder_name(target.name), settings.tune_effort() != "none"
        for of, told in alike[:1] if grows else alike:
            path = user_logs() / own / file_name(of)
            yield _Source("tuned on this machine", path, not grows, place), of, told
        for of, told in alike:
            path = shipped_logs() / own / file_name(of)
            yield _Source(f"shipped log for {own}", path, place=place), of, told
    if target.kind not in ("cuda", "hip"):
        return
    for of, told in alike:
        path = user_logs() / folder_name(target.name or str(target)) / predicted_name(of)
        yield _Source("cost model", path, False, place, predicted=True), of, told
    for of, told in alike:
        yield from ((source, of, told) for source in _nearest(file_name(of), target))


def _nearest(name: str, target: Target) -> Iterator[_Source]:
    """Shipped logs of other GPUs of a target's family, the nearest first."""
    own, near = folder_name(target.name), []
    for folder in _listed(shipped_logs()):
        rows = [row for _, row in _best(shipped_logs() / folder / name)]
        of = {row.target for row in rows if row.device != target.name}
        if any(family(each) == family(str(target)) for each in of):
            alike = sum(accumulate((a == b for a, b in zip(folder, own, strict=False)), min))
            near.append((str(target) not in of, -alike, folder))
    for _, _, folder in sorted(near):
        told = f"shipped log for {folder}, the nearest GPU"
        yield _Source(told, shipped_logs() / folder / name)


def family(target: str) -> str:
    """The kind and capability family of a target's text: ``cuda:sm_9``, ``hip:gfx9``."""
    kind, _, arch = target.partition(":")
    # sm_90 is of the major version 9, sm_120 of 12; gfx942 and gfx90a are both of 9.
    return f"{kind}:{arch[:-2] if kind == 'hip' else arch[:-1]}"


def _listed(root: Path) -> list[str]:
    """The folders in a folder."""
    with _lock:
        if root not in _folders:
            try:
                _folders[root] = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
            except OSError:
                _folders[root] = []
        return _folders[root]


def _best(path: Path) -> list[tuple[Problem, Row]]:
    """The winner of each bucket and place in a log; of several sizes in one, of those measured
    last.
    """
    with _lock:
        found = _read.get(path)
        if found is None:
            found = _take(path)
    return found


def _wrong(path: Path) -> list[Row]:
    """The candidates of a log that were wrong when last measured, by today's versions."""
    with _lock:
        if path not in _bad:
            _take(path)
        return _bad[path]


def _take(path: Path) -> list[tuple[Problem, Row]]:
    """Read a log."""
    rows = warned_rows(path)
    last = {(row.race, row.candidate): row for row in rows if row.status != "predicted"}
    wrong = [row for row in last.values() if row.status == "wrong"]
    _bad[path] = [row for row in wrong if row.versions == kernel_versions()]
    _read[path] = [(row.bucket, row) for row in winners(rows, is_predicted(path))]
    return _read[path]


def _rows_of(source: _Source) -> list[tuple[Problem, Row]]:
    """The winners of a log that were measured where the source says."""
    best = _best(source.path)
    if source.place is None:
        return best
    return [(bucket, row) for bucket, row in best if row.place == source.place]


def other_threads(program: Program, target: Target, problem: Problem) -> str:
    """On a CPU, what logs would say of a specialised program at some sizes to another number of
    threads; "" where they would say nothing.
    """
    if target.kind != "cpu" or problem.rows is None or problem.length is None:
        return ""
    device, now = place_of(target)
    for source, of, _ in _sources(program, target):
        best = [each for each in _best(source.path) if each[1].device == device]
        others = [each for each in best if each[1].threads != now]
        row = _for_sizes(others, problem, source.lengths)
        if row is not None and row.program == of.fingerprint:
            return f"{source.told} with {_threads(row.threads)}, not the {now} of now"
    return ""


def _threads(number: int) -> str:
    return f"{number} thread{'' if number == 1 else 's'}"


def _for_sizes(best: list[tuple[Problem, Row]], problem: Problem, near: bool) -> Row | None:
    """The row for as many rows and the length, or the nearest one if that is near."""
    assert problem.rows is not None
    assert problem.length is not None
    wanted = Problem.bucket(problem.rows, problem.length)
    found: list[tuple[float, Row]] = []
    for bucket, row in best:
        if bucket.rows != wanted.rows:
            continue
        shorter, longer = sorted((max(1, wanted.length or 1), max(1, bucket.length or 1)))
        # Buckets are powers of two less one.
        apart = (longer + 1) / (shorter + 1)
        if bucket == wanted or (near and apart <= _LENGTHS and shorter >= _SHORT):
            found.append((apart, row))
    return min(found, key=lambda each: each[0])[1] if found else None


def _template_and_config(
    row: Row, program: Program, target: Target, problem: Problem
) -> tuple[Template[Any], Any]:
    """What a row names, as it is today.

    Raises:
        ValueError: there is no such template or field any more, it cannot run the program, or it
            was measured before there was a field that matters for the sizes.
    """
    template = TEMPLATES.get(row.template)
    if template is None:
        raise ValueError(f"there is no template {row.template!r} any more")
    if target.kind not in template.kinds:
        raise ValueError(f"{row.template} is not for {target}")
    try:
        config = template.config_type(**row.config)
    except TypeError as error:
        raise ValueError(f"not a config of {row.template} any more ({error})") from None
    refused = template.feasible(program, target, config)
    if refused:
        raise ValueError(refused)
    lacking = [each.name for each in fields(config) if each.name not in row.config]
    if lacking:
        # What a field is without being told is what kernels did before they had it.
        now = template.heuristic(program, target, problem)
        for name in lacking:
            today = getattr(now, name)
            if today == getattr(config, name):
                continue
            renewed = config.renewed(name, today)
            if renewed is None or template.feasible(program, target, renewed):
                raise ValueError(
                    f"it was measured before {row.template} had {name!r}, which is {today} "
                    f"without a log; tune again"
                )
            config = renewed
    return template, config


def _check_figures(row: Row, target: Target) -> None:
    """Raises ValueError: it was predicted for a GPU with other figures."""
    now = figures_of(target) or {}
    for name, then in (row.figures or {}).items():
        # What a device says of its memory's clock is seldom what its maker says of its bandwidth.
        share = _BANDWIDTHS if name == "bandwidth" else 0.0
        if abs(now[name] - then) > share * then:
            raise ValueError(
                f"it was predicted for a GPU of the same name whose {name} is {then}, not "
                f"{now[name]}; run pdssm-compiler tune --target again"
            )


def _told(row: Row) -> str:
    rows = row.batch * row.heads
    return f"{rows} rows of {row.length} tokens"


def pass_over(what: str, why: object) -> None:
    """Warn, once, that something a log names is not taken."""
    message = f"tuning log: {what} is passed over: {why}"
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, TuningWarning, stacklevel=3)
