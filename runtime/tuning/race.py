"""One problem's race: candidates compiled side by side, checked and timed one after the other.

Every outcome is a row in the log as soon as it is known, so whatever ends a race, what it has
found is kept; a race of the same problem with the same versions goes on where the last one ended.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from pdssm_compiler.runtime.cache import default_cache
from pdssm_compiler.runtime.tuning.effort import Effort
from pdssm_compiler.runtime.tuning.isolated import DiedError, HungError, Isolated, RaisedError
from pdssm_compiler.runtime.tuning.log import append_rows, read_log, warned_rows
from pdssm_compiler.runtime.tuning.measure import Request, measure, prepare, roof_of
from pdssm_compiler.runtime.tuning.outcomes import row_of
from pdssm_compiler.runtime.tuning.precompile import Compiled, Compilers, helper_jobs
from pdssm_compiler.runtime.tuning.problem import TuningProblem
from pdssm_compiler.runtime.tuning.provenance import kernel_versions
from pdssm_compiler.runtime.tuning.rows import Row
from pdssm_compiler.runtime.tuning.search import Search
from pdssm_compiler.runtime.tuning.space import Entry, Space, space_of
from pdssm_compiler.runtime.tuning.winners import latest, winner

# A candidate that takes longer to be checked and timed is taken to hang.
MEASURE_SECONDS = 180.0
# How many of the fastest are timed again at the end, beside the heuristic, and how many times the
# best time they take at most: what is slower does not win.
_FINALISTS = 3
_FINAL = 1.5
# What one may take however little time is left: a new process has to start before.
_LEAST_PATIENCE = 2.0
# What compilers, drivers and torch say where there is too little of something.
_RESOURCES = re.compile(
    r"out\W?of\W?(memory|resource)|too many resources|MemoryError|can't allocate memory", re.I
)


@dataclass(frozen=True)
class Progress:
    """How far a race is.

    Attributes:
        problem: whose race.
        done: candidates measured, those that the log had among them.
        planned: candidates that will be, at most.
        best_ms: of the fastest so far that is right.
        heuristic_ms: of what plain calls take.
        what: what is being done.
    """

    problem: TuningProblem
    done: int
    planned: int
    best_ms: float | None
    heuristic_ms: float | None
    what: str


Told = Callable[[Progress], object]


@dataclass
class Result:
    """What a race found.

    Attributes:
        problem: whose race.
        rows: the last row of each candidate.
        complete: whether the search ended by itself, not by the budget or the effort's limit.
        measured: how many candidates were measured now, rather than found in the log.
    """

    problem: TuningProblem
    rows: list[Row]
    complete: bool
    measured: int

    @property
    def untried(self) -> bool:
        """Whether the budget ended before anything was measured, now or earlier."""
        return not self.complete and all(row.status == "infeasible" for row in self.rows)

    @property
    def winner(self) -> Row | None:
        """What calls take from now on."""
        return winner(self.rows)

    @property
    def heuristic(self) -> Row | None:
        """What calls take without a log."""
        return next((row for row in self.rows if row.heuristic), None)


@dataclass
class Race:
    """A race.

    Attributes:
        problem: the problem.
        effort: how hard to try.
        path: its log.
        compilers: what compiles.
        worker: what measures.
        deadline: when the race ends, by :func:`time.monotonic`; None for no end. What the
            heuristic says is measured if its turn came before, however long compiling it takes.
            Nothing else is begun from where the last timings would not be done in time, and what
            is compiled or measured at the end is given up.
        told: called as it goes on.
        measure_seconds: after which a candidate is taken to hang.
        commit: of this package, where the checkout has no history to ask.
        roofs: bytes a second of a large copy, by device; measured where it is not there, and None
            where that failed.
    """

    problem: TuningProblem
    effort: Effort
    path: Path
    compilers: Compilers
    worker: Isolated
    deadline: float | None = None
    told: Told = lambda progress: None
    measure_seconds: float = MEASURE_SECONDS
    commit: str | None = None
    roofs: dict[str, float | None] = field(default_factory=dict)
    _rows: dict[Entry, Row] = field(default_factory=dict)
    _times: dict[Entry, float | None] = field(default_factory=dict)
    _compiled: dict[Entry, Compiled] = field(default_factory=dict)
    _measured: int = 0
    _begun: float = 0.0
    _seconds: list[float] = field(default_factory=list)

    def run(self) -> Result:
        """Measure what the log does not have.

        Raises:
            NoTemplateError: nothing can run the program there.
            OSError: the log cannot be written.
        """
        self._begun = time.monotonic()
        space = space_of(self.problem)
        self._resume(space)
        search = Search(space, self.effort)
        complete = False
        while True:
            batch = search.next(self._times)
            complete = not batch
            if complete or self._is_late():
                break
            if self.deadline is not None and batch[0].heuristic and self._on_cpu:
                # All of a batch is compiled before any of it is timed, and the time may end there.
                batch = batch[:1]
            begun = {entry for entry in batch if entry.heuristic}
            for entry in self._compiled_ones(search, batch):
                if self._is_late() and entry not in begun:
                    if not begun:
                        break
                    continue
                begun.discard(entry)
                self._tell(search, str(entry))
                row = self._outcome(entry)
                if row is not None:
                    self._put(entry, row)
        self._finals(search)
        rows = latest(filter(self._is_ours, read_log(self.path)[0]))
        return Result(self.problem, rows, complete, self._measured)

    @property
    def _on_cpu(self) -> bool:
        return self.problem.target.kind == "cpu"

    def _is_late(self) -> bool:
        """Whether no candidate is begun any more."""
        return self.deadline is not None and time.monotonic() > self.deadline - self._reserve

    def _is_over(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    @property
    def _reserve(self) -> float:
        """What the last timings will take, of twice as many runs: at most a third of the time."""
        if self.deadline is None or not self._seconds:
            return 0.0
        each = 2 * median(self._seconds)
        return min(each * (1 + _FINALISTS), (self.deadline - self._begun) / 3)

    def _patience(self, entry: Entry) -> float:
        """How long a candidate may take to be measured: until the deadline, or as long as one
        before it took.
        """
        if self.deadline is None or entry.heuristic:
            return self.measure_seconds
        left = self.deadline - time.monotonic()
        return min(self.measure_seconds, max(left, *self._seconds, _LEAST_PATIENCE))

    def _is_ours(self, row: Row) -> bool:
        fingerprint = self.problem.program.fingerprint
        return row.program == fingerprint and row.race == self.problem.race

    def _resume(self, space: Space) -> None:
        """Take what an earlier race of the same versions has measured; note what cannot run."""
        known = {(e.template.name, e.text): e for e in (*space.first, *space.others)}
        ours = list(filter(self._is_ours, warned_rows(self.path)))
        seen = {row.candidate for row in latest(ours) if self._is_current(row)}
        for row in ours:
            entry = known.get((row.template, _text(row)))
            if entry is not None and row.candidate in seen and self._is_current(row):
                self._note(entry, row)
        if self.effort.candidates:
            for entry, reason in space.refused:
                row = self._row(entry, "infeasible", error=reason)
                if row.candidate not in seen:
                    append_rows(self.path, [row])

    def _is_current(self, row: Row) -> bool:
        return row.versions == kernel_versions()

    def _note(self, entry: Entry, row: Row) -> None:
        # What is timed again at the end is not news to the search.
        self._times.setdefault(entry, row.ms)
        self._rows[entry] = row

    def _compiled_ones(self, search: Search, batch: Sequence[Entry]) -> Iterable[Entry]:
        """Candidates whose kernels are in the cache. A GPU times one while others are compiled; on
        a CPU, compilers would take from it what is timed.
        """
        ready = self._compile(search, batch)
        if self._on_cpu:
            compiled = set()
            for entry in ready:
                compiled.add(entry)
                if self._is_late():
                    break
            return [entry for entry in batch if entry in compiled]
        return ready

    def _compile(self, search: Search, batch: Sequence[Entry]) -> Iterator[Entry]:
        """Put the kernels of candidates into the cache; gives each when it is there."""
        self._tell(search, f"compiling {len(batch)}")
        problem, sizes = self.problem, self.problem.sizes
        if default_cache() is None:
            yield from batch
            return
        # Plain PyTorch is generated where it runs.
        plain = [entry for entry in batch if entry.template.backend == "torch"]
        jobs = {problem.job(entry.text): entry for entry in batch if entry not in plain}
        helpers, begins = [], not self._compiled
        if begins:
            helpers = list(helper_jobs(problem.text, problem.target, sizes.heads))
        needed = [*helpers, *(job for job, entry in jobs.items() if entry.heuristic)]
        end = None if self.deadline is None else self.deadline - self._reserve
        made_ones = self.compilers.compile([*helpers, *jobs], end, needed)
        if begins and not self._on_cpu:
            self._prepare(search)
        for number, (job, made) in enumerate(made_ones, 1):
            self._tell(search, f"compiling {len(batch)}, {number} done")
            if job in jobs:
                self._compiled[jobs[job]] = made
                yield jobs[job]
        # Last, when it is known how fast others are: what is slow is then timed by a few calls.
        yield from plain

    def _prepare(self, search: Search) -> None:
        """Have the inputs and the reference made while kernels are compiled."""
        self._tell(search, "computing the reference")
        patience = self.measure_seconds
        if self.deadline is not None:
            patience = min(patience, max(self.deadline - time.monotonic(), _LEAST_PATIENCE))
        # Whoever is measured first tries again, and its row says what it was.
        with suppress(DiedError, HungError, RaisedError):
            self.worker.ask(prepare, self.problem, patience)

    def _outcome(self, entry: Entry, runs: int | None = None) -> Row | None:
        """A candidate's row; None if there was no time to find it out."""
        made = self._compiled.get(entry)
        seconds = None if made is None else round(made.seconds, 3)
        if made is not None and made.error is not None:
            status = "timeout" if made.hung else _status(made.error, "compile-error")
            return self._row(entry, status, error=made.error, compile_seconds=seconds)
        request = Request(
            self.problem,
            entry.text,
            runs or self.effort.runs,
            self.effort.seconds,
            self._best_ms,
        )
        patience, begun = self._patience(entry), time.monotonic()
        try:
            found = self.worker.ask(measure, request, patience)
        except HungError as error:
            if patience < self.measure_seconds:
                return None
            return self._row(entry, "hang", error=str(error), compile_seconds=seconds)
        except (DiedError, RaisedError) as error:
            status = _status(str(error), "crash")
            return self._row(entry, status, error=str(error), compile_seconds=seconds)
        if found.fault is not None:
            # Who writes where it must not may have damaged what the next one finds.
            self.worker.end()
            return self._row(entry, "wrong", error=found.fault, compile_seconds=seconds)
        self._seconds.append(time.monotonic() - begun)
        resources = found.resources or {}
        return self._row(
            entry,
            "ok",
            ms=found.ms,
            spread=found.spread,
            # Bytes do not bound what moves no vectors, such as a choice of maps.
            floor_ms=self._floor_ms(found.floor_bytes) if found.floor_bytes else None,
            compile_seconds=seconds,
            registers=resources.get("registers"),
            spilled=resources.get("spilled"),
            shared_bytes=resources.get("shared_bytes"),
        )

    def _floor_ms(self, moved: int) -> float | None:
        """What a copy of so many bytes takes, if it can be measured."""
        device = self.problem.device
        if device not in self.roofs:
            try:
                roof = self.worker.ask(roof_of, device, self.measure_seconds)
            except (DiedError, HungError, RaisedError):
                # A caller's tensors may leave no memory for it.
                roof = None
            self.roofs[device] = roof
        roof = self.roofs[device]
        return None if roof is None else moved / roof * 1e3

    def _finals(self, search: Search) -> None:
        """Time the fastest again, and the heuristic: who was picked for a short time seldom keeps
        it, and the heuristic's two times show the noise.
        """
        if not self.effort.candidates:
            return
        right = {entry: row for entry, row in self._rows.items() if row.ms is not None}
        heuristic = next((entry for entry in right if entry.heuristic), None)
        if not self._measured and (heuristic is None or right[heuristic].again_ms is not None):
            return
        fastest = sorted(right, key=lambda entry: right[entry].ms or 0.0)[:_FINALISTS]
        limit = _FINAL * (self._best_ms or 0.0)
        fastest = [entry for entry in fastest if (right[entry].ms or 0.0) <= limit]
        for entry in dict.fromkeys([*([heuristic] if heuristic else []), *fastest]):
            if not entry.heuristic and self._is_over():
                break
            self._tell(search, f"again: {entry}")
            before = self._rows[entry].ms
            row = self._outcome(entry, 2 * self.effort.runs)
            if row is None:
                break
            if entry is heuristic and row.ms is not None:
                row = replace(row, again_ms=before)
            self._put(entry, row, new=False)

    def _put(self, entry: Entry, row: Row, new: bool = True) -> None:
        append_rows(self.path, [row])
        self._note(entry, row)
        self._measured += new

    def _row(self, entry: Entry, status: str, **found: Any) -> Row:
        problem = self.problem
        versions = kernel_versions()
        return row_of(problem, entry, status, problem.threads, versions, self.commit, **found)

    @property
    def _best_ms(self) -> float | None:
        return min((row.ms for row in self._rows.values() if row.ms is not None), default=None)

    def _tell(self, search: Search, what: str) -> None:
        heuristic = next((row.ms for entry, row in self._rows.items() if entry.heuristic), None)
        done, planned = len(self._rows), search.planned(self._times)
        self.told(Progress(self.problem, done, planned, self._best_ms, heuristic, what))


def _status(error: str, otherwise: str) -> str:
    return "out-of-resource" if _RESOURCES.search(error) else otherwise


def _text(row: Row) -> str:
    return f"{row.template} {row.candidate[1]}"
