"""The calling convention of a kernel: its tensors, in order, and the checks it reports.

Emitters write it, the runtime obeys it. Arguments are the program's inputs, then its token
outputs, then its final outputs, then its sums, each sorted by name, then the error word.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Literal

from pdssm_compiler.ir.program import LEADING_AXES, Input, Program, Role
from pdssm_compiler.ir.types import (
    STORAGE_OF_PARTS,
    Coefficients,
    Index,
    Map,
    Matrices,
    Scalar,
    Table,
    Type,
    are_logits,
    is_complex,
)

# An error word holds the number of a check (from 1) and the token, b·T·H + t·H + h, it failed at.
CHECK_SHIFT = 48

_DTYPES = {
    "f16": "float16",
    "bf16": "bfloat16",
    "f32": "float32",
    "f64": "float64",
    "u8": "uint8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
}


def dtype_of(storage: str) -> str:
    """The dtype of the reals (or integers) that a storage is made of, by NumPy's name."""
    return _DTYPES[STORAGE_OF_PARTS.get(storage, storage)]


def width_of(dtype: str) -> int:
    """Bytes of a dtype by its name."""
    return int("".join(filter(str.isdigit, dtype))) // 8


# The leading axes of scratch that has a place for each chunk of a row.
_CHUNKS = ("B", "C", "H")


@dataclass(frozen=True)
class Argument:
    """One tensor of a kernel.

    Attributes:
        name: as in the program.
        type: what one element read or written is.
        storage: what the tensor holds.
        role: what its leading axes are (:data:`~pdssm_compiler.ir.program.LEADING_AXES`), or
            ``chunk``: ``[B, C, H]``, ``C`` the chunks of a row; or ``signal``: words that start at
            zero and by which the programs of a launch tell one another how far they are.
        written: whether it is an output.
        groups: sizes of an axis before the type's own: one entry for each value of an index.
    """

    name: str
    type: Type
    storage: str
    role: Role | Literal["chunk", "signal"]
    written: bool = False
    groups: int | None = None

    @property
    def complex(self) -> bool:
        """Whether the tensor ends in an axis of real and imaginary parts."""
        return is_complex(self.type)

    @property
    def logits(self) -> bool:
        """Whether it holds the logits of an index."""
        return are_logits(self.type, self.storage)

    @property
    def dtype(self) -> str:
        """The dtype of its reals or integers."""
        return dtype_of(self.storage)

    @property
    def leading(self) -> tuple[str, ...]:
        """Names of the axes before the type's own, each with a free stride; ``L`` is T. Signals
        have none.
        """
        if self.role == "signal":
            return ()
        return _CHUNKS if self.role == "chunk" else LEADING_AXES[self.role]

    def own_shape(self, state_size: int) -> tuple[int, ...]:
        """The type's own axes, dense, the parts of a complex number among them."""
        match self.type:
            case Index(bound) if self.logits:
                shape: tuple[int, ...] = (bound,)
            case Scalar() | Index():
                shape = ()
            case Table(size, _):
                shape = (size, state_size)
            case Coefficients(size, _):
                shape = (size,)
            case Matrices(size, _):
                shape = (size, state_size, state_size)
            case _:
                shape = (state_size,)
        groups = () if self.groups is None else (self.groups,)
        return (*groups, *shape, 2) if self.complex else (*groups, *shape)

    def copied_at_once(self, state_size: int) -> int:
        """Bytes that a thread copies of a token's row at once, where it starts at a multiple of
        them: as many, of at most 16, as go evenly into the row; those of one of its reals or
        integers where that is less than a copy takes.
        """
        each = width_of(self.dtype)
        row = prod(self.own_shape(state_size)) * each
        return max(each, next((size for size in (16, 8, 4) if row % size == 0), 1))


