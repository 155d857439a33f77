"""Programs to text.

The text form is the debugging tool, the golden-test format, the header of generated sources, the
argument of the torch op and the thing the kernel key hashes. :mod:`pdssm_compiler.ir.parser`
reads it back to an equal program.
"""

from pdssm_compiler.ir.program import Carry, Input, Program
from pdssm_compiler.ir.types import default_storage
from pdssm_compiler.ir.value import Value


def print_program(program: Program) -> str:
    """The text form of a program, ending in a newline."""
    names: dict[Value, str] = {}
    for value in program.body:
        names[value] = (
            f"%{value.name}" if value.is_leaf else f"%{sum(not other.is_leaf for other in names)}"
        )
    lines = [_header(program)]
    lines += [_input_line(input_) for input_ in program.inputs]
    lines += [_carry_line(carry) for carry in program.carries]
    lines.append("body {")
    for value in program.body:
        if not value.is_leaf:
            lines.append(f"  {names[value]} = {_operation(value, names)} : {value.type}")
    lines += [f"  check {names[c.map]} for %{c.subject} {c.promise}" for c in program.checks]
    lines += [f"  next %{carry.name} = {names[carry.next]}" for carry in program.carries]
    for output in program.token_outputs:
        storage = _storage(output.storage, default_storage(output.value.type))
        lines.append(f"  emit %{output.name} = {names[output.value]}{storage}")
    for total in program.sum_outputs:
        by = "" if total.index is None else f" by {names[total.index]}"
        lines.append(f"  sum %{total.name} = {names[total.value]}{by}")
    lines.append("}")
    for final in program.final_outputs:
        storage = _storage(final.storage, default_storage(program.carry(final.carry).type))
        lines.append(f"final %{final.name} = %{final.carry}{storage}")
    return "\n".join(lines) + "\n"


def _header(program: Program) -> str:
    header = f"scan N={program.state_size} {program.direction}"
    if program.chunk_length is not None:
        header += f" chunk={program.chunk_length}"
    return header


def _storage(storage: str, default: str) -> str:
    return "" if storage == default else f" as {storage}"


def _input_line(input_: Input) -> str:
    line = f"input %{input_.name} : {input_.role} {input_.type}"
    line += _storage(input_.storage, default_storage(input_.type))
    if input_.boundary is not None:
        line += f" boundary %{input_.boundary}"
    if input_.inverse_of is not None:
        line += f" inverse of %{input_.inverse_of}"
    return line


def _carry_line(carry: Carry) -> str:
    return f"carry %{carry.name} : {carry.type} = {carry.start}"


def _operation(value: Value, names: dict[Value, str]) -> str:
    operands = [names[arg] for arg in value.args]
    # repr keeps every bit of a float and tells -0.0 from 0.0.
    operands += [f"{key}={item!r}" for key, item in value.attributes]
    return " ".join([value.op, ", ".join(operands)]).rstrip()
