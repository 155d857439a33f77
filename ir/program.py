"""Scan programs: what one scan computes, for one row, token by token.

A program is a signature (inputs and outputs with their roles), carries with their first values,
and a body: the values of one token, among them each carry's next value. A *row* is one head of
one sequence. Parts of a kind are kept sorted by name, and body values are interned, so the same
computation is the same program however it was put together.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from pdssm_compiler.ir.ops import apply
from pdssm_compiler.ir.types import (
    Type,
    Vector,
    are_logits,
    default_storage,
    has_matrices,
)
from pdssm_compiler.ir.value import Value, intern, topological

Role = Literal["token", "head", "row", "lagged"]
Direction = Literal["forward", "backward"]
Start = Literal["zero", "one", "identity"]

# The axes of a tensor before its type's own, by its role; ``L`` is the length T.
LEADING_AXES: dict[Role, tuple[str, ...]] = {
    "token": ("B", "L", "H"),
    "head": ("H",),
    "row": ("B", "H"),
    "lagged": ("B", "L", "H"),
}
ROLES: tuple[Role, ...] = tuple(LEADING_AXES)
STARTS: tuple[Start, ...] = ("zero", "one", "identity")


@dataclass(frozen=True)
class Input:
    """A tensor the program reads.

    Attributes:
        name: how the body and the caller call it.
        type: what one read gives.
        role: where the tensor varies, and so its shape before the type's own axes
            (:data:`LEADING_AXES`). ``lagged``: a forward result read by its adjoint: the value of
            the step that the forward program ran before this one, which is this program's
            *following* step; at this program's last step it is ``boundary``.
        storage: what the tensor holds.
        boundary: for ``lagged``, the row input that holds the value before the first step; None
            for zero.
        inverse_of: for a head table, the table whose maps' inverses this one holds. The runtime
            computes it; callers do not pass it.
    """

    name: str
    type: Type
    role: Role = "token"
    storage: str = ""
    boundary: str | None = None
    inverse_of: str | None = None

    def __post_init__(self) -> None:
        if not self.storage:
            object.__setattr__(self, "storage", default_storage(self.type))

    @property
    def value(self) -> Value:
        """The leaf that reads this input."""
        return intern("input", (), (("name", self.name),), self.type)

    @property
    def holds_logits(self) -> bool:
        """Whether the tensor holds logits in place of an index."""
        return are_logits(self.type, self.storage)


@dataclass(frozen=True)
class Carry:
    """A value handed from one token to the next.

    Attributes:
        name: how the body calls it.
        type: scalar or vector of numbers, or a map.
        start: its value before the first token: ``zero``, ``one``, ``identity`` (a map), or the
            name of a row input prefixed with ``%``.
        next: its value after the token, from the body.
    """

    name: str
    type: Type
    start: str
    next: Value

    @property
    def value(self) -> Value:
        """The leaf that reads this carry."""
        return carry_leaf(self.name, self.type)

    @property
    def start_input(self) -> str | None:
        """The row input it starts from, None for a constant start."""
        return self.start[1:] if self.start.startswith("%") else None


def carry_leaf(name: str, type_: Type) -> Value:
    """The leaf that reads the carry ``name``."""
    return intern("carry", (), (("name", name),), type_)


@dataclass(frozen=True)
class TokenOutput:
    """A tensor ``[B, T, H, ...]`` the program writes at every token."""

    name: str
    value: Value
    storage: str = ""

    def __post_init__(self) -> None:
        if not self.storage:
            object.__setattr__(self, "storage", default_storage(self.value.type))


@dataclass(frozen=True)
class FinalOutput:
    """A tensor ``[B, H, ...]``: a carry after the last token."""

    name: str
    carry: str
    storage: str


@dataclass(frozen=True)
class SumOutput:
    """A tensor ``[B, H, ...]``, or ``[B, H, K, ...]``: the sum of a value over a row's tokens.

    It is stored as it is computed: a narrow tensor would round at every token.

    Attributes:
        name: how the caller calls it.
        value: what is added at every token; a number.
        index: None, or an input's index: a token adds to entry ``index`` of ``K``, the index's
            bound, and the sums of the tokens that share an index stand together.
    """

    name: str
    value: Value
    index: Value | None = None

    @property
    def storage(self) -> str:
        """What the tensor holds."""
        return default_storage(self.value.type)

    @property
    def groups(self) -> int | None:
        """How many sums there are, None for one without an axis of its own."""
        return None if self.index is None else self.index.type.bound  # type: ignore[union-attr]


@dataclass(frozen=True)
class Check:
    """A promise that is verified while the kernel runs: ``map`` is the identity at every token.

    Attributes:
        subject: the input whose promise it is, for the message.
        promise: what was promised, for the message ("permutation", "identity").
        map: the value that is the identity if the promise holds.
    """

    subject: str
    promise: str
    map: Value


@dataclass(frozen=True)
class Program:
    """A scan program. See the module's text; :func:`~pdssm_compiler.ir.verify.verify` holds it
    to its rules.

    Attributes:
        state_size: ``N``, the length of every vector and map.
        direction: ``forward`` runs tokens from 0 to T-1, ``backward`` from T-1 to 0.
        chunk_length: tokens a chunk, where someone fixed it; None leaves it to the schedule.
    """

    state_size: int
    inputs: tuple[Input, ...]
    carries: tuple[Carry, ...]
    token_outputs: tuple[TokenOutput, ...] = ()
    final_outputs: tuple[FinalOutput, ...] = ()
    sum_outputs: tuple[SumOutput, ...] = ()
    checks: tuple[Check, ...] = ()
    direction: Direction = "forward"
    chunk_length: int | None = None

    def __post_init__(self) -> None:
        for name in ("inputs", "carries", "token_outputs", "final_outputs", "sum_outputs"):
            parts = tuple(sorted(getattr(self, name), key=lambda part: part.name))
            object.__setattr__(self, name, parts)
        checks = tuple(sorted(self.checks, key=lambda check: (check.subject, check.promise)))
        object.__setattr__(self, "checks", checks)

    def input(self, name: str) -> Input:
        """The input called ``name``; KeyError if there is none."""
        return self._inputs_by_name[name]

    def carry(self, name: str) -> Carry:
        """The carry called ``name``; KeyError if there is none."""
        return self._carries_by_name[name]

    @cached_property
    def _inputs_by_name(self) -> dict[str, Input]:
        return {input_.name: input_ for input_ in self.inputs}

    @cached_property
    def _carries_by_name(self) -> dict[str, Carry]:
        return {carry.name: carry for carry in self.carries}

    @property
    def roots(self) -> tuple[Value, ...]:
        """The body's results: next values, token outputs, what is summed and by which index,
        checked maps.
        """
        return (
            *(carry.next for carry in self.carries),
            *(output.value for output in self.token_outputs),
            *(output.value for output in self.sum_outputs),
            *(output.index for output in self.sum_outputs if output.index is not None),
            *(check.map for check in self.checks),
        )

    @cached_property
    def body(self) -> tuple[Value, ...]:
        """Every value of a token, leaves included, arguments before users."""
        return tuple(topological(self.roots))

    @cached_property
    def over_matrices(self) -> bool:
        """Whether it computes matrices, for which there are other templates than for scans."""
        return any(has_matrices(value.type) for value in self.body)

    def stored(self, name: str, storage: str) -> "Program":
        """The program with an input that is stored otherwise."""
        inputs = (replace(i, storage=storage) if i.name == name else i for i in self.inputs)
        return replace(self, inputs=tuple(inputs))

    @cached_property
    def logits(self) -> tuple[str, ...]:
        """Names of the inputs that hold logits; see :attr:`Input.holds_logits`."""
        return tuple(input_.name for input_ in self.inputs if input_.holds_logits)

    @cached_property
    def text(self) -> str:
        """The text form; parses back to this program."""
        from pdssm_compiler.ir.printer import print_program

        return print_program(self)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the text form, in hexadecimal: equal exactly for equal programs."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def __str__(self) -> str:
        return self.text


def zero_like(type_: Type) -> Value:
    """The constant zero of a number type."""
    from pdssm_compiler.ir.types import is_complex, precision

    element = "f32" if precision(type_) == 32 else "f64"
    zero = apply("constant", value=0.0, element=element)
    if isinstance(type_, Vector):
        zero = apply("broadcast", zero)
    return apply("complex", zero, zero) if is_complex(type_) else zero
