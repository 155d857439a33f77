"""Rebuilding a program around new values: what every pass does last."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from pdssm_compiler.ir.ops import apply
from pdssm_compiler.ir.program import Carry, Input, Program
from pdssm_compiler.ir.value import Value, rebuild, topological
from pdssm_compiler.ir.verify import verify

Rule = Callable[[Value], Value | None]


def substitute(roots: Iterable[Value], others: dict[Value, Value]) -> dict[Value, Value]:
    """Every value below the roots with some values, leaves mostly, replaced by others."""

    def step(value: Value, args: tuple[Value, ...]) -> Value:
        if value in others:
            return others[value]
        return value if value.is_leaf else with_args(value, args)

    return dict(rebuild(roots, step))


def with_args(value: Value, args: tuple[Value, ...]) -> Value:
    """The same op on other arguments."""
    return apply(value.op, *args, **dict(value.attributes))


def with_values(program: Program, new: dict[Value, Value]) -> Program:
    """The program with its results replaced, what nothing depends on dropped, verified."""
    replaced = replace(
        program,
        carries=tuple(replace(carry, next=new[carry.next]) for carry in program.carries),
        token_outputs=tuple(
            replace(output, value=new[output.value]) for output in program.token_outputs
        ),
        sum_outputs=tuple(
            replace(output, value=new[output.value]) for output in program.sum_outputs
        ),
        checks=tuple(replace(check, map=new[check.map]) for check in program.checks),
    )
    return prune(replaced)


def prune(program: Program) -> Program:
    """The verified program without the carries and inputs that no result depends on.

    One token input always stays: it is what says how many tokens there are.
    """
    program = replace(program, carries=_live_carries(program))
    read = {value.name for value in program.body if value.op == "input"}
    read |= {carry.start_input for carry in program.carries if carry.start_input}
    read |= {check.subject for check in program.checks}
    tokens = [i.name for i in program.inputs if i.role in ("token", "lagged")]
    if tokens and not read & set(tokens):
        read.add(tokens[0])
    kept = _with_sources(program, read)
    pruned = replace(program, inputs=tuple(i for i in program.inputs if i.name in kept))
    verify(pruned)
    return pruned


def _live_carries(program: Program) -> tuple[Carry, ...]:
    live = {final.carry for final in program.final_outputs}
    roots = [output.value for output in program.token_outputs]
    roots += [total.value for total in program.sum_outputs]
    roots += [check.map for check in program.checks]
    while True:
        nexts = [carry.next for carry in program.carries if carry.name in live]
        found = {v.name for v in topological([*roots, *nexts]) if v.op == "carry"}
        if found <= live:
            return tuple(carry for carry in program.carries if carry.name in live)
        live |= found


def _with_sources(program: Program, names: set[str]) -> set[str]:
    """The names and what their inputs need in turn (boundaries, inverted tables)."""

    def needs(input_: Input) -> Iterable[str]:
        return filter(None, (input_.boundary, input_.inverse_of))

    return names | {need for name in names for need in needs(program.input(name))}


def rewrite(program: Program, rules: Iterable[Rule]) -> Program:
    """Apply rules bottom-up until none applies to any value."""
    rules = tuple(rules)

    def step(value: Value, args: tuple[Value, ...]) -> Value:
        result = value if value.is_leaf else with_args(value, args)
        changed = True
        while changed:
            changed = False
            for rule in rules:
                found = rule(result)
                if found is not None and found is not result:
                    result, changed = found, True
        return result

    current = program
    while True:
        new = with_values(current, dict(rebuild(current.roots, step)))
        # Interning makes "nothing changed" an identity of results.
        if new.roots == current.roots:
            return new
        current = new