def sorted_form(maps: Argument) -> tuple[Argument, Argument]:
    """Where the sources of each target stand, for maps ``[…, N]``: two int32 tensors of their
    shape.

    ``<name>_order``: the sources sorted by where they go, each twice its number, plus 1 for the
    first that goes to its target. ``<name>_last``: for each target, the place of its last source
    among them, -1 if it has none.
    """
    return tuple(  # type: ignore[return-value]
        replace(maps, name=f"{maps.name}_{part}", storage="i32") for part in ("order", "last")
    )


@dataclass(frozen=True)
class ReportedCheck:
    """A check a kernel makes while it runs.

    Attributes:
        subject: the input at fault.
        promise: ``range``, or the map class that was promised.
    """

    subject: str
    promise: str


@dataclass(frozen=True)
class Signature:
    """The arguments and checks of a program's kernel.

    Attributes:
        program: what the kernel runs.
        of_chunks: names of row inputs, final outputs and sums that have an axis of chunks.
        sorted_maps: names of inputs and final outputs that hold maps, whose sorted form the kernel
            reads or writes as well; see :meth:`sorted_form`.
        reports: whether the kernel reports its checks.
    """

    program: Program
    of_chunks: frozenset[str] = frozenset()
    sorted_maps: frozenset[str] = frozenset()
    reports: bool = True

    @cached_property
    def inputs(self) -> tuple[Argument, ...]:
        """Tensors read."""
        return tuple(
            Argument(i.name, i.type, i.storage, "chunk" if i.name in self.of_chunks else i.role)
            for i in self.program.inputs
        )

    @cached_property
    def outputs(self) -> tuple[Argument, ...]:
        """Tensors written."""
        return (*self.token_outputs, *self.final_outputs, *self.sum_outputs)

    @cached_property
    def token_outputs(self) -> tuple[Argument, ...]:
        """Tensors written at every token."""
        return tuple(
            Argument(o.name, o.value.type, o.storage, "token", True)
            for o in self.program.token_outputs
        )

    @cached_property
    def final_outputs(self) -> tuple[Argument, ...]:
        """Tensors written after the last token."""
        return tuple(
            Argument(
                f.name,
                self.program.carry(f.carry).type,
                f.storage,
                self._of_rows(f.name),
                True,
            )
            for f in self.program.final_outputs
        )

    @cached_property
    def sum_outputs(self) -> tuple[Argument, ...]:
        """Tensors that every token adds to; the kernel clears them first."""
        return tuple(
            Argument(s.name, s.value.type, s.storage, self._of_rows(s.name), True, s.groups)
            for s in self.program.sum_outputs
        )

    def _of_rows(self, name: str) -> Literal["row", "chunk"]:
        return "chunk" if name in self.of_chunks else "row"

    @cached_property
    def arguments(self) -> tuple[Argument, ...]:
        """All tensors, in calling order."""
        declared = (*self.inputs, *self.outputs)
        forms = (sorted_form(a) for a in declared if a.name in self.sorted_maps)
        return (*declared, *(part for form in forms for part in form))

    @cached_property
    def checks(self) -> tuple[ReportedCheck, ...]:
        """The checks, in the order of their numbers (the first is 1)."""
        if not self.reports:
            return ()
        ranges = [
            ReportedCheck(i.name, "range") for i in self.program.inputs if needs_range_check(i)
        ]
        promises = [ReportedCheck(c.subject, c.promise) for c in self.program.checks]
        # A kernel may be handed the tables themselves and invert them.
        inverted = [
            ReportedCheck(input_.name, promise)
            for input_ in self.program.inputs
            if input_.inverse_of is not None and isinstance(input_.type, Table)
            for promise in ("range", input_.type.map_class)
        ]
        return (*ranges, *promises, *inverted)

    def check_number(self, check: ReportedCheck) -> int:
        """The number a kernel reports a check by."""
        return self.checks.index(check) + 1


def needs_range_check(input_: Input) -> bool:
    """Whether an input holds indices from outside; inverted tables are ours."""
    return isinstance(input_.type, Index | Map | Table) and input_.inverse_of is None
