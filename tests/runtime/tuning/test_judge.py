"""The cost model's choices, held to what was measured: on GPUs that are simulated, and on the H100
of the shipped log.
"""

import numpy as np
import pytest

from pdssm_compiler.runtime.tuning.evidence import Evidence, evidence
from pdssm_compiler.runtime.tuning.expected import Model, errors_of, left_out
from pdssm_compiler.runtime.tuning.judge import judge
from pdssm_compiler.runtime.tuning.log import shipped_logs
from tests.runtime.tuning.simulated import H100, SMALL, candidates, measured, problems, seconds


def test_another_gpus_choices_are_near_the_best() -> None:
    """Of a GPU that follows the law, with other figures."""
    found = judge(measured(H100), measured(SMALL))
    assert len(found.verdicts) == len(problems(SMALL))
    worst = found.ratios("chosen")
    heuristic = found.ratios("heuristic")
    assert worst is not None
    assert heuristic is not None
    assert worst[1] < 1.05
    assert worst[1] <= heuristic[1]
    ordered = [verdict.ordered for verdict in found.verdicts if verdict.ordered is not None]
    assert np.mean(ordered) > 0.9
    # Where the winner of the GPU that was fitted to was measured here too, it is told.
    assert all(v.nearest is None or v.nearest >= 1.0 for v in found.verdicts)


def test_what_was_not_measured_is_found_as_well() -> None:
    """The model chooses among all candidates, of which the rows have a part."""
    model = Model.fitted(measured(H100))
    for problem in problems(SMALL):
        entries = candidates(problem)
        expected = model.expected(problem.program, SMALL, entries, problem.sizes)
        took = seconds(problem, entries)
        assert took[np.argmin(expected.seconds)] < 1.1 * took.min()


def test_a_shape_is_judged_by_the_others() -> None:
    found = judge(measured(H100))
    chosen = found.ratios("chosen")
    assert chosen is not None
    assert chosen[2] == len(found.verdicts) == len(problems(H100))
    heuristic = found.ratios("heuristic")
    assert heuristic is not None
    assert chosen[0] <= heuristic[0]
    assert chosen[1] <= heuristic[1]
    assert found.errors["cuda-chunks"] < 0.15


def test_the_shipped_log() -> None:
    """One shape after the other is left out. The log has the heuristic's choice and what beat it,
    so the bounds are on times and on what is chosen at all, not on what is better than chance.
    """
    rows = evidence([shipped_logs()])
    found = judge(rows.only(s for s in rows.samples if s.row.device == H100.name))
    assert found.basis.endswith("rows of NVIDIA H100 80GB HBM3")
    assert len(found.verdicts) >= 19
    chosen, heuristic = found.ratios("chosen"), found.ratios("heuristic")
    assert chosen is not None
    assert heuristic is not None
    assert chosen[0] <= 1.06
    assert chosen[1] <= min(1.25, heuristic[1])
    off = np.array([verdict.off for verdict in found.verdicts])
    assert np.median(np.abs(off)) < 0.12
    assert found.errors["cuda-chunks"] < 0.12
    assert found.errors["cuda-rows"] < 0.12


def test_what_the_law_is_off_by() -> None:
    """A shape of many rows counts as one of few; what nobody would take does not count."""
    few, many = {"a": [0.01]}, {"a": [0.04] * 99, "b": [4.0]}
    assert errors_of({1: few, 2: many}) == {"": pytest.approx(0.15)}
    errors = errors_of({1: few, 2: many, 3: {"a": [0.04]}, 4: {"b": []}})
    assert errors == {"a": pytest.approx(0.03**0.5), "": pytest.approx(0.03**0.5)}
    squares = left_out(measured(H100))
    assert set(squares) == {sample.shape for sample in measured(H100).samples}


def test_nothing_measured_judges_nothing() -> None:
    found = judge(Evidence())
    assert found.verdicts == ()
    assert found.ratios("chosen") is None
    assert found.errors == errors_of({}) == {"": pytest.approx(0.15)}
    assert left_out(Evidence()) == {}
