"""The automata of the tasks, and of what a model has learned, as Moore machines of AALpy.

Both begin in a state of their own, which has no output: nothing is asked of an empty sequence.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

from aalpy.automata import MooreMachine, MooreState
from aalpy.utils import bisimilar

from examples.state_tracking.groups import Group
from examples.state_tracking.tasks import END, MODULUS, PLUS, TIMES, Task

State = TypeVar("State", bound=Hashable)
# A letter's number, from 1 on; an answer's, from 1 on; where no answer is known, None.
Step = Callable[[State, int], State]
# Of a machine and the true one beside it, and letters read; None where nothing is asked any more.
_Place = tuple[MooreState, MooreState, int] | None
# Of expressions: what came last, the sum of the terms before, and the term that has begun.
Read = tuple[str, int, int]


def machine(
    start: State,
    letters: int,
    step: Step[State],
    answer: Callable[[State], int | None],
    name: Callable[[State], str] = str,
) -> MooreMachine:
    """The machine of what can be reached.

    Args:
        start: where a sequence begins.
        letters: how many.
        step: the state after a letter.
        answer: what a state that a letter led to answers.
        name: what it is called; each by another name.
    """
    made: dict[Hashable, MooreState] = {}
    order: list[MooreState] = []

    def state_of(key: State) -> MooreState:
        if key not in made:
            made[key] = MooreState(name(key), answer(key))
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
    """The automaton of a task, as small as can be; no answer to what is no sequence of it.

    Raises:
        ValueError: a task that none is written for here.
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
        case "modular-arithmetic":
            found = machine(
                ("sign", 0, 1), END, _read, lambda s: 1 + s[1] if s[0] == "end" else None
            )
        case _ if task.name[:3] in ("A5-", "S5-"):
            group = Group.named(task.name[:2])
            letters, table = group.letters(task.symbols), group.table.tolist()
            found = machine(
                0, task.symbols, lambda s, n: table[s][letters[n - 1]], lambda s: 1 + s
            )
        case _:
            raise ValueError(f"there is no automaton of {task.name} here; name another task")
    return minimal(found)


def _read(place: Read, symbol: int) -> Read:
    """What has been read of an expression after one more symbol.

    A digit multiplies the term that has begun: 1 behind a plus, -1 behind a minus.
    """
    last, sum_, term = place
    if last == "sign" and symbol <= MODULUS:
        return "digit", sum_, term * (symbol - 1) % MODULUS
    if last != "digit" or symbol <= MODULUS:
        return "none", 0, 0
    if symbol == TIMES:
        return "sign", sum_, term
    if symbol == END:
        return "end", (sum_ + term) % MODULUS, 0
    return "sign", (sum_ + term) % MODULUS, 1 if symbol == PLUS else -1 % MODULUS


def minimal(large: MooreMachine) -> MooreMachine:
    """The smallest machine that answers alike; by classes of states that no word tells apart."""
    small: MooreMachine = large.copy()
    small.minimize()
    return small


def difference(one: MooreMachine, true: MooreMachine, shortest: int = 1) -> tuple[int, ...] | None:
    """A shortest word that a machine answers otherwise than it should; None if there is none, of
    any length.

    Args:
        one: a machine.
        true: what it should be; where that answers nothing, nothing is asked.
        shortest: letters of a word, at least; what they answer to shorter ones is not asked.
    """
    both = (as_asked(each, true, shortest) for each in (one, true))
    found: tuple[int, ...] | None = bisimilar(*both, return_cex=True)
    return found


def as_asked(found: MooreMachine, true: MooreMachine, shortest: int = 1) -> MooreMachine:
    """The machine that answers alike where it is asked; arguments as of :func:`difference`."""
    silent = [s for s in true.states if s.output is None and set(s.transitions.values()) == {s}]

    def step(place: _Place, letter: int) -> _Place:
        if place is None or place[1].transitions[letter] in silent:
            return None
        state, beside, count = place
        return state.transitions[letter], beside.transitions[letter], min(count + 1, shortest)

    def answer(place: _Place) -> int | None:
        if place is None or place[2] < shortest or place[1].output is None:
            return None
        output: int | None = place[0].output
        return output

    given = Counter[str]()

    def name(place: _Place) -> str:
        """The state's own, numbered where it stands beside several."""
        own = "none" if place is None else str(place[0].state_id)
        given[own] += 1
        return own if given[own] == 1 else f"{own}.{given[own]}"

    first: _Place = (found.initial_state, true.initial_state, 0)
    return machine(first, len(found.initial_state.transitions), step, answer, name)


def transitions(found: MooreMachine) -> Mapping[str, tuple[int | None, dict[int, str]]]:
    """Of every state the answer, and where letters lead, by names.

    States come as longer and longer words lead to them, of equal length the first letters' first,
    so that machines that are alike have theirs in one order, whatever they are called.
    """
    order = [found.initial_state]
    seen = {found.initial_state.state_id}
    for state in order:  # which grows
        for _, to in sorted(state.transitions.items()):
            if to.state_id not in seen:
                seen.add(to.state_id)
                order.append(to)
    return {
        state.state_id: (
            state.output,
            {letter: to.state_id for letter, to in state.transitions.items()},
        )
        for state in order
    }
