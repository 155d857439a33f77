"""The rules a program obeys, one function a rule.

:func:`verify` runs at both ends of every pass and when a text form is parsed. Type rules of single
ops hold by construction (:func:`pdssm_compiler.ir.ops.apply`); these are the rules of the whole.
"""

import re
from collections.abc import Callable, Iterator

from pdssm_compiler.ir.errors import VerificationError
from pdssm_compiler.ir.ops import OPS
from pdssm_compiler.ir.program import ROLES, STARTS, Input, Program
from pdssm_compiler.ir.types import (
    INDEX_STORAGE,
    NUMBER_STORAGE,
    Coefficients,
    Index,
    Map,
    Matrices,
    Matrix,
    Table,
    are_logits,
    is_complex,
    is_number,
    is_numeric,
)

Rule = Callable[[Program], Iterator[str]]
_NAME = re.compile(r"[A-Za-z_]\w*")


def verify(program: Program) -> None:
    """Check every rule.

    Raises:
        VerificationError: one line for each breach.
    """
    breaches = [breach for rule in RULES for breach in rule(program)]
    if breaches:
        raise VerificationError("; ".join(breaches))


def _sizes(program: Program) -> Iterator[str]:
    if program.state_size < 1:
        yield f"the state size must be at least 1, not {program.state_size}"
    if program.chunk_length is not None and program.chunk_length < 1:
        yield f"the chunk length must be at least 1, not {program.chunk_length}"
    if program.direction not in ("forward", "backward"):
        yield f"the direction is forward or backward, not {program.direction!r}"
    for input_ in program.inputs:
        match input_.type:
            case Index(bound) if bound < 1:
                yield f"%{input_.name}: an index needs a bound of at least 1, not {bound}"
            case Table(size, _) if size < 1:
                yield f"%{input_.name}: a table needs at least 1 map, not {size}"
            case Coefficients(size, element) | Matrices(size, element) if (
                size < 1 or element not in ("f32", "f64")
            ):
                yield f"%{input_.name}: needs at least 1 real coefficient or matrix, not {size}"


def _names(program: Program) -> Iterator[str]:
    read = [i.name for i in program.inputs] + [c.name for c in program.carries]
    written = [o.name for o in program.token_outputs] + [f.name for f in program.final_outputs]
    written += [s.name for s in program.sum_outputs]
    for names in (read, written):
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"%{name} is declared twice"
    for name in (*read, *written):
        if not _NAME.fullmatch(name):
            yield f"{name!r} is not a name (letters, digits and _, not starting with a digit)"


def _storage_fits(type_: object, storage: str) -> bool:
    if isinstance(type_, Coefficients | Matrices):
        return storage == type_.element
    if is_numeric(type_):  # type: ignore[arg-type]
        return storage in NUMBER_STORAGE and storage.startswith("c") == is_complex(type_)  # type: ignore[arg-type]
    return storage in INDEX_STORAGE or are_logits(type_, storage)  # type: ignore[arg-type]


def _storages(program: Program) -> Iterator[str]:
    stored = [(i.name, i.type, i.storage) for i in program.inputs]
    stored += [(o.name, o.value.type, o.storage) for o in program.token_outputs]
    carried = {carry.name: carry.type for carry in program.carries}
    for final in program.final_outputs:
        if final.carry not in carried:
            yield f"%{final.name} ends %{final.carry}, which is not a carry"
        else:
            stored.append((final.name, carried[final.carry], final.storage))
    for name, type_, storage in stored:
        if not _storage_fits(type_, storage):
            yield f"%{name}: {type_} cannot be stored as {storage}"


def _roles(program: Program) -> Iterator[str]:
    for input_ in program.inputs:
        yield from _role(program, input_)
    if not any(input_.role in ("token", "lagged") for input_ in program.inputs):
        yield "no token input, so the number of tokens is unknown"


