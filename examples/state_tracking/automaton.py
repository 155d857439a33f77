"""The automaton that a PD-SSM layer has learned, read from its maps.

In a model of one layer a token's map and diagonal follow from the token alone. A sequence begins
with a one in component 0, which the maps carry from component to component: an automaton, whose
states are the components that can be reached. What it answers is what the model answers where it
is there. How long the model can follow it is what the diagonal leaves of the one.
"""

import copy
import math
from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from aalpy.automata import MooreMachine, MooreState

from examples.state_tracking.machines import as_asked, difference, machine, minimal, true_machine
from examples.state_tracking.training import Run
from pdssm_compiler.nn import PDSSM
from pdssm_compiler.nn.cache import LayerCache

Word = tuple[int, ...]


class Learned(NamedTuple):
    """What was read out of a run.

    Attributes:
        read: the machine of the maps, as it is.
        small: the smallest machine that answers like it, if it is the task's where that asks.
        true: the task's.
        difference: a shortest word, no shorter than those trained on, that they answer otherwise;
            None if they are the same language of answers, for sequences of any length from there.
        agreement: the part of sampled sequences, of training lengths, for which the model answers
            as its machine.
        magnitude: the smallest ``|D|`` that the one is multiplied by where it stays in the end.
    """

    read: MooreMachine
    small: MooreMachine
    true: MooreMachine
    difference: tuple[int, ...] | None
    agreement: float
    magnitude: float

    @property
    def half_life(self) -> float:
        """Tokens after which half of the one is left, in the worst case, in the end."""
        if self.magnitude >= 1:
            return math.inf
        return math.log(0.5) / math.log(self.magnitude) if self.magnitude > 0 else 0.0


def has_maps(run: Run) -> bool:
    """Whether its maps follow from tokens alone, so that an automaton can be read from them."""
    blocks = run.model.blocks
    return len(blocks) == 1 and type(blocks[0]) is PDSSM and blocks[0].orientation == "column"


def read_out(run: Run, sequences: int = 2048) -> Learned:
    """The automaton of a trained run.

    Args:
        run: of a ``pdssm`` model of one layer.
        sequences: that its answers are taken from, of training lengths and shorter; where none of
            them leads, it is asked after a word that does.

    Raises:
        ValueError: another model, or a task that :func:`true_machine` does not know.
    """
    if not has_maps(run):
        raise ValueError(
            "only of a pdssm model of one layer do maps follow from tokens alone; train one with "
            "a single layer"
        )
    true = true_machine(run.task)
    maps, magnitudes = maps_of(run)
    answers, agreement = _answers(run, maps, sequences)
    answers |= _asked(run, _unseen(maps, true, answers, run.settings.shortest))
    read = machine(0, run.task.symbols, lambda j, n: maps[n - 1][j], lambda j: answers.get(j))
    leads = _followed(maps, true)
    smallest = min(
        (magnitudes[n - 1][j] for j in _lasting(leads) for n in leads[j]), default=math.nan
    )
    apart = difference(read, true, run.settings.shortest)
    # Where it is another it has many states beside the task's.
    small = minimal(read if apart else as_asked(read, true))
    return Learned(read, small, true, apart, agreement, smallest)


def _unseen(
    maps: list[list[int]], true: MooreMachine, known: Collection[int], shortest: int
) -> dict[int, Word]:
    """Of every component whose answer is not known, and that is asked for one: a shortest word of
    the task that leads there.
    """
    found: dict[int, Word] = {}
    start = (0, true.initial_state, 0)
    words: dict[tuple[int, MooreState, int], Word] = {start: ()}
    waiting = [start]
    for component, state, length in waiting:  # which grows
        word = words[component, state, length]
        for symbol, to in state.transitions.items():
            there, longer = maps[symbol - 1][component], min(length + 1, shortest)
            if (there, to, longer) in words:
                continue
            words[there, to, longer] = (*word, symbol)
            waiting.append((there, to, longer))
            if longer == shortest and to.output is not None and there not in known:
                found.setdefault(there, (*word, symbol))
    return found


