"""Automata of the tasks, and the one that a model's maps are."""

import json
import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.state_tracking.automaton import Learned, maps_of, read_out
from examples.state_tracking.drawing import draw
from examples.state_tracking.machines import (
    as_asked,
    difference,
    machine,
    minimal,
    transitions,
    true_machine,
)
from examples.state_tracking.queries import learn
from examples.state_tracking.tasks import task_of
from examples.state_tracking.training import Run
from pdssm_compiler.schedules.templates.torch_tokens import TorchTokens
from tests.examples.test_state_tracking import SMALL, command
from tests.torch_only import torch_only

SIZES = {"parity": 2, "even-pairs": 4, "cycle-navigation": 5, "A5-3": 60, "S5-2": 120}


@pytest.mark.parametrize("name", SIZES)
def test_true_machines_answer_as_tasks_do(name: str) -> None:
    task = task_of(name)
    found = true_machine(task)
    assert found.size == 1 + SIZES[name]
    batch = task.batch(40, 1, 12, torch.Generator().manual_seed(0))
    for tokens, length, answer in zip(*(part.tolist() for part in batch), strict=True):
        found.reset_to_initial()
        outputs = [found.step(token) for token in tokens[:length]]
        assert outputs[-1] == answer


def test_the_machine_of_expressions() -> None:
    """It answers at the end of one, and to nothing else."""
    task = task_of("modular-arithmetic")
    found = true_machine(task)
    batch = task.batch(200, 1, 12, torch.Generator().manual_seed(0))
    for tokens, length, answer in zip(*(part.tolist() for part in batch), strict=True):
        outputs = found.execute_sequence(found.initial_state, tokens[:length])
        assert outputs == [None] * (length - 1) + [answer]
    for word in ((1, 1, 9), (6, 1, 9), (1, 9, 9), (1, 6, 9), (1, 6, 7, 1, 9), (9,)):
        assert found.execute_sequence(found.initial_state, word)[-1] is None, word


def test_what_is_answered_to_what_is_no_expression_is_not_asked() -> None:
    """A machine that reads digits as the true one does, and answers anything."""
    true = true_machine(task_of("modular-arithmetic"))

    def copy(wrong: int) -> object:
        return machine(
            true.initial_state,
            9,
            lambda state, letter: state.transitions[letter],
            lambda state: 3 if state.output in (None, wrong) else state.output,
        )

    assert difference(copy(3), true) is None
    assert minimal(as_asked(copy(3), true)).size == true.size
    assert difference(copy(1), true) == (1, 9)


def test_expressions_are_not_asked_for_any_words(tmp_path: Path) -> None:
    run = Run(replace(SMALL, task="modular-arithmetic"), tmp_path, "cpu")
    with pytest.raises(ValueError, match="modular-arithmetic are not all words over its letters"):
        learn(run)


@given(st.integers(0, 10**6))
def test_minimal_machines_answer_alike(seed: int) -> None:
    """As large ones do, for random words; and a word that tells two machines apart does."""
    draws = torch.Generator().manual_seed(seed)
    leads = torch.randint(6, (2, 6), generator=draws).tolist()
    answers = torch.randint(1, 3, (2, 6), generator=draws).tolist()
    large, other = (
        machine(0, 2, lambda s, n: leads[n - 1][s], lambda s, own=own: own[s]) for own in answers
    )
    small = minimal(large)
    assert small.size <= large.size
    assert difference(large, small) is None
    apart = difference(large, other)
    for word in ([1, 2, 2, 1, 1], [2, 2, 1, 2, 1, 1, 2, 2], apart or [1]):
        ends = []
        for each in (large, small, other):
            each.reset_to_initial()
            ends.append([each.step(letter) for letter in word][-1] if word else None)
        assert ends[0] == ends[1]
        if apart is None:
            assert ends[0] == ends[2]
    if apart is not None:
        assert ends[0] != ends[2]


