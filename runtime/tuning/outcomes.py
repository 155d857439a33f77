"""What became of a candidate, as a row."""

from typing import Any

from pdssm_compiler.runtime.tuning import provenance
from pdssm_compiler.runtime.tuning.problem import TuningProblem
from pdssm_compiler.runtime.tuning.rows import Row, figures_of
from pdssm_compiler.runtime.tuning.space import Entry


def row_of(
    problem: TuningProblem,
    entry: Entry,
    status: str,
    threads: int,
    versions: dict[str, str],
    commit: str | None,
    **found: Any,
) -> Row:
    """The row of a candidate of a problem.

    Args:
        problem: the problem.
        entry: the candidate.
        status: what became of it.
        threads: of a CPU's kernels; 0 elsewhere.
        versions: of what makes kernels.
        commit: of this package; None to ask the checkout.
        found: the row's other fields.
    """
    target, (batch, length, heads) = problem.target, problem.sizes
    return Row(
        program=problem.program.fingerprint,
        label=problem.label,
        direction=problem.direction,
        batch=batch,
        length=length,
        heads=heads,
        template=entry.template.name,
        config=entry.fields,
        heuristic=entry.heuristic,
        changes=entry.changes,
        status=status,
        device=target.name,
        target=str(target),
        threads=threads,
        versions=versions,
        commit=commit or provenance.commit(),
        date=provenance.now(),
        figures=figures_of(target),
        **found,
    )
