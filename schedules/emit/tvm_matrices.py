"""TVM text for CPUs over matrices: the maps that mixtures choose.

A thread takes a few tokens at a time through the axis that is chosen along, a vector of the other
axis after the other: each entry of a head's matrices is read once for all of them, and the largest
so far stay in registers. Noise is drawn for each token, for four entries of the axis at once.
"""

from typing import NamedTuple

from pdssm_compiler.ir.ops.noise import TOGETHER
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import Coefficients
from pdssm_compiler.schedules.emit.matrices import (
    WRITTEN_OUT,
    Shape,
    orientation_of,
    tables_of,
)
from pdssm_compiler.schedules.emit.tvm_buffers import write_local, write_strided
from pdssm_compiler.schedules.emit.tvm_functions import Functions
from pdssm_compiler.schedules.emit.tvm_noise import NoiseInputs, TvmNoise, drawn_by
from pdssm_compiler.schedules.signature import Argument, Signature, width_of
from pdssm_compiler.schedules.source import Writer

SUPPORTED_OPS = frozenset({"mix", "gumbel", "argmax"})


def refused(program: Program) -> str | None:
    """Why no such text can run a program, or None."""
    ops = {value.op for value in program.body if not value.is_leaf}
    if not ops <= SUPPORTED_OPS or len(program.token_outputs) != 1:
        return f"a program that does more than choose: {', '.join(sorted(ops - SUPPORTED_OPS))}"
    if "gumbel" in ops and noise_inputs(program) is None:
        return "noise that is not of inputs, or by another orientation than the choice"
    return None


def noise_inputs(program: Program) -> NoiseInputs | None:
    """What its noise is drawn by; None if it has none."""
    noisy = [value for value in program.body if value.op == "gumbel"]
    return drawn_by(noisy[0], orientation_of(program)) if len(noisy) == 1 else None


class ChoiceArguments(NamedTuple):
    """The inputs and the output of such a program.

    Attributes:
        weights: coefficients of a token.
        table: the head's matrices.
        out: maps.
        noise: what the mixture's noise is drawn by; None if it has none.
    """

    weights: Argument
    table: Argument
    out: Argument
    noise: NoiseInputs | None

    @property
    def names(self) -> tuple[str, ...]:
        """Of all of them, as a kernel's arguments are."""
        return (self.weights.name, self.table.name, self.out.name, *(self.noise or ()))


def choice_arguments(program: Program) -> ChoiceArguments:
    """What a program that :func:`refused` does not refuse reads and writes."""
    signature = Signature(program)
    (weights,) = (a for a in signature.inputs if isinstance(a.type, Coefficients))
    (table,), (out,) = tables_of(program), signature.token_outputs
    return ChoiceArguments(weights, table, out, noise_inputs(program))


def write_choice(program: Program, writer: Writer, shape: Shape) -> None:
    """The module of a program that :func:`refused` does not refuse."""
    writer.line("@I.ir_module")
    with writer.block("class Kernel:"):
        for entry, loop in (("scan", "T.parallel"), ("scan_serial", "T.serial")):
            _function(program, writer, shape, entry, loop)


def _function(program: Program, writer: Writer, shape: Shape, entry: str, loop: str) -> None:
    write, n, vector = writer.line, shape.size, shape.lanes
    arguments = choice_arguments(program)
    weights, table, out, drawn = arguments
    dtype = table.dtype
    width = width_of(dtype)
    noise = drawn and TvmNoise(drawn, Functions(writer, 8 * width), shape)
    write("@T.prim_func")
    handles = [f"{name}_: T.handle" for name in arguments.names]
    with writer.block(f"def {entry}({', '.join([*handles, 'tasks: T.int32'])}):"):
        write(f'T.func_attr({{"global_symbol": "{entry}", "tirx.noalias": True}})')
        for size in "BLH":
            write(f"{size} = T.int64()")
        for argument, own in ((weights, shape.entries), (out, n)):
            write_strided(writer, argument.name, argument.leading, (own,), argument.dtype)
        axes = f"(H, T.int64({shape.looped}), T.int64({shape.entries}), T.int64({shape.padded}))"
        write(f'{table.name} = T.match_buffer({table.name}_, {axes}, "{dtype}", align={width})')
        if noise:
            noise.buffers()
        with writer.block(f"for task in {loop}(tasks):"):
            tokens = shape.tokens
            write_local(writer, "w", tokens * shape.entries, dtype)
            for token in range(tokens):
                write_local(writer, f"best_{token}", vector, dtype)
                write_local(writer, f"index_{token}", vector, "int32")
                if shape.entries > WRITTEN_OUT:
                    write_local(writer, f"mixed_{token}", vector, dtype)
                if noise:
                    write_local(writer, f"noise_{token}", TOGETHER * vector, dtype)
            if noise:
                noise.locals()
            for name in ("groups", "share", "first"):
                write_local(writer, name, 1, "int64")
            write(f"groups[0] = (B * L + {tokens - 1}) // {tokens}")
            write("share[0] = (groups[0] * H + tasks - 1) // tasks")
            write("first[0] = share[0] * task")
            count = "T.max(T.min(share[0], groups[0] * H - first[0]), T.int64(0))"
            with writer.block(f"for number in T.serial({count}):"):
                write("group: T.let = first[0] + number")
                write("h: T.let = group // groups[0]")
                write(f"start: T.let = (group - h * groups[0]) * {tokens}")
                _group(writer, shape, (weights.name, table.name, out.name), dtype, noise)
    write()


