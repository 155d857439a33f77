"""Choosing for a GPU that is not here, by the cost model alone: nothing is compiled or measured.

What is predicted stands in the user's logs, below the GPU's name: the rows that may decide, each
with the status ``predicted``. Calls and bundles for that GPU follow them where nothing was
measured on it (:mod:`pdssm_compiler.runtime.tuning.resolve`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pdssm_compiler.runtime.tuning.evidence import Evidence, evidence
from pdssm_compiler.runtime.tuning.expected import LEAST_ROWS, Model
from pdssm_compiler.runtime.tuning.log import (
    folder_name,
    keep_program,
    predicted_name,
    read_log,
    shipped_logs,
    user_logs,
    write_rows,
)
from pdssm_compiler.runtime.tuning.outcomes import row_of
from pdssm_compiler.runtime.tuning.problem import TuningProblem
from pdssm_compiler.runtime.tuning.provenance import kernel_versions
from pdssm_compiler.runtime.tuning.rows import Row
from pdssm_compiler.runtime.tuning.space import Entry, space_of
from pdssm_compiler.runtime.tuning.tuner import unwritable, use_logs
from pdssm_compiler.runtime.tuning.winners import expected_winner

# Of all that were ranked, the fastest that are kept beside the choice and the heuristic's.
_KEPT = 20


@dataclass(frozen=True)
class Prediction:
    """What was predicted for a problem.

    Attributes:
        problem: the problem.
        rows: what is kept of it, the fastest first; none where nothing could be ranked.
        ranked: how many candidates were.
        passed_over: templates that could not be, and why.
        fallback: why calls go on with what they took before; None where the model chose.
    """

    problem: TuningProblem
    rows: tuple[Row, ...]
    ranked: int
    passed_over: tuple[str, ...]
    fallback: str | None

    @property
    def winner(self) -> Row | None:
        """What calls of these sizes take from now on."""
        return expected_winner(self.rows)

    @property
    def heuristic(self) -> Row | None:
        """What they take without a log."""
        return next((row for row in self.rows if row.heuristic), None)


def known_evidence() -> Evidence:
    """What the logs here say: the shipped ones, and the user's own."""
    return evidence([shipped_logs(), user_logs()])


def predict_problems(
    problems: Sequence[TuningProblem], found: Evidence | None = None, commit: str | None = None
) -> list[Prediction]:
    """Rank the candidates of problems of GPUs that are not here, and keep what may decide.

    Args:
        problems: each with its ``absent`` GPU.
        found: what was measured elsewhere; None for what the logs here say.
        commit: of this package, where it has no history to ask.

    Raises:
        ArgumentError: what is predicted cannot be written.
        NoTemplateError: nothing can run a program there.
    """
    found = known_evidence() if found is None else found
    kinds = dict.fromkeys(problem.target.kind for problem in problems)
    models = {kind: Model.fitted(found.of_kind(kind)) for kind in kinds}
    predictions = []
    for problem in problems:
        made = predict(problem, models[problem.target.kind], commit)
        try:
            _keep(made)
        except OSError as error:
            raise unwritable(error) from error
        predictions.append(made)
    use_logs()
    return predictions


def predict(problem: TuningProblem, model: Model, commit: str | None = None) -> Prediction:
    """What a model says of a problem's candidates; nothing is written.

    Raises:
        NoTemplateError: nothing can run the program there.
    """
    space = space_of(problem)
    entries: list[Entry] = []
    passed_over = {entry.template.name: reason for entry, reason in space.refused}
    for entry in (*space.first, *space.others):
        name = entry.template.name
        if entry.template.backend == "torch":
            # Nobody asked for plain PyTorch in a compiler's stead.
            continue
        if model.knows(entry.template):
            entries.append(entry)
        else:
            number = model.rows.get(name, 0)
            passed_over[name] = f"measured rows that speak for it: {number} of {LEAST_ROWS} needed"
    fallback = _fallback(problem, model, space.first[0], entries)
    rows: list[Row] = []
    if fallback is None:
        rows = _rows(problem, model, entries, commit)
    told = tuple(f"{name}: {why}" for name, why in passed_over.items())
    return Prediction(problem, tuple(rows), len(entries) if rows else 0, told, fallback)


def _fallback(
    problem: TuningProblem, model: Model, heuristic: Entry, ranked: Sequence[Entry]
) -> str | None:
    """Why a model cannot choose."""
    target = problem.target
    if not model.basis:
        return f"no measured row of a GPU of the kind {target.kind} is known"
    if not target.bandwidth:
        return f"the bandwidth of {target.name or target} is not known"
    if heuristic not in ranked:
        return f"the heuristic takes {heuristic.template.name}, of which too little was measured"
    return None


def _rows(
    problem: TuningProblem, model: Model, entries: Sequence[Entry], commit: str | None
) -> list[Row]:
    """The rows to keep, the fastest first."""
    expected = model.expected(problem.program, problem.target, entries, problem.sizes)
    versions = kernel_versions()
    rows = [
        row_of(
            problem,
            entry,
            "predicted",
            0,
            versions,
            commit,
            spread=float(error),
            predicted_ms=float(seconds) * 1e3,
            basis=model.basis,
        )
        for entry, seconds, error in zip(entries, expected.seconds, expected.error, strict=True)
    ]
    chosen = expected_winner(rows)
    rows.sort(key=lambda row: row.predicted_ms or 0.0)
    return [r for place, r in enumerate(rows) if place < _KEPT or r.heuristic or r is chosen]


def prediction_file(problem: TuningProblem) -> Path:
    """Where a problem's predictions stand."""
    target = problem.target
    return user_logs() / folder_name(target.name or str(target)) / predicted_name(problem.program)


def _keep(made: Prediction) -> None:
    """Put what was predicted in the place of what was before, for the same sizes."""
    path = prediction_file(made.problem)
    others = [row for row in read_log(path)[0] if row.race != made.problem.race]
    if made.rows:
        keep_program(user_logs(), made.problem.program)
    write_rows(path, [*others, *made.rows])
