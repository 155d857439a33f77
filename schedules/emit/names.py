"""Names of a program in generated text: none can be a skeleton's, or a part of another.

Generated text has names of its own (``row``, ``lane``, ``t``), and makes more of a program's by
putting words before and behind them (``ring_x``, ``x_held0``). So whatever a program calls a
tensor, text calls it something that begins like no name of a skeleton and shows where it ends.
"""

from dataclasses import replace
from functools import lru_cache

from pdssm_compiler.ir.passes.rewrite import substitute
from pdssm_compiler.ir.program import Program, carry_leaf


def text_name(name: str, written: bool = False) -> str:
    """What generated text calls a tensor or carry.

    A ``0`` ends it: none in the name stays without a ``z`` behind it, and whatever is put behind a
    name starts with ``_``. Names keep their order, by which tensors are passed.

    Args:
        name: as in the program.
        written: whether it is an output; an input may have the same name.
    """
    return f"{'out' if written else 'in'}_{name.replace('0', '0z')}0"


@lru_cache(maxsize=256)
def in_text_names(program: Program) -> Program:
    """The program with every name as generated text has it."""
    leaves = {i.value: replace(i, name=text_name(i.name)).value for i in program.inputs}
    leaves |= {c.value: carry_leaf(text_name(c.name), c.type) for c in program.carries}
    new = substitute(program.roots, leaves)

    def optional(name: str | None) -> str | None:
        return None if name is None else text_name(name)

    return replace(
        program,
        inputs=tuple(
            replace(
                input_,
                name=text_name(input_.name),
                boundary=optional(input_.boundary),
                inverse_of=optional(input_.inverse_of),
            )
            for input_ in program.inputs
        ),
        carries=tuple(
            replace(
                carry,
                name=text_name(carry.name),
                start=f"%{text_name(start)}" if (start := carry.start_input) else carry.start,
                next=new[carry.next],
            )
            for carry in program.carries
        ),
        token_outputs=tuple(
            replace(out, name=text_name(out.name, True), value=new[out.value])
            for out in program.token_outputs
        ),
        final_outputs=tuple(
            replace(final, name=text_name(final.name, True), carry=text_name(final.carry))
            for final in program.final_outputs
        ),
        sum_outputs=tuple(
            replace(
                total,
                name=text_name(total.name, True),
                value=new[total.value],
                index=None if total.index is None else new[total.index],
            )
            for total in program.sum_outputs
        ),
        checks=tuple(
            replace(check, subject=text_name(check.subject), map=new[check.map])
            for check in program.checks
        ),
    )
