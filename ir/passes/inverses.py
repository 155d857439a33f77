"""computed_inverses: from tables of inverses to inverses of the maps that are selected.

before → after: ``select(inverse table, k)`` → ``invert(select(table, k))``, verified. The input
keeps its name and is handed the table itself.
reason: inverting a whole dictionary before a call takes longer than a call of one token.
"""

from dataclasses import replace

from pdssm_compiler.ir.ops import apply
from pdssm_compiler.ir.passes.rewrite import with_args, with_values
from pdssm_compiler.ir.program import Check, Program
from pdssm_compiler.ir.types import Table
from pdssm_compiler.ir.value import Value, rebuild


def computed_inverses(program: Program) -> Program:
    """The program that inverts what it selects; itself where it selects no inverse."""
    derived = {i.name: i for i in program.inputs if i.inverse_of is not None}
    checks: list[Check] = []

    def step(value: Value, args: tuple[Value, ...]) -> Value:
        made = value if value.is_leaf else with_args(value, args)
        if made.op != "select" or made.args[0].name not in derived:
            return made
        table = derived[made.args[0].name]
        assert isinstance(table.type, Table)
        inverse = apply("invert", made)
        composed = apply("compose", made, inverse)
        checks.append(Check(table.name, table.type.map_class, composed))
        return inverse

    rebuilt = with_values(program, dict(rebuild(program.roots, step)))
    if not checks:
        return program
    kept = dict.fromkeys((*rebuilt.checks, *checks))
    return replace(rebuilt, checks=tuple(kept))
