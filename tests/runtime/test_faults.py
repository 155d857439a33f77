"""What kernels report, and what the user is told of it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime import dispatch, ops, plan
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.errors import IndexRangeError, NanLogitError
from pdssm_compiler.runtime.faults import DeviceWords, LastCall, Reporter, _HostWord
from pdssm_compiler.schedules.signature import CHECK_SHIFT, ReportedCheck, Signature

PROGRAM = pd_scan(PdScan(8, 3))
SIZES = Sizes(2, 9, 3)


def word(program: Any, subject: str, token: int) -> int:
    """What a kernel writes of a token whose index is out of range."""
    number = Signature(program).check_number(ReportedCheck(subject, "range"))
    return number << CHECK_SHIFT | token


# b=1, t=4, h=2.
TOKEN = (1 * 9 + 4) * 3 + 2


def test_an_index_out_of_range() -> None:
    error = Reporter(PROGRAM).error(word(PROGRAM, "selection", TOKEN), SIZES)
    assert isinstance(error, IndexRangeError)
    assert str(error) == (
        "selection[b=1, t=4, h=2] has an entry out of range: entries must lie in [0, 3)"
    )


@pytest.mark.parametrize(
    ("subject", "place"),
    [("selection", "selection[b=1, t=4, h=2]"), ("dictionary", "dictionary (head 2)")],
)
def test_a_choice_is_out_of_range_where_a_logit_is_nan(subject: str, place: str) -> None:
    error = Reporter(PROGRAM, chosen=True).error(word(PROGRAM, subject, TOKEN), SIZES)
    assert isinstance(error, NanLogitError)
    assert str(error) == (
        f"the logits of {place} have a NaN, so nothing can be chosen; look for what made it"
    )


def _by_default_elsewhere(make: Callable[[], None]) -> None:
    with torch.device("meta"):
        make()


def _among_fake_tensors(make: Callable[[], None]) -> None:
    with FakeTensorMode():
        make()


def _in_a_transform(make: Callable[[], None]) -> None:
    def loss(number: torch.Tensor) -> torch.Tensor:
        make()
        return number

    torch.func.grad(loss)(torch.ones(()))


@pytest.mark.parametrize("within", [_by_default_elsewhere, _among_fake_tensors, _in_a_transform])
def test_a_thread_s_first_call_may_be_anywhere(within: Callable[[Any], None]) -> None:
    """Its word is memory of the CPU wherever it is made."""
    made: list[_HostWord] = []
    within(lambda: made.append(_HostWord()))
    made[0].tensor[0] = 3
    assert made[0].array.tolist() == [3]


def test_what_is_given_beside_a_choice_is_told_as_that() -> None:
    """Tokens that share mixtures: their maps are chosen, and which they share is not."""
    reporter = Reporter(PROGRAM, chosen=frozenset({"dictionary"}))
    of_symbol = reporter.error(word(PROGRAM, "selection", TOKEN), SIZES)
    of_map = reporter.error(word(PROGRAM, "dictionary", TOKEN), SIZES)
    assert (type(of_symbol), type(of_map)) == (IndexRangeError, NanLogitError)


def test_entries_say_what_is_chosen() -> None:
    maps, indices = torch.ones(3, 3, 8, 8), torch.ones(2, 9, 3, 3)
    assert ops.hard_choices(PROGRAM.text, None) is False
    assert ops.hard_choices(PROGRAM.text, [maps, indices]) is True
    given = ops.hard_choices(PROGRAM.text, [maps, indices[..., :0]])
    assert given == frozenset({"dictionary"})


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> DeviceWords:
    """Words in memory that is not pinned."""
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *a, pin_memory=False, **more: zeros(*a, **more))
    return DeviceWords()


def test_a_nan_is_told_before_what_follows_from_it(words: DeviceWords) -> None:
    backward = adjoint(PROGRAM, surrogate="active").program
    claimed = [words.claim(Reporter(p, chosen=c)) for p, c in ((backward, False), (PROGRAM, True))]
    for (tensor, last), program in zip(claimed, (backward, PROGRAM), strict=True):
        tensor[0] = word(program, "selection", TOKEN)
        last[0] = LastCall(SIZES)
    with pytest.raises(NanLogitError, match=r"selection\[b=1, t=4, h=2\]"):
        words.raise_any()
    words.raise_any()  # both are forgotten
    claimed[0][0][0] = word(backward, "selection", TOKEN)
    with pytest.raises(IndexRangeError, match="selection"):
        words.raise_any()


def test_calls_by_logits_have_plans_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_plans", {})
    cpu = torch.device("cpu")
    plans = [plan.plan_for(PROGRAM.text, cpu, 0, "", chosen) for chosen in (False, True)]
    assert plans[0] is not plans[1]
    assert [each._reporter.chosen for each in plans] == [False, True]
    assert plan.plan_for(PROGRAM.text, cpu, 0, "", True) is plans[1]


@pytest.mark.parametrize("entries", [0, 2])
def test_the_operator_says_which_calls_are_by_logits(
    entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:

    told = []

    def run(*_: Any, chosen: bool) -> list[torch.Tensor]:
        told.append(chosen)
        return [torch.zeros(1)]

    for module in (dispatch, ops):
        monkeypatch.setattr(module, "run", run)
    ones = [torch.ones(1, 1, 1)] * entries
    inputs = [torch.zeros(1, 2, 1, 8, dtype=torch.complex64)]
    dispatch.call(PROGRAM.text, inputs, "", ones)
    ops._scan(PROGRAM.text, inputs, ones, "", False)
    assert told == [bool(entries)] * 2
