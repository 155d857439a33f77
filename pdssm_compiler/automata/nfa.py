"""From the structure of a pattern to a nondeterministic automaton with priorities.

The automaton is the one of a backtracking matcher: a branch lists its ways in the order in which
``re`` tries them, so the first way that leads to a match is the match ``re`` reports. See R. Cox,
*Regular Expression Matching: the Virtual Machine Approach* (2009).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat

from interegular import InvalidSyntax, Unsupported, parse_pattern
from interegular.patterns import Pattern, _CharGroup, _Concatenation, _Repeated

from pdssm_compiler.automata.errors import (
    PatternTooLargeError,
    UnsupportedPatternError,
    shown,
    too_deep,
)
from pdssm_compiler.automata.syntax import FIRST_LETTER, LAZY_MARK, Syntax

MAX_NODES = 20_000
MATCH = -1
_BRANCH = -2


@dataclass(frozen=True)
class _Leaf:
    """One byte of set ``letter``."""

    letter: int
    shortest: int = 1
    longest: int = 1


@dataclass(frozen=True)
class _Sequence:
    parts: tuple["_Node", ...]
    shortest: int
    longest: int


@dataclass(frozen=True)
class _Choice:
    options: tuple["_Node", ...]
    shortest: int
    longest: int


@dataclass(frozen=True)
class _Repeat:
    body: "_Node"
    low: int
    high: int | None
    lazy: bool
    shortest: int
    longest: int


# ``shortest`` and ``longest`` only ever answer "is it zero?"; both are capped at one.
_Node = _Leaf | _Sequence | _Choice | _Repeat
_EMPTY = _Sequence((), 0, 0)


@dataclass
class Program:
    """A nondeterministic automaton whose states are numbered in no particular order.

    Attributes:
        letters: for every state the byte set it consumes, :data:`MATCH`, or a branch.
        targets: for every state its successors, those tried first in front.
        start: the first state.
        steps: states that :meth:`reach` has visited so far, the measure of its cost.
    """

    letters: list[int] = field(default_factory=list)
    targets: list[tuple[int, ...]] = field(default_factory=list)
    start: int = 0
    steps: int = 0

    def add(self, letter: int, targets: tuple[int, ...] = ()) -> int:
        self.letters.append(letter)
        self.targets.append(targets)
        return len(self.letters) - 1

    def reach(self, state: int) -> tuple[int, ...]:
        """The consuming states reached without a byte, best first, cut after the first match.

        What is tried after a match never wins over it, so it is dropped.
        """
        found: list[int] = []
        seen: set[int] = set()
        stack = [state]
        while stack:
            state = stack.pop()
            if state in seen:
                continue
            seen.add(state)
            if self.letters[state] == _BRANCH:
                stack.extend(reversed(self.targets[state]))
                continue
            found.append(state)
            if self.letters[state] == MATCH:
                break
        self.steps += len(seen)
        return tuple(found)


def build_program(pattern: str, syntax: Syntax) -> Program:
    """The automaton of a pattern whose syntax has been read.

    Raises:
        UnsupportedPatternError: groups are nested too deeply.
        PatternTooLargeError: the repetitions, written out, have more than :data:`MAX_NODES`
            parts.
    """
    try:
        tree = _simplify(parse_pattern(syntax.structure))
        builder = _Builder(pattern)
        match = builder.program.add(MATCH)
        builder.program.start = builder.build(tree, match, match)
    except RecursionError:
        raise too_deep(pattern) from None
    except (InvalidSyntax, Unsupported) as error:
        raise UnsupportedPatternError(
            f"pattern {shown(pattern)} cannot be read by interegular ({error or 'no reason given'}"
            "); write it with groups, |, *, +, ? and {m,n} only"
        ) from None
    return builder.program


def _simplify(node: object) -> _Node:
    """The tree of interegular as ours: lazy marks resolved, parts that consume nothing dropped."""
    if isinstance(node, Pattern):
        return _choice([_simplify(option) for option in node.options])
    if isinstance(node, _Concatenation):
        return _sequence(node.parts)
    if isinstance(node, _Repeated):
        return _repeat(_simplify(node.base), node.min, node.max, lazy=False)
    if isinstance(node, _CharGroup) and not node.negated and len(node.chars) == 1:
        (letter,) = node.chars
        return _Leaf(ord(letter) - FIRST_LETTER)
    raise Unsupported(f"unexpected part {node!r}")


def _choice(options: Sequence[_Node]) -> _Node:
    if len(options) == 1:
        return options[0]
    shortest = min(option.shortest for option in options)
    return _Choice(tuple(options), shortest, max(option.longest for option in options))


def _sequence(parts: Sequence[object]) -> _Node:
    nodes: list[_Node] = []
    lazy = False
    for part in reversed(parts):
        if isinstance(part, _CharGroup) and LAZY_MARK in part.chars:
            lazy = True
            continue
        node = _simplify(part)
        if lazy and isinstance(node, _Repeat):
            node = _repeat(node.body, node.low, node.high, lazy=True)
        lazy = False
        if node.longest:
            nodes.append(node)
    if len(nodes) == 1:
        return nodes[0]
    nodes.reverse()
    shortest = max((node.shortest for node in nodes), default=0)
    return _Sequence(tuple(nodes), shortest, min(len(nodes), 1))


def _repeat(body: _Node, low: int, high: int | None, *, lazy: bool) -> _Node:
    if not body.longest or high == 0:
        return _EMPTY
    return _Repeat(body, low, high, lazy, body.shortest if low else 0, 1)


class _Builder:
    """Builds from the end: every part is made for the state that follows it.

    ``re`` leaves a loop after an iteration that consumed nothing. So a part inside a loop has two
    states that may follow it: ``some`` if the iteration has consumed a byte by then, ``none`` if
    it has not. Outside loops, and once a byte is consumed, both are the same state.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.program = Program()
        self.visits = 0

    def build(self, node: _Node, some: int, none: int) -> int:
        """Add the states of ``node`` for where no byte is consumed yet; returns the first."""
        self.visits += 1
        if self.visits > MAX_NODES:
            raise PatternTooLargeError(
                f"pattern {shown(self.pattern)} has more than {MAX_NODES:,} parts once its "
                "repetitions are written out; use smaller counts or nest fewer repetitions"
            )
        if isinstance(node, _Leaf):
            return self.program.add(node.letter, (some,))
        if isinstance(node, _Choice):
            options = tuple(self.build(option, some, none) for option in node.options)
            return self.program.add(_BRANCH, options)
        if isinstance(node, _Repeat):
            some, none = self._optional(node, some, none)
            return self._chain(repeat(node.body, node.low), some, none)
        return self._chain(reversed(node.parts), some, none)

    def _chain(self, backwards: Iterable[_Node], some: int, none: int) -> int:
        empty: _Node | None = None  # the part just built, if a byte before it changes its end
        for node in backwards:
            if empty is not None:
                some = self.build(empty, some, some)
            before = self.build(node, some, none)
            if node.shortest or some == none:
                some, none, empty = before, before, None
            else:
                none, empty = before, node
        return none

    def _optional(self, node: _Repeat, some: int, none: int) -> tuple[int, int]:
        """The repetitions beyond ``node.low``: where they begin with a byte consumed, and without.

        Only an iteration that consumes is followed by another; an empty one leads out.
        """
        if node.high is None:
            again = self.program.add(_BRANCH)
            body = self.build(node.body, again, some)
            self.program.targets[again] = self._order(node, body, some)
            if some == none:
                return again, again
            if not node.body.shortest:
                body = self.build(node.body, again, none)
            return again, self.program.add(_BRANCH, self._order(node, body, none))
        rest, entry = some, none
        for _ in range(node.high - node.low):
            body = self.build(node.body, rest, none)
            entry = self.program.add(_BRANCH, self._order(node, body, none))
            if some != none:
                body = self.build(node.body, rest, some)
                rest = self.program.add(_BRANCH, self._order(node, body, some))
            else:
                rest = entry
        return rest, entry

    @staticmethod
    def _order(node: _Repeat, body: int, after: int) -> tuple[int, int]:
        return (after, body) if node.lazy else (body, after)
