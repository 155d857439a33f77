"""What logs say about GPUs: measured rows, each with its program, its GPU and its work.

Only what can be understood counts. A row is left out, and that is told, where its program's text
is not there, its GPU's figures are not known, or its template or config is there no more.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pdssm_compiler.ir.program import Program
from pdssm_compiler.runtime.tuning.fitting import Timed
from pdssm_compiler.runtime.tuning.log import (
    logs_below,
    program_of_log,
    shipped_logs,
    warned_rows,
)
from pdssm_compiler.runtime.tuning.rows import Row
from pdssm_compiler.runtime.tuning.winners import latest
from pdssm_compiler.schedules.cost import Counts
from pdssm_compiler.schedules.registry import TEMPLATES
from pdssm_compiler.schedules.target import Target, named_targets
from pdssm_compiler.schedules.work import Work


@dataclass(frozen=True)
class Sample:
    """One measured candidate.

    Attributes:
        row: its row.
        program: what it ran, specialised.
        target: the GPU it was measured on.
        config: its config.
        work: its work there.
    """

    row: Row
    program: Program
    target: Target
    config: Any
    work: Work

    @property
    def problem(self) -> tuple[str, tuple[int, int, int]]:
        """Program and sizes, whatever the GPU."""
        return self.row.program, self.row.sizes

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """What the problems of one scan share, forward and backward, with any maps."""
        return self.program.state_size, *self.row.sizes


@dataclass(frozen=True)
class Evidence:
    """What was measured.

    Attributes:
        samples: the last of each candidate.
        left_out: why others do not count, each with how many rows.
    """

    samples: tuple[Sample, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def basis(self) -> str:
        """How many rows of which GPUs, for readers."""
        counts = Counter(sample.row.device for sample in self.samples)
        told = [f"{_rows(number)} of {device}" for device, number in counts.most_common()]
        return " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)

    def of_kind(self, kind: str) -> "Evidence":
        """Only that of NVIDIA's or of AMD's GPUs."""
        return self.only(sample for sample in self.samples if sample.target.kind == kind)

    def only(self, samples: Iterable[Sample]) -> "Evidence":
        """Only some samples."""
        return replace(self, samples=tuple(samples))


def timed(samples: Sequence[Sample]) -> Timed:
    """Samples as columns."""
    counts = Counts(
        [sample.row.template for sample in samples],
        [sample.work for sample in samples],
        [sample.target for sample in samples],
    )
    seconds = np.array([(sample.row.ms or 0.0) / 1e3 for sample in samples])
    problems = [(sample.row.device, *sample.problem) for sample in samples]
    return Timed(counts, seconds, problems)


def evidence(roots: Sequence[Path]) -> Evidence:
    """What the GPUs' logs in some folders of logs say, the later folders last. Lines that are no
    rows are warned of. A program's text is looked for there, and among what is shipped.
    """
    logs: dict[tuple[str, str], list[Path]] = {}
    for root in roots:
        for path in logs_below(root):
            logs.setdefault((path.parent.name, path.name), []).append(path)
    samples: list[Sample] = []
    left_out: Counter[str] = Counter()
    for paths in logs.values():
        rows = [row for path in paths for row in warned_rows(path)]
        # A CPU's threads and caches are nothing that the model knows.
        rows = [row for row in rows if row.target.partition(":")[0] in ("cuda", "hip")]
        program = program_of_log(paths[0], [*roots, shipped_logs()])
        for row in _measured(rows):
            try:
                samples.append(_sample(row, program))
            except ValueError as error:
                left_out[str(error)] += 1
    told = tuple(f"{_rows(number)}: {why}" for why, number in left_out.most_common())
    return Evidence(tuple(samples), told)


def _rows(number: int) -> str:
    return "1 row" if number == 1 else f"{number} rows"


def _measured(rows: Iterable[Row]) -> Iterator[Row]:
    """The last row of each candidate of each problem, if it was right."""
    races: dict[object, list[Row]] = {}
    for row in rows:
        races.setdefault(row.race, []).append(row)
    for found in races.values():
        yield from (row for row in latest(found) if row.ms is not None)


def _sample(row: Row, program: Program | None) -> Sample:
    """Raises ValueError: why the row does not count."""
    if program is None or program.fingerprint != row.program:
        raise ValueError("the text of the program is not there")
    target = target_of_row(row)
    if target is None or not target.bandwidth:
        raise ValueError(f"the figures of {row.device} are not known; name it in a description")
    template = TEMPLATES.get(row.template)
    if template is None:
        raise ValueError(f"there is no template {row.template!r} any more")
    try:
        config = template.config_type(**row.config)
    except TypeError:
        raise ValueError(f"no config of {row.template} any more") from None
    if template.feasible(program, target, config) is not None:
        raise ValueError(f"{row.template} refuses the config today")
    work = template.work(program, target, config, row.batch * row.heads, row.length)
    if work is None:
        raise ValueError(f"{row.template} has no counts of work")
    return Sample(row, program, target, config, work)


def target_of_row(row: Row) -> Target | None:
    """The GPU that a row was measured on: by its own figures, or as the known one of its name."""
    kind, _, arch = row.target.partition(":")
    if row.figures is not None:
        return Target(kind, arch, name=row.device, **row.figures)  # type: ignore[arg-type]
    named = (t for t in named_targets().values() if (t.name, str(t)) == (row.device, row.target))
    return next(named, None)
