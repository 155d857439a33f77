"""The automata of the tasks, and of what a model has learned, as Moore machines of AALpy.

Both begin in a state of their own, which has no output: nothing is asked of an empty sequence.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

from aalpy.automata import MooreMachine, MooreState
from aalpy.utils import bisimilar

from examples.state_tracking.groups import Group
from examples.state_tracking.tasks import MODULUS, Task

State = TypeVar("State", bound=Hashable)
# A letter's number, from 1 on; an answer's, from 1 on; where no answer is known, None.
Step = Callable[[State, int], State]


def machine(
    start: State, letters: int, step: Step[State], answer: Callable[[State], int | None]
) -> MooreMachine:
    """The machine of what can be reached.

    Args:
        start: where a sequence begins.
        letters: how many.
        step: the state after a letter.
        answer: what a state that a letter led to answers.
    """
    made: dict[Hashable, MooreState] = {}
    order: list[MooreState] = []

    def state_of(key: State) -> MooreState:
        if key not in made:
            made[key] = MooreState(str(key), answer(key))
            order.append(made[key])
            waiting.append(key)
        return made[key]

    waiting: list[State] = []
    first = MooreState("start", None)
    order.append(first)
    first.transitions = {n: state_of(step(start, n)) for n in range(1, letters + 1)}
    while waiting:
        key = waiting.pop()
        made[key].transitions = {n: state_of(step(key, n)) for n in range(1, letters + 1)}
    return MooreMachine(first, order)


def true_machine(task: Task) -> MooreMachine:
    """The automaton of a task, as small as can be.

    Raises:
        ValueError: a task whose sequences are not all words over its letters.
    """
    found: MooreMachine
    match task.name:
        case "parity":
            found = machine(0, 2, lambda s, n: s ^ (n == 2), lambda s: 1 + s)
        case "even-pairs":
            found = machine((0, 0), 2, lambda s, n: (s[0] or n, n), lambda s: 1 + (s[0] != s[1]))
        case "cycle-navigation":
            moves = (0, 1, -1)
            found = machine(0, 3, lambda s, n: (s + moves[n - 1]) % MODULUS, lambda s: 1 + s)
        case _ if task.name[:3] in ("A5-", "S5-"):
            group = Group.named(task.name[:2])
            letters, table = group.letters(task.symbols), group.table.tolist()
            found = machine(
                0, task.symbols, lambda s, n: table[s][letters[n - 1]], lambda s: 1 + s
            )
        case _:
            raise ValueError(
                f"sequences of {task.name} are not all words over its letters, so no automaton "
                f"reads them; name runs of another task"
            )
    return minimal(found)


def minimal(large: MooreMachine) -> MooreMachine:
    """The smallest machine that answers alike; by classes of states that no word tells apart."""
    small: MooreMachine = large.copy()
    small.minimize()
    return small


def difference(
    one: MooreMachine, other: MooreMachine, shortest: int = 1
) -> tuple[int, ...] | None:
    """A shortest word that two machines answer otherwise; None if there is none, of any length.

    Args:
        one: a machine.
        other: one of the same letters.
        shortest: letters of a word, at least; what they answer to shorter ones is not asked.
    """
    both = (_silent_before(each, shortest) for each in (one, other))
    found: tuple[int, ...] | None = bisimilar(*both, return_cex=True)
    return found


def _silent_before(found: MooreMachine, letters: int) -> MooreMachine:
    """The machine that answers alike after so many letters, and not before."""

    def step(place: tuple[MooreState, int], letter: int) -> tuple[MooreState, int]:
        state, count = place
        return state.transitions[letter], min(count + 1, letters)

    return machine(
        (found.initial_state, 0),
        len(found.initial_state.transitions),
        step,
        lambda place: place[0].output if place[1] == letters else None,
    )


def transitions(found: MooreMachine) -> Mapping[str, tuple[int | None, dict[int, str]]]:
    """Of every state the answer, and where letters lead, by names."""
    return {
        state.state_id: (
            state.output,
            {letter: to.state_id for letter, to in state.transitions.items()},
        )
        for state in found.states
    }
