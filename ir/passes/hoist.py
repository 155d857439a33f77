"""hoist: what a token needs no carry for, apart from the rest.

before → after: a program → ``early``, a program without carries that computes such values for each
token, and ``late``, the program that reads them as token inputs.
reason: the carry makes a chain of tokens, and a warp that runs it is timed by it. Functions of a
token's own inputs, such as a diagonal from its logits, are not part of that chain: other warps
compute them ahead, for many tokens at once.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

from pdssm_compiler.ir.ops.elementwise import FUNCTIONS
from pdssm_compiler.ir.passes.rewrite import prune, substitute, with_values
from pdssm_compiler.ir.program import Input, Program, TokenOutput
from pdssm_compiler.ir.types import Vector, is_complex, is_number, precision
from pdssm_compiler.ir.value import Value

# Ops whose elements are not made from the same elements of their arguments alone.
_ACROSS = frozenset({"select", "gather", "scatter_add", "compose", "invert", "iota", "sum"})


@dataclass(frozen=True)
class Hoisted:
    """A program in two.

    Attributes:
        early: writes the values, token outputs, and carries nothing.
        late: the program with token inputs of the same names in their place.
        names: of the values.
    """

    early: Program
    late: Program
    names: tuple[str, ...]


@lru_cache(maxsize=256)
def hoist(program: Program) -> Hoisted | None:
    """The two programs; None where no function is computed from a token's inputs alone."""
    values = _handed_over(program)
    if not values:
        return None
    names = {value: f"early_{number}" for number, value in enumerate(values)}
    inputs = {value: Input(name, value.type) for value, name in names.items()}
    early = replace(
        program,
        carries=(),
        token_outputs=tuple(TokenOutput(name, value) for value, name in names.items()),
        final_outputs=(),
        sum_outputs=(),
        checks=(),
    )
    late = replace(program, inputs=(*program.inputs, *inputs.values()))
    new = substitute(late.roots, {value: input_.value for value, input_ in inputs.items()})
    return Hoisted(prune(early), with_values(late, new), tuple(names.values()))


def _handed_over(program: Program) -> list[Value]:
    """The values to hand over: those that the rest of a token reads, or the functions that they
    are made of, whichever are fewer bytes.
    """
    free = _free(program)
    read = [value for value in program.body if value in free and _is_read(program, value, free)]
    made = {value for value in free if value.op in FUNCTIONS}
    for value in program.body:
        if value in free and made & set(value.args):
            made.add(value)
    ends = [value for value in read if value in made and isinstance(value.type, Vector)]
    functions: dict[Value, None] = {}
    for value in ends:
        _first_functions(value, functions)
    candidates = [ends, list(functions)]
    return min(candidates, key=lambda found: sum(map(_bytes, found)))


def _free(program: Program) -> set[Value]:
    """The values that a token's own inputs, a head's and a row's, are enough for."""
    free: set[Value] = set()
    for value in program.body:
        if not is_number(value.type):
            continue
        if value.op == "input":
            if program.input(value.name).role != "lagged":
                free.add(value)
        elif value.op != "carry" and value.op not in _ACROSS and free.issuperset(value.args):
            free.add(value)
    return free


def _is_read(program: Program, value: Value, free: set[Value]) -> bool:
    """Whether anything but other free values reads it."""
    return value in program.roots or any(
        value in user.args and user not in free for user in program.body
    )


def _first_functions(value: Value, found: dict[Value, None]) -> None:
    """The functions on the way up to a value that no other function of a vector is applied to."""
    if value.op in FUNCTIONS and isinstance(value.type, Vector):
        found[value] = None
        return
    for arg in value.args:
        _first_functions(arg, found)


def _bytes(value: Value) -> int:
    return precision(value.type) // 8 * (2 if is_complex(value.type) else 1)