def planted(folder: Path, seed: int = SMALL.seed) -> Run:
    """A run whose maps are, from component 0 on, the automaton of parity."""
    sizes = replace(SMALL.sizes, dictionary=2, dropout=0.0)
    run = Run(replace(SMALL, sizes=sizes, seed=seed), folder, "cpu")
    block, n = run.model.blocks[0], 6
    leads = [[0, 1, 2, 3, 4, 5], [4, 0, 4, 1, 2, 5]]
    with torch.no_grad():
        run.model.embedding.weight.zero_()
        run.model.embedding.weight[1, 0] = run.model.embedding.weight[2, 1] = 4.0
        block.dictionary_logits.zero_()
        for k, map_ in enumerate(leads):
            block.dictionary_logits[k, map_, range(n)] = 9.0
        block.selector.weight.zero_()
        block.selector.weight[0, 0] = block.selector.weight[1, 1] = 5.0
        block.drive_proj.weight.zero_()
        for parameter in block.diagonal.parameters():
            parameter.zero_()  # |D| = 1/2, a phase of half a turn
    return run


def test_maps_of_a_planted_model(tmp_path: Path) -> None:
    with torch_only(TorchTokens()):
        maps, magnitudes = maps_of(planted(tmp_path))
    assert maps == [[0, 1, 2, 3, 4, 5], [4, 0, 4, 1, 2, 5]]
    torch.testing.assert_close(torch.tensor(magnitudes), torch.full((2, 6), 0.5))


def found_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch, wrong: bool, sequences: int = 200
) -> Learned:
    """What is read out of the planted model, which answers parity, or always the same."""
    run = planted(folder)

    def scores(tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        odd = (tokens == 2).sum(-1) % 2 * (not wrong)
        return torch.nn.functional.one_hot(1 + odd, 3).float()

    monkeypatch.setattr(run.model, "forward", scores)
    with torch_only(TorchTokens()):
        return read_out(run, sequences)


def test_without_the_library_of_automata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.state_tracking.__main__.find_spec", lambda name: None)
    code, said = command("automaton", str(tmp_path), "--device", "cpu")
    assert code == 2
    assert "automata take AALpy, which is not installed; pip install aalpy" in said


def test_the_automaton_of_a_planted_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_in(tmp_path, monkeypatch, wrong=False)
    assert found.difference is None
    assert (found.read.size, found.small.size, found.true.size) == (4, 3, 3)
    assert transitions(found.read)["4"] == (2, {1: "4", 2: "2"})
    # States are called what the picture can say: after their components.
    assert all(re.fullmatch(r"start|\d(\.\d+)?", name) for name in transitions(found.small))
    assert found.agreement == 1
    assert found.magnitude == pytest.approx(0.5)
    assert found.half_life == pytest.approx(1.0)
    draw([("read", found.read), ("true", found.true)], tmp_path / "graph.png")
    assert (tmp_path / "graph.png").stat().st_size > 0


@pytest.mark.parametrize("wrong", [False, True])
def test_where_no_sample_led_the_model_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: bool
) -> None:
    """One sequence ends in one state; the others' answers are known all the same."""
    one = found_in(tmp_path / "1", monkeypatch, wrong, sequences=1)
    many = found_in(tmp_path / "200", monkeypatch, wrong)
    assert transitions(one.read) == transitions(many.read)
    assert one.difference == many.difference
    assert one.small.size == many.small.size


def test_a_model_that_has_learned_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = found_in(tmp_path, monkeypatch, wrong=True)
    assert found.difference == (1, 2)
    assert found.small.size == 2


@given(st.integers(0, 10**6), st.integers(1, 5))
def test_what_is_answered_to_shorter_words_is_not_asked(seed: int, shortest: int) -> None:
    """Against all words of up to as many letters as pairs of states and lengths can be."""
    draws = torch.Generator().manual_seed(seed)
    one, other = (
        machine(0, 2, lambda s, n, to=to: to[n - 1][s], lambda s, own=own: own[s])
        for to, own in (
            (
                torch.randint(2, (2, 2), generator=draws).tolist(),
                torch.randint(1, 3, (2,), generator=draws).tolist(),
            )
            for _ in range(2)
        )
    )
    apart = [
        word
        for length in range(shortest, shortest + 5)
        for word in product((1, 2), repeat=length)
        if one.execute_sequence(one.initial_state, word)[-1]
        != other.execute_sequence(other.initial_state, word)[-1]
    ]
    found = difference(one, other, shortest)
    assert found is None if not apart else len(found or ()) == len(apart[0])
    assert found is None or found in apart


