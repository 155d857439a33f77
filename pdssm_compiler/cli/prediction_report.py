"""What a cost model chose for a GPU that is not here: a table, and what it could not rank."""

from collections.abc import Sequence

from rich.console import Console

from pdssm_compiler.cli.consoles import new_table
from pdssm_compiler.cli.tune_report import show_taken
from pdssm_compiler.runtime.tuning.predict import Prediction


def show_predictions(found: Sequence[Prediction], console: Console) -> None:
    """Print a row for each program, and why some were not ranked."""
    target = found[0].problem.target if found else None
    table = new_table(
        "program",
        "ranked",
        "heuristic,\nexpected ms",
        "chosen,\nexpected ms",
        "faster",
        "model\noff by",
        title=f"expected on {target.name or target}, nothing measured" if target else "nothing",
    )
    for each in found:
        table.add_row(str(each.problem), str(each.ranked), *_times(each))
    console.print(table)
    show_taken([each.problem for each in found], console)
    for each in found:
        if each.fallback is not None:
            told = f"{each.problem}: the model chose nothing: {each.fallback}"
            console.print(told, markup=False, soft_wrap=True)
    passed_over = dict.fromkeys(told for each in found for told in each.passed_over)
    for told in passed_over:
        console.print(f"not ranked: {told}", markup=False, soft_wrap=True)


def _times(each: Prediction) -> tuple[str, ...]:
    best, base = each.winner, each.heuristic
    if best is None or base is None:
        return ("", "", "", "")
    assert best.predicted_ms is not None
    assert base.predicted_ms is not None
    faster = base.predicted_ms / best.predicted_ms - 1
    return (
        f"{base.predicted_ms:.4g}",
        f"{best.predicted_ms:.4g}",
        f"{faster:.1%}",
        f"{best.spread:.1%}",
    )
