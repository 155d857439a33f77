"""The deterministic automaton of a regular expression over bytes."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pdssm_compiler.automata.errors import EmptyMatchError, PatternTooLargeError, shown
from pdssm_compiler.automata.nfa import MATCH, Program, build_program
from pdssm_compiler.automata.refine import equivalent_states, merge_columns
from pdssm_compiler.automata.syntax import read_syntax

MAX_STATES = 256
# Steps spent on a pattern before it is given up: about a second. A count, not a clock, so that a
# pattern is refused on every machine or on none.
MAX_WORK = 1_000_000


@dataclass(frozen=True, eq=False)
class ByteAutomaton:
    """A minimal, complete deterministic automaton.

    Started at a byte of a text and fed until it reaches ``dead`` or the text ends, the last
    prefix after which it was in an accepting state is the match that Python's
    ``re.compile(pattern.encode()).match`` makes there: the alternatives that ``re`` would not
    prefer are already left out, so "longest" is "the one ``re`` takes". (It is therefore not in
    general the automaton of ``fullmatch``: for ``a|ab`` it accepts ``a`` and never ``ab``.)

    Attributes:
        transitions: int32 ``[classes, states]``, the destination of every state on every byte
            class, read-only.
        byte_class: uint8 ``[256]``, the class of every byte; bytes that no state distinguishes
            share one, and classes are numbered by their lowest byte. Read-only.
        start: the state before the first byte, always 0.
        dead: the one state from which nothing is accepted, always the last.
        accepting: bool ``[states]``, read-only.
        pattern: the regular expression.
    """

    transitions: npt.NDArray[np.int32]
    byte_class: npt.NDArray[np.uint8]
    start: int
    dead: int
    accepting: npt.NDArray[np.bool_]
    pattern: str

    @property
    def classes(self) -> int:
        """Number of byte classes."""
        return self.transitions.shape[0]

    @property
    def states(self) -> int:
        """Number of states, the dead one included."""
        return self.transitions.shape[1]


def byte_automaton(pattern: str, max_states: int = MAX_STATES) -> ByteAutomaton:
    r"""The minimal automaton of a regular expression, as Python's bytes ``re`` reads it.

    The text searched is bytes and the pattern is ``pattern.encode()``: ``\d``, ``\w``, ``\s``
    and ``(?i)`` know ASCII only, ``.`` is every byte but a newline, ``[^...]`` is over all 256.
    Lazy quantifiers and the order of alternatives mean what they mean in ``re``.

    Args:
        pattern: the regular expression, with the flags ``(?i)`` and ``(?s)`` in front if wanted.
        max_states: the most states allowed, the dead one included.

    Raises:
        InvalidPatternError: ``re`` rejects the pattern.
        UnsupportedPatternError: a back-reference, look-around, an anchor or another feature that
            the message names.
        EmptyMatchError: the pattern matches the empty string.
        PatternTooLargeError: more than ``max_states`` states, or construction passed
            :data:`MAX_WORK` steps (some small patterns have exponentially many states).
    """
    syntax = read_syntax(pattern)
    program = build_program(pattern, syntax)
    if MATCH in (program.letters[state] for state in program.reach(program.start)):
        raise EmptyMatchError(
            f"pattern {shown(pattern)} matches the empty string, which is no run of bytes; make "
            "it consume at least one byte, for example with + in place of *"
        )
    # Bytes in the same letters' sets are one class until the states say more.
    classes = merge_columns(syntax.byte_sets)
    sets = syntax.byte_sets[:, np.unique(classes, return_index=True)[1]]
    transitions, accepting = _determinise(pattern, program, sets)
    blocks = equivalent_states(transitions, accepting)
    # Blocks are numbered by their lowest state, and states were found in breadth-first order
    # with the dead one first; it goes to the end.
    count = int(blocks.max()) + 1
    numbers = (blocks - 1) % count
    if count > max_states:
        raise PatternTooLargeError(
            f"the automaton of pattern {shown(pattern)} has {count:,} states and the limit is "
            f"{max_states:,}; use smaller counts or raise the limit"
        )
    representative = np.zeros(count, dtype=np.int64)
    representative[numbers] = np.arange(len(numbers))
    minimal = numbers[transitions[:, representative]]  # [classes, states]
    merged = merge_columns(minimal.T)  # [classes]
    byte_class = merged[classes]  # [256], in order of the lowest byte as classes were
    automaton = ByteAutomaton(
        transitions=minimal[np.unique(merged, return_index=True)[1]].astype(np.int32),
        byte_class=byte_class.astype(np.uint8),
        start=int(numbers[1]),
        dead=count - 1,
        accepting=accepting[representative],
        pattern=pattern,
    )
    for array in (automaton.transitions, automaton.byte_class, automaton.accepting):
        array.setflags(write=False)
    return automaton


def _determinise(
    pattern: str, program: Program, sets: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The subset construction over *ordered* subsets, cut after a match.

    Keeping the order in which ``re`` would try the members is what makes the result follow
    ``re`` and not the longest match.

    Returns:
        int64 ``[classes, states]`` and bool ``[states]``; state 0 is dead, state 1 the start.
    """
    classes = sets.shape[1]
    classes_of = [np.flatnonzero(row).tolist() for row in sets]
    reach: dict[int, tuple[int, ...]] = {}
    start = program.reach(program.start)
    number: dict[tuple[int, ...], int] = {(): 0, start: 1}
    queue: list[tuple[int, ...]] = [(), start]
    rows: list[list[int]] = []
    work = 0
    for members in queue:  # grows while it is read
        successors: list[dict[int, None]] = [{} for _ in range(classes)]
        closed = [False] * classes
        work += classes
        for member in members:
            letter = program.letters[member]
            if letter == MATCH:
                continue
            (target,) = program.targets[member]
            if target not in reach:
                reach[target] = program.reach(target)
            _check_work(pattern, work + program.steps, len(queue))
            ends = program.letters[reach[target][-1]] == MATCH
            for class_ in classes_of[letter]:
                if closed[class_]:
                    continue
                work += len(reach[target])
                successors[class_].update(dict.fromkeys(reach[target]))
                closed[class_] = ends
        row = []
        for successor in map(tuple, successors):
            if successor not in number:
                number[successor] = len(queue)
                queue.append(successor)
            row.append(number[successor])
        rows.append(row)
    accepts = [bool(m) and program.letters[m[-1]] == MATCH for m in queue]
    return np.array(rows, dtype=np.int64).T, np.array(accepts, dtype=np.bool_)


def _check_work(pattern: str, work: int, states: int) -> None:
    if work > MAX_WORK:
        raise PatternTooLargeError(
            f"the automaton of pattern {shown(pattern)} was given up after {work:,} steps (the "
            f"limit is {MAX_WORK:,}) and {states:,} states; use smaller counts or fewer "
            "overlapping alternatives"
        )