@pytest.mark.parametrize("change", [{"model": "lstm"}, {"sizes": replace(SMALL.sizes, layers=2)}])
def test_models_whose_maps_do_not_follow_from_tokens(
    tmp_path: Path, change: dict[str, object]
) -> None:
    run = Run(replace(SMALL, **change), tmp_path, "cpu")
    with pytest.raises(ValueError, match="only of a pdssm model of one layer do maps follow"):
        read_out(run)


ANSWERS = {
    "parity": lambda tokens, lengths: (tokens == 2).sum(-1) % 2,
    "even-pairs": lambda tokens, lengths: (
        tokens[:, 0] != tokens.gather(1, lengths[:, None] - 1).squeeze(1)
    ).long(),
    "never": lambda tokens, lengths: torch.zeros_like(lengths),
    # As many twos as the length's root: no automaton.
    "counting": lambda tokens, lengths: ((tokens == 2).sum(-1) ** 2 > lengths).long(),
}


@pytest.mark.parametrize(
    ("answers", "difference"),
    [("parity", None), ("even-pairs", (1, 2, 1)), ("never", (1, 2)), ("counting", (1, 2))],
)
def test_a_model_that_is_asked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answers: str,
    difference: tuple[int, ...] | None,
) -> None:
    run = Run(replace(SMALL, longest=20), tmp_path, "cpu")

    def scores(tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        found = 1 + ANSWERS[answers](tokens, lengths)
        return torch.nn.functional.one_hot(found, 3).float()

    monkeypatch.setattr(run.model, "forward", scores)
    asked = learn(run, 300)
    assert asked.difference == difference
    if answers == "counting":
        assert asked.wrong is not None
        assert 6 < asked.learned.size < 20
    else:
        assert asked.wrong is None
        own = {"parity": 3, "even-pairs": 5, "never": 2}
        assert asked.learned.size == own[answers]


def test_the_command(tmp_path: Path) -> None:
    with torch_only(TorchTokens()):
        run = Run(SMALL, tmp_path / SMALL.name, "cpu")
        run.advance()
        run.measure()
        constant = planted(tmp_path / "parity-pdssm-4", 4)
        torch.nn.init.zeros_(constant.model.head.weight)
        constant.measure()
        other = replace(SMALL, model="lstm")
        Run(other, tmp_path / other.name, "cpu").measure()
        sums = replace(SMALL, task="modular-arithmetic")
        Run(sums, tmp_path / sums.name, "cpu").measure()
        code, said = command("automaton", str(tmp_path), "--device", "cpu")
    assert code == 0, said
    # It has learned nothing yet, so its answers are not of its maps.
    assert re.search("pdssm-3: its maps tell .* % of its answers, so it is asked for them", said)
    assert re.search("pdssm-3: states: .* learned from its answers, 2 true; ", said)
    assert re.search("pdssm-4: states: 3 read, 1 as small as can be, 2 true; after . . it ", said)
    assert re.search("parity-lstm-3: states: .* learned from its answers, 2 true; ", said)
    assert "modular-arithmetic-pdssm-3: sequences of modular-arithmetic are not all words" in said
    assert (tmp_path / SMALL.name / "automaton.png").stat().st_size > 0
    stored = json.loads((tmp_path / "automata.json").read_text())
    assert [each["run"] for each in stored["automata"]] == [
        "parity-lstm-3",
        "parity-pdssm-3",
        "parity-pdssm-4",
    ]
    agreed = [each.get("agreement") for each in stored["automata"]]
    assert agreed[0] is None
    assert agreed[1] < agreed[2] == 1
    code, said = command("automaton", str(tmp_path / "none"))
    assert code == 2
    assert "there is no checkpoint in" in said