def _role(program: Program, input_: Input) -> Iterator[str]:
    if input_.role not in ROLES:
        yield f"%{input_.name} has the unknown role {input_.role!r}"
    if isinstance(input_.type, Table) and input_.role != "head":
        yield f"%{input_.name} is a table, and a table belongs to a head, not to a {input_.role}"
    if isinstance(input_.type, Matrix):
        yield f"%{input_.name} is a matrix, which is computed by every token and never stored"
    if isinstance(input_.type, Matrices) and input_.role != "head":
        yield f"%{input_.name} are matrices, and they belong to a head, not to a {input_.role}"
    if isinstance(input_.type, Coefficients) and input_.role != "token":
        yield f"%{input_.name} are coefficients, and they belong to a token"
    if input_.holds_logits and input_.role != "token":
        yield f"%{input_.name} holds logits, and they belong to a token, not to a {input_.role}"
    if input_.role == "lagged" and not is_number(input_.type):
        yield f"%{input_.name} is lagged, and only numbers are saved for an adjoint"
    if input_.boundary is not None:
        boundary = next((i for i in program.inputs if i.name == input_.boundary), None)
        if input_.role != "lagged":
            yield f"%{input_.name} has a boundary, which only a lagged input has"
        if boundary is None or boundary.role != "row" or boundary.type != input_.type:
            yield (
                f"%{input_.name}: its boundary %{input_.boundary} is not a row input of type "
                f"{input_.type}"
            )
    if input_.inverse_of is not None:
        source = next((i for i in program.inputs if i.name == input_.inverse_of), None)
        if not isinstance(input_.type, Table) or source is None or source.type != input_.type:
            yield (
                f"%{input_.name}: its source %{input_.inverse_of} is not a table of type "
                f"{input_.type}"
            )


def _carries(program: Program) -> Iterator[str]:
    starts: set[str] = set()
    for carry in program.carries:
        if isinstance(carry.type, Index | Table | Coefficients | Matrix | Matrices):
            yield f"%{carry.name}: a carry holds numbers or a map, not {carry.type}"
        next_type = carry.next.type
        # A promise may be weakened by carrying on, not strengthened.
        both_maps = isinstance(carry.type, Map) and isinstance(next_type, Map)
        if next_type != carry.type and not (both_maps and carry.type == Map("general")):
            yield f"%{carry.name} is {carry.type} and its next value {next_type}"
        name = carry.start_input
        if name is None:
            yield from _constant_start(carry.name, carry.type, carry.start)
            continue
        start = next((i for i in program.inputs if i.name == name), None)
        if start is None or start.role != "row" or start.type != carry.type:
            yield f"%{carry.name} starts from %{name}, which is not a row input of {carry.type}"
        if name in starts:
            yield f"%{name} starts two carries"
        starts.add(name)


def _constant_start(name: str, type_: object, start: str) -> Iterator[str]:
    if start not in STARTS:
        yield f"%{name} starts from {start!r}; use zero, one, identity or a row input"
    elif isinstance(type_, Map) != (start == "identity"):
        yield f"%{name} is {type_} and cannot start from {start}"


def _body(program: Program) -> Iterator[str]:
    inputs = {input_.name: input_.type for input_ in program.inputs}
    carries = {carry.name: carry.type for carry in program.carries}
    starts = {carry.start_input for carry in program.carries}
    for value in program.body:
        if not value.is_leaf:
            if value.op not in OPS:
                yield f"unknown op {value.op!r}"
            continue
        declared = inputs if value.op == "input" else carries
        if declared.get(value.name) != value.type:
            yield f"the body reads %{value.name} : {value.type}, which is not declared so"
        if value.op == "input" and value.name in starts:
            yield f"the body reads %{value.name}, which only starts a carry"
    for output in program.token_outputs:
        if isinstance(output.value.type, Index | Table | Matrix | Matrices):
            yield f"%{output.name}: cannot emit {output.value.type}"
    for total in program.sum_outputs:
        if not is_numeric(total.value.type) or isinstance(total.value.type, Matrix):
            yield f"%{total.name}: cannot sum {total.value.type}"
        if total.index is not None and not isinstance(total.index.type, Index):
            yield f"%{total.name}: a sum is by an index, not by {total.index.type}"
    for check in program.checks:
        if not isinstance(check.map.type, Map):
            yield f"a check needs a map, not {check.map.type}"
        if check.subject not in inputs:
            yield f"a check is for %{check.subject}, which is not an input"
        if not _NAME.fullmatch(check.promise):
            yield f"a check's promise {check.promise!r} is not a name"
    outputs = program.token_outputs or program.final_outputs or program.sum_outputs
    if not (outputs or program.checks):
        yield "the program has no output and no check"


RULES: tuple[Rule, ...] = (_sizes, _names, _storages, _roles, _carries, _body)
