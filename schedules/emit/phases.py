"""Phases of a body: what is computed once, for all tokens together, in a token's turn, and after.

A value that needs no carry can be computed for every token at once; one that needs a carry, but
that no carry needs, can wait until all carries are known. Only what lies between must take turns.
"""

from dataclasses import dataclass

from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.value import Value, topological

Values = tuple[Value, ...]


@dataclass(frozen=True)
class Phases:
    """The values of a body, each in one phase, arguments before users.

    Attributes:
        fixed: one for all tokens of a row.
        ahead: a token's own, from its inputs alone.
        turn: carries, and what their next values need of them.
        behind: what needs a carry and no next value needs.
    """

    fixed: Values
    ahead: Values
    turn: Values
    behind: Values

    def read(self, phase: Values, results: Values) -> Values:
        """The values of earlier phases that a phase reads, or passes on among its results."""
        wanted = [arg for value in phase for arg in value.args] + list(results)
        return tuple(dict.fromkeys(value for value in wanted if value not in phase))


def phases_of(program: Program) -> Phases:
    """Sort a program's body into phases."""
    carried: set[Value] = set()
    varying: set[Value] = set()
    for value in program.body:
        if value.op == "carry" or not carried.isdisjoint(value.args):
            carried.add(value)
        if value.op == "input":
            if program.input(value.name).role in ("token", "lagged"):
                varying.add(value)
        elif not varying.isdisjoint(value.args):
            varying.add(value)
    needed = set(topological(carry.next for carry in program.carries))
    free = [value for value in program.body if value not in carried]
    bound = [value for value in program.body if value in carried]
    return Phases(
        fixed=tuple(value for value in free if value not in varying),
        ahead=tuple(value for value in free if value in varying),
        turn=tuple(value for value in bound if value in needed or value.op == "carry"),
        behind=tuple(value for value in bound if value not in needed and value.op != "carry"),
    )
