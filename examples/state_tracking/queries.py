"""The automaton that any model is to who can only ask it, learned by Angluin's L*.

Nothing is read from the model: L* (AALpy's) asks for its answers to words that it chooses, makes
the smallest machine that answers alike, and has it tried on words drawn at random, of which one
that is answered otherwise begins the next round. What comes out is right for all words asked; for
others that is not proved, unlike what :mod:`examples.state_tracking.automaton` reads from maps.

Source: Angluin 1987; of recurrent networks, Weiss et al. 2018 (arXiv 1711.09576).
"""

from typing import Any, NamedTuple

import torch
from aalpy.automata import MooreMachine
from aalpy.base import SUL, Automaton, Oracle
from aalpy.learning_algs import run_Lstar

from examples.state_tracking.machines import difference, true_machine
from examples.state_tracking.tasks import Task
from examples.state_tracking.training import Run

Word = tuple[int, ...]


class Asked(NamedTuple):
    """What was learned of a run.

    Attributes:
        learned: the machine.
        true: the task's.
        difference: a shortest word, no shorter than those trained on, that they answer otherwise;
            None if there is none.
        words: drawn at random, which the model answers as the machine learned does.
        wrong: a word drawn that it answers otherwise, the states being too many; None if none.
    """

    learned: MooreMachine
    true: MooreMachine
    difference: Word | None
    words: int
    wrong: Word | None


def learn(run: Run, words: int = 8192) -> Asked:
    """The automaton of a trained run of any model; once it has more than twice as many states as
    the task's, it is tried no more.

    Args:
        run: of a task whose sequences are all words over its letters.
        words: drawn at random, of training lengths and shorter, that a machine is tried on.

    Raises:
        ValueError: a task whose sequences are not all words over its letters, or that
            :func:`examples.state_tracking.machines.true_machine` does not know.
    """
    if run.task.spell is not None:
        raise ValueError(
            f"sequences of {run.task.name} are not all words over its letters, so it cannot be "
            f"asked for any; name runs of another task"
        )
    true = true_machine(run.task)
    model = _Model(run)
    trial = _Trial(model, run.task, words, 2 * true.size)
    letters = list(range(1, run.task.symbols + 1))
    # Its own cache ends the process where sums of another batch round otherwise.
    learned: Any = run_Lstar(
        letters, model, trial, "moore", cache_and_non_det_check=False, print_level=0
    )
    apart = difference(learned, true, run.settings.shortest)
    return Asked(learned, true, apart, words, trial.wrong)


class _Model(SUL):  # type: ignore[misc]
    """A trained model, asked for its answers; to nothing it has none."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.word: Word = ()
        self.known: dict[Word, list[int]] = {}

    @torch.no_grad()
    def answers(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        model = self.run.model
        training = model.training
        found: torch.Tensor = model.eval()(tokens, lengths).argmax(-1)
        model.train(training)
        return found

    def query(self, word: Word) -> list[int | None]:
        """After each of its letters; all prefixes in one batch, and each word once."""
        self.num_queries += 1
        if not word:
            return [None]
        if word not in self.known:
            device, size = self.run.device, len(word)
            lengths = torch.arange(1, size + 1, device=device)
            # Behind the end of a prefix is padding.
            tokens = torch.tensor(word, device=device).expand(size, -1).tril()
            self.known[word] = self.answers(tokens, lengths).tolist()
        return list(self.known[word])

    def pre(self) -> None:
        self.word = ()

    def post(self) -> None:
        pass

    def step(self, letter: int | None) -> int | None:
        if letter is None:
            return None
        self.word = (*self.word, letter)
        return self.query(self.word)[-1]


class _Trial(Oracle):  # type: ignore[misc]
    """Words drawn at random, answered in one batch."""

    def __init__(self, model: _Model, task: Task, words: int, states: int) -> None:
        super().__init__(list(range(1, task.symbols + 1)), model)
        self.states = states
        self.wrong: Word | None = None
        run = model.run
        draws = torch.Generator(run.device).manual_seed(run.settings.seed)
        batch = task.batch(words, 1, run.settings.longest, draws, run.device)
        answers = model.answers(batch.tokens, batch.lengths).tolist()
        self.tried: list[tuple[Word, int]] = [
            (tuple(tokens[:length]), answer)
            for tokens, length, answer in zip(
                batch.tokens.tolist(), batch.lengths.tolist(), answers, strict=True
            )
        ]
        # A short word makes a short round.
        self.tried.sort(key=lambda pair: len(pair[0]))

    def find_cex(self, hypothesis: Automaton) -> Word | None:
        """A word drawn that the machine answers otherwise; None if there is none, or no more is
        tried.
        """
        self.wrong = None
        for word, answer in self.tried:
            self.num_queries += 1
            state = hypothesis.initial_state
            for letter in word:
                state = state.transitions[letter]
            if state.output != answer:
                self.wrong = word
                return word if len(hypothesis.states) <= self.states else None
        return None
