"""adjoint: the backward program, derived by transposing the body.

before → after: ``c', y = f(c, x)`` run over tokens → ``λ, ∂x = fᵀ(λ + ..., ∂y; saved)`` run in the
opposite direction. Each op contributes the cotangents its table entry names; a carry's cotangent
becomes a carry; the primal carry becomes a ``lagged`` input that reads what the forward saved. The
carry's next value is computed again from it where that takes arithmetic alone, and is read from
the same tensor where it would move elements again.

reason: no kernel's backward is written by hand beside it, so none can disagree with its forward.

Gradients follow PyTorch's convention for complex numbers.

Maps and indices are hard choices, and have a gradient only by a *surrogate*: they stand for
one-hot matrices and vectors, whose entries have the gradients of the numbers they are.

``active``: only the ones have. A map that scatters ``x`` has ``a[j] = Re(conj(g[p[j]]) x[j])``,
the index that selects it ``Σ_j a[j]``, and a table the sums of ``a`` over the tokens that selected
each of its maps. Source: the memory-optimised surrogate of arXiv 2605.19150.

``dense``: the zeros have as well, ``Re(conj(g[i]) x[j])``. That is ``N²`` numbers a token, so the
program gives their factors, ``g`` and ``x``, as :class:`~pdssm_compiler.ir.passes.factors.Factors`
say, in the place of the gradients. Where such a map is what another program chose from numbers
(``argmax``), that program's adjoint takes the two vectors, ``left_<output>`` and
``right_<output>``, in the place of a cotangent, and ``temperature``, of the softmax that stands
for the choice; and it reads the map again.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from pdssm_compiler.ir.errors import PassError
from pdssm_compiler.ir.ops import OPS, apply
from pdssm_compiler.ir.passes.factors import Factors, chosen_by, refuse_unreached
from pdssm_compiler.ir.passes.rewrite import prune, substitute
from pdssm_compiler.ir.passes.simplify import simplify
from pdssm_compiler.ir.program import (
    Carry,
    FinalOutput,
    Input,
    Program,
    SumOutput,
    TokenOutput,
    carry_leaf,
    zero_like,
)
from pdssm_compiler.ir.types import (
    Index,
    Scalar,
    Table,
    Type,
    Vector,
    default_storage,
    element_of,
    is_complex,
    is_number,
    is_numeric,
    precision,
    real_of,
)
from pdssm_compiler.ir.value import Value, topological
from pdssm_compiler.ir.verify import verify

Surrogate = Literal["active", "dense"]
SURROGATES: tuple[Surrogate, ...] = ("active", "dense")


@dataclass(frozen=True)
class Adjoint:
    """A backward program and where its inputs come from.

    Attributes:
        forward: the program to run forward: the given one, with an extra token output
            ``saved_<carry>`` for each carry that the backward needs and no output holds.
        program: the backward program. Its inputs are the forward's own by name, ``grad_<output>``
            for the cotangent of an output, and the ``saved`` ones; its outputs are
            ``grad_<input>``, of an input that is one for all tokens a sum, and what ``factors``
            name.
        saved: for each saved input (``saved_<carry>``, lagged, and ``next_<carry>``, of the token
            itself), the forward's token output that feeds it.
        summed: gradients of head inputs, given as ``[B, H, ...]``: the caller sums over ``B``.
        factors: with the dense surrogate, what the gradients of tables and indices are made of,
            added up over all of them; they have no ``grad_<input>``.
    """

    forward: Program
    program: Program
    saved: dict[str, str]
    summed: tuple[str, ...]
    factors: tuple[Factors, ...] = ()


def adjoint(
    program: Program,
    wrt: Iterable[str] | None = None,
    cotangents: Iterable[str] | None = None,
    surrogate: Surrogate | None = None,
) -> Adjoint:
    """Derive the backward program.

    Args:
        program: the forward program.
        wrt: names of the inputs whose gradients are wanted; None for every number and, with a
            surrogate, every map, table and index.
        cotangents: names of the outputs a gradient arrives at; None for every number but sums by
            an index. An output left out has gradient zero, at no cost.
        surrogate: what stands for the gradient of maps, tables and indices; None: they have none.

    Raises:
        PassError: a name that is not a differentiable input or output, or a lagged input in
            ``wrt``, or one that the backward would read (derivatives of the second order); a
            surrogate that there is not, or that does not reach all of a wanted table.
    """
    verify(program)
    maps = [carry.name for carry in program.carries if not is_number(carry.type)]
    if maps:
        raise PassError(f"carry %{maps[0]} is a map, and what depends on it has no adjoint")
    if surrogate is not None and surrogate not in SURROGATES:
        raise PassError(f"no surrogate {surrogate!r}: there is {', '.join(SURROGATES)}")
    wanted = _wanted(program, wrt, surrogate)
    arriving = _arriving(program, cotangents, surrogate)
    forward, saved_outputs = save_carries(program)
    transposition = _Transposition(forward, wanted, arriving, saved_outputs, surrogate)
    result = simplify(transposition.run())
    _refuse_lagged(program, result)
    read = {input_.name for input_ in result.inputs}
    saved = {
        name: output
        for carry, output in saved_outputs.items()
        for name in (_saved(carry), _next(carry))
        if name in read
    }
    saved |= {name: output for name, output in transposition.maps_read.items() if name in read}
    # An extra output that the backward does not read after all is not written.
    needless = set(saved_outputs.values()) - set(saved.values())
    declared = {output.name for output in program.token_outputs}
    kept = tuple(o for o in forward.token_outputs if o.name in declared or o.name not in needless)
    sums = {total.name for total in result.sum_outputs}
    summed = tuple(
        f"grad_{name}"
        for name in wanted
        if program.input(name).role == "head" and f"grad_{name}" in sums
    )
    factors = tuple(transposition.factors)
    return Adjoint(replace(forward, token_outputs=kept), result, saved, summed, factors)


def save_carries(program: Program) -> tuple[Program, dict[str, str]]:
    """Before → after: every carry is emitted after each token.

    Returns the program and, for each carry, the token output that holds it. An output that
    already emits the carry's next value is used as it is.
    """
    outputs = list(program.token_outputs)
    saved: dict[str, str] = {}
    for carry in program.carries:
        held = next((out.name for out in outputs if out.value is carry.next), None)
        if held is None:
            held = _saved(carry.name)
            outputs.append(TokenOutput(held, carry.next))
        saved[carry.name] = held
    saving = replace(program, token_outputs=tuple(outputs))
    verify(saving)
    return saving, saved


def _saved(carry: str) -> str:
    return f"saved_{carry}"


def _next(carry: str) -> str:
    return f"next_{carry}"


def _moves(value: Value) -> bool:
    """Whether computing the value again would move or add up elements."""
    return any(
        is_number(below.type) and not below.is_leaf and not OPS[below.op].elementwise
        for below in topological([value])
    )


def _refuse_lagged(program: Program, backward: Program) -> None:
    """A lagged input of the program given: run the other way, it is read a step too late."""
    read = {input_.name for input_ in backward.inputs}
    for input_ in program.inputs:
        if input_.role == "lagged" and input_.name in read:
            raise PassError(f"%{input_.name} is lagged, and its adjoint would read it too late")


def _wanted(
    program: Program, wrt: Iterable[str] | None, surrogate: Surrogate | None
) -> tuple[str, ...]:
    known = [
        i.name
        for i in program.inputs
        if i.role != "lagged" and i.inverse_of is None and (is_numeric(i.type) or surrogate)
    ]
    # A table that is never selected from has no index to sum by.
    idle = {i.name for i in program.inputs if isinstance(i.type, Table)}
    idle -= {value.name for value in program.body if value.op == "input"}
    chosen = [name for name in known if name not in idle] if wrt is None else sorted(set(wrt))
    for name in chosen:
        if name not in known:
            raise PassError(
                f"no gradient for %{name}: differentiable inputs are {', '.join(known)}"
            )
    if not chosen:
        raise PassError("no gradient is wanted: name a differentiable input")
    if surrogate == "dense":
        refuse_unreached(program, chosen)
    return tuple(chosen)


def _arriving(
    program: Program, cotangents: Iterable[str] | None, surrogate: Surrogate | None
) -> frozenset[str]:
    numbers = {out.name for out in program.token_outputs if is_number(out.value.type)}
    numbers |= {f.name for f in program.final_outputs if is_number(program.carry(f.carry).type)}
    numbers |= {total.name for total in program.sum_outputs if total.index is None}
    if surrogate == "dense":
        numbers |= {o.name for o in program.token_outputs if _is_chosen(o.value)}
    if cotangents is None:
        return frozenset(numbers)
    unknown = sorted(set(cotangents) - numbers)
    if unknown:
        raise PassError(f"no cotangent for %{unknown[0]}: outputs are {sorted(numbers)}")
    return frozenset(cotangents)


class _Transposition:
    """One run of the pass."""

    def __init__(
        self,
        forward: Program,
        wanted: tuple[str, ...],
        arriving: frozenset[str],
        saved_outputs: dict[str, str],
        surrogate: Surrogate | None,
    ) -> None:
        self.surrogate = surrogate
        self.forward = forward
        self.wanted = wanted
        self.arriving = arriving
        self.saved_outputs = saved_outputs
        self.cotangents: dict[Value, Value] = {}
        self.inputs: list[Input] = list(forward.inputs)
        self.starts: dict[str, str] = {}
        # Of each use of a map that a table and an index give: their names, and the two vectors.
        self.uses: list[tuple[str | None, str, Value, Value]] = []
        self.factors: list[Factors] = []
        # Of each map that the body chooses: what arrives at it, and the inputs its adjoint reads.
        self.of_maps: dict[Value, tuple[tuple[Value, Value], Value, Value]] = {}
        self.maps_read: dict[str, str] = {}

    def run(self) -> Program:
        self._seed()
        self._transpose()
        carries, finals = self._carries()
        token_outputs, sums = self._gradients()
        self._refuse_clashes(carries)
        primal = self._primal_values()
        roots = [carry.next for carry in carries]
        roots += [out.value for out in token_outputs] + [total.value for total in sums]
        new = substitute(roots, primal)
        return prune(
            Program(
                state_size=self.forward.state_size,
                inputs=tuple(self.inputs),
                carries=tuple(replace(carry, next=new[carry.next]) for carry in carries),
                token_outputs=tuple(replace(out, value=new[out.value]) for out in token_outputs),
                final_outputs=tuple(finals),
                sum_outputs=tuple(replace(total, value=new[total.value]) for total in sums),
                direction="backward" if self.forward.direction == "forward" else "forward",
                chunk_length=self.forward.chunk_length,
            )
        )

    def _refuse_clashes(self, carries: list[Carry]) -> None:
        """A cotangent's carry named like a primal one would be taken for it."""
        for name in {c.name for c in carries} & {c.name for c in self.forward.carries}:
            raise PassError(f"carry %{name} has the name of a carry of the adjoint; rename it")

    def _seed(self) -> None:
        """Cotangents that arrive: from outputs at this token, and from the tokens after it."""
        for out in self.forward.token_outputs:
            if out.name in self.arriving and _is_chosen(out.value):
                self._seed_map(out)
            elif out.name in self.arriving:
                grad = Input(f"grad_{out.name}", out.value.type, "token", out.storage)
                self.inputs.append(grad)
                self._add(out.value, grad.value)
        for total in self.forward.sum_outputs:
            if total.name in self.arriving:
                # Every token added to it.
                grad = Input(f"grad_{total.name}", total.value.type, "row")
                self.inputs.append(grad)
                self._add(total.value, grad.value)
        finals: dict[str, FinalOutput] = {}
        for final in self.forward.final_outputs:
            if final.name in self.arriving:
                if final.carry in finals:
                    # The cotangent's carry starts from one input.
                    other = finals[final.carry].name
                    raise PassError(f"%{other} and %{final.name} both end carry %{final.carry}")
                finals[final.carry] = final
        for carry in self.forward.carries:
            self._add(carry.next, carry_leaf(cotangent_carry(carry.name), carry.type))
            if carry.name in finals:
                final = finals[carry.name]
                grad = Input(f"grad_{final.name}", carry.type, "row", final.storage)
                self.inputs.append(grad)
                self.starts[carry.name] = f"%{grad.name}"

    def _seed_map(self, out: TokenOutput) -> None:
        """What arrives at a map that was chosen: the factors of its matrix's cotangent."""
        bits = precision(out.value.args[0].type)
        vector = Vector(element_of(bits, complex_=True))
        sides = [Input(f"{side}_{out.name}", vector) for side in ("left", "right")]
        saved = Input(_saved(out.name), out.value.type, "token", out.storage)
        temperature = Input("temperature", Scalar(element_of(bits, complex_=False)), "head")
        self.inputs += [*sides, saved]
        if temperature not in self.inputs:
            self.inputs.append(temperature)
        self.maps_read[saved.name] = out.name
        left, right = (side.value for side in sides)
        self.of_maps[out.value] = ((left, right), saved.value, temperature.value)

    def _transpose(self) -> None:
        roots = [carry.next for carry in self.forward.carries]
        roots += [out.value for out in self.forward.token_outputs]
        roots += [out.value for out in self.forward.sum_outputs]
        for value in reversed(topological(roots)):
            cotangent = self.cotangents.get(value)
            op = None if value.is_leaf else OPS[value.op]
            if op is not None and op.dense is not None and value in self.of_maps:
                for arg, part in zip(
                    value.args, op.dense(*self.of_maps[value], value), strict=True
                ):
                    if part is not None:
                        self._add(arg, part)
            if op is None or cotangent is None:
                continue
            rules = [op.adjoint]
            if self.surrogate == "active" and op.active is not None:
                rules.append(op.active)
            if self.surrogate == "dense" and op.factors is not None:
                self._note_use(value, op.factors(cotangent, value))
            for rule in rules:
                for arg, part in zip(value.args, rule(cotangent, value), strict=True):
                    if part is not None:
                        self._add(arg, part)

    def _note_use(self, move: Value, factors: tuple[Value, Value]) -> None:
        map_ = move.args[1]
        if map_.op == "input" and map_.name in self.wanted:
            self.uses.append((None, map_.name, *factors))
            return
        chosen = chosen_by(map_)
        if chosen is not None and set(self.wanted).intersection(chosen):
            self.uses.append((*chosen, *factors))

    def _add(self, value: Value, cotangent: Value) -> None:
        cotangent = _coerce(cotangent, value.type)
        known = self.cotangents.get(value)
        total = cotangent if known is None else apply("add", known, cotangent)
        self.cotangents[value] = total

    def _carries(self) -> tuple[list[Carry], list[FinalOutput]]:
        """The cotangents of carries, and those of what carries start from."""
        carries: list[Carry] = []
        finals: list[FinalOutput] = []
        for carry in self.forward.carries:
            name = cotangent_carry(carry.name)
            following = self.cotangents.get(carry.value, zero_like(carry.type))
            start = self.starts.get(carry.name, "zero")
            carries.append(Carry(name, carry.type, start, following))
            if carry.start_input in self.wanted:
                storage = self.forward.input(carry.start_input).storage
                finals.append(FinalOutput(f"grad_{carry.start_input}", name, storage))
        return carries, finals

    def _gradients(self) -> tuple[list[TokenOutput], list[SumOutput]]:
        """Of what the tokens read."""
        token_outputs: list[TokenOutput] = []
        sums: list[SumOutput] = []
        starts = {carry.start_input for carry in self.forward.carries}
        for name in self.wanted:
            input_ = self.forward.input(name)
            if name in starts:
                continue
            if self.surrogate == "dense" and not is_numeric(input_.type):
                continue
            type_ = self._gradient_type(input_)
            cotangent = self.cotangents.get(input_.value, zero_like(type_))
            if input_.role == "token":
                storage = input_.storage if is_numeric(input_.type) else default_storage(type_)
                token_outputs.append(TokenOutput(f"grad_{name}", cotangent, storage))
            else:
                # The input is one for all tokens, so its gradient is summed over them.
                index = self._selected_by(input_) if isinstance(input_.type, Table) else None
                sums.append(SumOutput(f"grad_{name}", cotangent, index))
        for number, (table, index_name, left, right) in enumerate(self.uses):
            names = [
                self._written(token_outputs, value, f"{side}_{number}")
                for side, value in (("left", left), ("right", right))
            ]
            self.factors.append(Factors(table, index_name, *names))
        return token_outputs, sums

    @staticmethod
    def _written(token_outputs: list[TokenOutput], value: Value, name: str) -> str:
        """The name of the output that holds a value as it is computed; a new one if none does."""
        new = TokenOutput(name, value)
        for output in token_outputs:
            if output.value is value and output.storage == new.storage:
                return output.name
        token_outputs.append(new)
        return name

    def _gradient_type(self, input_: Input) -> Type:
        """The type of a gradient, of one map's for a table."""
        if is_numeric(input_.type):
            return input_.type
        numbers = (value.type for value in self.forward.body if is_number(value.type))
        element = element_of(max(map(precision, numbers), default=32), complex_=False)
        return Scalar(element) if isinstance(input_.type, Index) else Vector(element)

    def _selected_by(self, table: Input) -> Value:
        """The index whose tokens a table's gradient is summed by."""
        body = self.forward.body
        if any(i.inverse_of == table.name and i.value in body for i in self.forward.inputs):
            raise PassError(
                f"%{table.name} is read by its inverse, whose gradient is not its own; derive the "
                f"adjoint before specialising"
            )
        found = [v.args[1] for v in body if v.op == "select" and v.args[0] is table.value]
        if len(found) != 1:
            raise PassError(
                f"%{table.name} is selected from by {len(found)} indices; its gradient is summed "
                f"by one"
            )
        return found[0]

    def _primal_values(self) -> dict[Value, Value]:
        """Primal carries read what the forward saved at the token before, and some of their next
        values what it saved at the token.
        """
        primal: dict[Value, Value] = {}
        for carry in self.forward.carries:
            output = self.saved_outputs[carry.name]
            storage = next(o.storage for o in self.forward.token_outputs if o.name == output)
            if carry.start not in ("zero", f"%{carry.start_input}"):
                raise PassError(f"carry %{carry.name} starts from {carry.start}, not from zero")
            saved = Input(_saved(carry.name), carry.type, "lagged", storage, carry.start_input)
            self.inputs.append(saved)
            primal[carry.value] = saved.value
            if _moves(carry.next):
                reached = Input(_next(carry.name), carry.type, "token", storage)
                self.inputs.append(reached)
                primal[carry.next] = reached.value
        return primal


def _is_chosen(value: Value) -> bool:
    """Whether the value is a map that an op chose from numbers."""
    return not value.is_leaf and OPS[value.op].dense is not None


def cotangent_carry(carry: str) -> str:
    """The name of the adjoint's carry that holds a carry's cotangent."""
    return f"adjoint_{carry}"


def _coerce(cotangent: Value, type_: Type) -> Value:
    """The cotangent in the type of what it belongs to: a real value's gradient is real."""
    if is_complex(cotangent.type) and not is_complex(type_):
        return apply("real", cotangent)
    if is_complex(type_) and not is_complex(cotangent.type):
        return apply("complex", cotangent, zero_like(real_of(type_)))
    return cotangent
