"""specialise: use what the caller promised about the maps.

- permutation: ``scatter_add(x, p)`` → ``gather(x, invert(p))``. A gather has no collisions, so no
  sum and no zero-filled target. The inverse of a table's map is read from the inverted table,
  which the runtime computes once a call instead of once a token.
- identity: ``gather(x, p)`` → ``x``, ``scatter_add(x, p)`` → ``x``, ``invert(p)`` → ``p``. A
  diagonal scan.

A promise is verified where the map is inverted here; :func:`promise_program` makes the program
that verifies each of the others.
"""

from dataclasses import replace

from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.ops import apply
from pdssm_compiler.ir.passes.rewrite import Rule, rewrite
from pdssm_compiler.ir.passes.simplify import simplify
from pdssm_compiler.ir.program import Check, Input, Program
from pdssm_compiler.ir.types import Map, Table
from pdssm_compiler.ir.value import Value
from pdssm_compiler.ir.verify import verify


def specialise(program: Program) -> Program:
    """Rewrite by map class, then simplify."""
    verify(program)
    # Simplify before checks are added: an inverse that cancels is not to be verified.
    rewritten = simplify(_inverse_tables(rewrite(program, RULES)))
    return simplify(_verified_inverses(rewritten))


def _identity(value: Value) -> Value | None:
    """Moving numbers by an identity map leaves them where they are; it is its own inverse.

    Without the second, the check that an inverted map is a permutation would pass for a check
    that it is the identity.
    """
    if value.op in ("gather", "scatter_add") and value.args[1].type == Map("identity"):
        return value.args[0]
    return value.args[0] if value.op == "invert" and value.type == Map("identity") else None


def _permutation(value: Value) -> Value | None:
    """Scattering by a permutation gathers by its inverse."""
    if value.op == "scatter_add" and value.args[1].type == Map("permutation"):
        return apply("gather", value.args[0], apply("invert", value.args[1]))
    return None


RULES: tuple[Rule, ...] = (_identity, _permutation)


def _inverse_tables(program: Program) -> Program:
    """invert(select(table, k)) → select(inverse table, k)."""
    # Declare the inverse of every table first: rewrite verifies, and drops what is not read.
    known = {i.inverse_of for i in program.inputs}
    candidates = tuple(
        Input(f"{i.name}_inverse", i.type, "head", i.storage, None, i.name)
        for i in program.inputs
        if isinstance(i.type, Table) and i.inverse_of is None and i.name not in known
    )
    declared = replace(program, inputs=program.inputs + candidates)

    def read_inverse(value: Value) -> Value | None:
        if value.op != "invert" or value.args[0].op != "select":
            return None
        table, index = value.args[0].args
        return apply("select", _inverse_of(declared, table.name).value, index)

    return rewrite(declared, (read_inverse,))


def _inverse_of(program: Program, name: str) -> Input:
    """The table that holds the inverses of another's maps; each is the other's inverse."""
    source = program.input(name).inverse_of
    if source is not None:
        return program.input(source)
    return next(i for i in program.inputs if i.inverse_of == name)


def _verified_inverses(program: Program) -> Program:
    """Where the body inverts a map of its own, check that the inverse is one."""
    checks = list(program.checks)
    for value in program.body:
        if value.op == "invert" and value.args[0].op == "input":
            map_ = value.args[0]
            checks.append(Check(map_.name, "permutation", apply("compose", map_, value)))
    return replace(program, checks=tuple(dict.fromkeys(checks)))


def inverse_program(state_size: int, table: Input) -> Program:
    """The program that inverts a table, its maps as tokens: ``maps`` → ``inverse``, checked."""
    assert isinstance(table.type, Table)
    build = b.ProgramBuilder(state_size)
    maps = build.input("maps", Map(table.type.map_class), storage=table.storage)
    inverse = b.invert(maps)
    build.emit("inverse", inverse, table.storage)
    build.check("maps", table.type.map_class, b.compose(maps, inverse))
    return build.build()


def promise_program(state_size: int, input_: Input) -> Program | None:
    """The program that verifies an input's map class, its maps as tokens; None if nothing was
    promised. It reads ``maps`` and writes nothing.
    """
    if not isinstance(input_.type, Map | Table) or input_.type.map_class == "general":
        return None
    build = b.ProgramBuilder(state_size)
    maps = build.input("maps", Map(input_.type.map_class), storage=input_.storage)
    if input_.type.map_class == "identity":
        build.check("maps", "identity", maps)
    else:
        build.check("maps", "permutation", b.compose(maps, b.invert(maps)))
    return build.build()


def unverified_promises(program: Program, specialised: Program) -> tuple[Input, ...]:
    """The map inputs of a program whose class nothing in its specialised form verifies."""
    verified = {check.subject for check in specialised.checks}
    verified |= {i.inverse_of for i in specialised.inputs if i.inverse_of is not None}
    return tuple(
        i
        for i in program.inputs
        if isinstance(i.type, Map | Table)
        and i.type.map_class != "general"
        and i.name not in verified
    )