@torch.no_grad()
def _asked(run: Run, words: Mapping[int, Word]) -> dict[int, int]:
    """What the model answers after words, by what they are asked for."""
    if not words:
        return {}
    most = max(map(len, words.values()))
    padded = [[*word, *[0] * (most - len(word))] for word in words.values()]
    tokens = torch.tensor(padded, device=run.device)
    training = run.model.training
    run.model.eval()
    scores = run.model(tokens, torch.tensor([*map(len, words.values())], device=run.device))
    run.model.train(training)
    return dict(zip(words, scores.argmax(-1).tolist(), strict=True))


def _followed(maps: list[list[int]], true: MooreMachine) -> dict[int, dict[int, int]]:
    """Of every component that sequences of the task reach, where its symbols lead, by their
    numbers; those after which nothing more can come are left out.
    """

    def goes_on(state: MooreState) -> bool:
        return (
            any(to is not state for to in state.transitions.values()) or state.output is not None
        )

    def ends(state: MooreState) -> bool:
        return not any(goes_on(to) for to in state.transitions.values())

    leads: dict[int, dict[int, int]] = {}
    seen = waiting = {(0, true.initial_state)}
    while waiting:
        new = set()
        for component, state in waiting:
            for symbol, to in state.transitions.items():
                if goes_on(to) and not ends(to):
                    leads.setdefault(component, {})[symbol] = maps[symbol - 1][component]
                    new.add((maps[symbol - 1][component], to))
        waiting = new - seen
        seen = seen | waiting
    return leads


def _lasting(leads: dict[int, dict[int, int]]) -> set[int]:
    """The components that can be reached again whatever comes."""

    def reached(component: int) -> set[int]:
        found, new = {component}, {component}
        while new:
            new = {to for j in new for to in leads.get(j, {}).values()} - found
            found |= new
        return found

    every = {component: reached(component) for component in reached(0)}
    return {j for j, there in every.items() if j in leads and all(j in every[k] for k in there)}


@torch.no_grad()
def maps_of(run: Run) -> tuple[list[list[int]], list[list[float]]]:
    """Of every symbol where its map leads from each component, and ``|D|``.

    Args:
        run: of a model of one layer.

    Returns:
        Two lists by symbols, from the first on, of lists by components.
    """
    block = copy.deepcopy(run.model.blocks[0]).eval()
    assert isinstance(block, PDSSM)
    # Without drive a step from each component alone shows what becomes of it.
    block.drive_proj.weight.zero_()
    n = block.state_size
    alone = torch.view_as_real(torch.eye(n, dtype=torch.complex64, device=run.device))
    maps, magnitudes = [], []
    for symbol in range(1, run.task.symbols + 1):
        token = run.model.embedding.weight[symbol].expand(n, -1)
        _, cache = block.step(token, LayerCache(alone.unsqueeze(1).clone()))
        after = torch.view_as_complex(cache.state)[:, 0].abs()  # [from, to]
        maps.append(after.argmax(-1).tolist())
        magnitudes.append(after.amax(-1).tolist())
    return maps, magnitudes


@torch.no_grad()
def _answers(run: Run, maps: list[list[int]], sequences: int) -> tuple[dict[int, int], float]:
    """What the model mostly answers where the one is in each component, and of how many sequences
    of training lengths it does.
    """
    settings, task = run.settings, run.task
    random = torch.Generator(run.device).manual_seed(settings.seed)
    batch = task.batch(sequences, 1, settings.longest, random, run.device)
    training = run.model.training
    run.model.eval()
    found = run.model(batch.tokens, batch.lengths).argmax(-1).tolist()
    run.model.train(training)
    leads = torch.tensor([list(range(len(maps[0]))), *maps], device=run.device)
    places = torch.zeros(sequences, dtype=torch.int64, device=run.device)
    for tokens in batch.tokens.unbind(1):
        places = leads[tokens, places]
    votes: dict[int, Counter[int]] = {}
    for place, answer in zip(places.tolist(), found, strict=True):
        votes.setdefault(place, Counter())[answer] += 1
    answers = {place: counted.most_common(1)[0][0] for place, counted in votes.items()}
    trained = (batch.lengths >= settings.shortest).tolist()
    told = zip(places.tolist(), found, trained, strict=True)
    agreed = [answers[place] == answer for place, answer, counts in told if counts]
    return answers, sum(agreed) / max(1, len(agreed))