def _group(
    writer: Writer, shape: Shape, names: tuple[str, str, str], dtype: str, noise: TvmNoise | None
) -> None:
    write, vector, tokens, entries = writer.line, shape.lanes, shape.tokens, shape.entries
    weights, table, out = names
    # Behind the last token stands that one again.
    with (
        writer.block(f"for token in T.serial({tokens}):"),
        writer.block(f"for k in T.serial({entries}):"),
    ):
        write("n: T.let = T.min(start + token, B * L - 1)")
        write(f"w[token * {entries} + k] = {weights}[n // L, n % L, h, k]")
    with writer.block(f"for tile in T.serial({shape.columns}):"):
        for token in range(tokens):
            with writer.block(f"for j in T.serial({vector}):"):
                write(f'best_{token}[j] = T.{dtype}("-inf")')
                write(f"index_{token}[j] = T.int32(0)")
        with writer.block(f"for i in T.serial({shape.size}):"):
            for token in range(tokens):
                if noise:
                    write(f"at_{token}: T.let = T.min(start + {token}, B * L - 1)")
                    noise.draw(f"noise_{token}", "i", f"at_{token} // L, at_{token} % L, h")
                entry = f"{table}[h, i, {{}}, tile * {vector} + j]"
                sum_ = write_sum(writer, shape, f"mixed_{token}[j]", token * entries, entry)
                with writer.block(f"for j in T.serial({vector}):"):
                    if noise:
                        sum_ = noise.added(sum_, f"noise_{token}", "i")
                    write(f"m: T.let = {sum_}")
                    best = f"best_{token}[j]"
                    # A NaN is larger than all, and nothing is larger than it.
                    wins = f"T.Or(m > {best}, T.And(T.isnan(m), {best} == {best}))"
                    write(f"wins: T.let = {wins}")
                    write(f"index_{token}[j] = T.Select(wins, T.int32(i), index_{token}[j])")
                    write(f"{best} = T.Select(wins, m, {best})")
        for token in range(tokens):
            with (
                writer.block(f"for j in T.serial({vector}):"),
                writer.block(
                    f"if T.And(start + {token} < B * L, tile * {vector} + j < {shape.size}):"
                ),
            ):
                write(f"n: T.let = start + {token}")
                value = f"T.Select(T.isnan(best_{token}[j]), T.int32(-1), index_{token}[j])"
                write(f"{out}[n // L, n % L, h, tile * {vector} + j] = {value}")


def write_sum(writer: Writer, shape: Shape, local: str, first: int, entry: str) -> str:
    """A mixture's entry on each lane ``j``, added up in order.

    Args:
        writer: of the text.
        shape: how matrices are cut.
        local: where the lanes have it, if there are more matrices than are written out.
        first: where the coefficients begin in ``w``.
        entry: a matrix's entry, with ``{}`` for which.

    Returns:
        The text of it, to be used in a loop over lanes.
    """
    if shape.entries <= WRITTEN_OUT:
        sum_ = f"w[{first}] * {entry.format(0)}"
        for k in range(1, shape.entries):
            sum_ = f"T.fma(w[{first + k}], {entry.format(k)}, {sum_})"
        return sum_
    lanes = f"for j in T.serial({shape.lanes}):"
    with writer.block(lanes):
        writer.line(f"{local} = w[{first}] * {entry.format(0)}")
    with writer.block(f"for k in T.serial(1, {shape.entries}):"), writer.block(lanes):
        writer.line(f"{local} = T.fma(w[{first} + k], {entry.format('k')}, {local})")
    return local
