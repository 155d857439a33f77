"""Building programs from Python.

:class:`ProgramBuilder` declares the signature and collects the body; the functions below it make
values. They take values or Python floats, and broadcast scalars to vectors.
"""

from typing import Literal

from pdssm_compiler.ir.errors import IRError
from pdssm_compiler.ir.ops import apply
from pdssm_compiler.ir.program import (
    Carry,
    Check,
    Direction,
    FinalOutput,
    Input,
    Program,
    Role,
    SumOutput,
    TokenOutput,
    carry_leaf,
)
from pdssm_compiler.ir.types import (
    Matrices,
    Scalar,
    Type,
    Vector,
    default_storage,
    is_complex,
    precision,
)
from pdssm_compiler.ir.value import Value
from pdssm_compiler.ir.verify import verify

Operand = Value | float


class ProgramBuilder:
    """Collects a program's parts; :meth:`build` verifies the whole."""

    def __init__(
        self,
        state_size: int,
        direction: Direction = "forward",
        chunk_length: int | None = None,
    ) -> None:
        self._state_size = state_size
        self._direction: Direction = direction
        self._chunk_length = chunk_length
        self._inputs: list[Input] = []
        self._carries: dict[str, tuple[Type, str]] = {}
        self._next: dict[str, Value] = {}
        self._token_outputs: list[TokenOutput] = []
        self._final_outputs: list[FinalOutput] = []
        self._sum_outputs: list[SumOutput] = []
        self._checks: list[Check] = []

    def input(self, name: str, type_: Type, role: Role = "token", storage: str = "") -> Value:
        """Declare an input and read it."""
        input_ = Input(name, type_, role, storage)
        self._inputs.append(input_)
        return input_.value

    def carry(
        self, name: str, type_: Type, start: Literal["zero", "one", "identity"] | Value = "zero"
    ) -> Value:
        """Declare a carry and read it; ``start`` may be a row input."""
        if name in self._carries:
            raise IRError(f"carry %{name} is declared twice")
        if isinstance(start, Value):
            if start.op != "input":
                raise IRError(f"carry %{name} can start from a row input, not from {start.op}")
            self._carries[name] = (type_, f"%{start.name}")
        else:
            self._carries[name] = (type_, start)
        return carry_leaf(name, type_)

    def next(self, carry: str, value: Value) -> None:
        """Say what a carry is after the token."""
        if carry not in self._carries:
            raise IRError(f"%{carry} is not a carry")
        self._next[carry] = value

    def emit(self, name: str, value: Value, storage: str = "") -> None:
        """Write a value at every token."""
        self._token_outputs.append(TokenOutput(name, value, storage))

    def final(self, name: str, carry: str, storage: str = "") -> None:
        """Write a carry after the last token."""
        if carry not in self._carries:
            raise IRError(f"%{carry} is not a carry")
        storage = storage or default_storage(self._carries[carry][0])
        self._final_outputs.append(FinalOutput(name, carry, storage))

    def sum(self, name: str, value: Value, index: Value | None = None) -> None:
        """Write the sum of a value over a row's tokens; by an index, one sum for each entry."""
        self._sum_outputs.append(SumOutput(name, value, index))

    def check(self, subject: str, promise: str, map_: Value) -> None:
        """Verify at run time that ``map_`` is the identity, for the promise made of an input."""
        self._checks.append(Check(subject, promise, map_))

    def build(self) -> Program:
        """The verified program.

        Raises:
            VerificationError: it breaks a rule.
            IRError: a carry has no next value.
        """
        missing = sorted(set(self._carries) - set(self._next))
        if missing:
            raise IRError(f"carry %{missing[0]} has no next value; call next({missing[0]!r}, ...)")
        program = Program(
            state_size=self._state_size,
            inputs=tuple(self._inputs),
            carries=tuple(
                Carry(name, type_, start, self._next[name])
                for name, (type_, start) in self._carries.items()
            ),
            token_outputs=tuple(self._token_outputs),
            final_outputs=tuple(self._final_outputs),
            sum_outputs=tuple(self._sum_outputs),
            checks=tuple(self._checks),
            direction=self._direction,
            chunk_length=self._chunk_length,
        )
        verify(program)
        return program


def _binary(op: str, left: Operand, right: Operand) -> Value:
    like = left if isinstance(left, Value) else right
    if not isinstance(like, Value):
        raise IRError(f"{op} needs at least one value; got two numbers")
    left, right = _operand(left, like), _operand(right, like)
    if isinstance(left.type, Vector) and isinstance(right.type, Scalar):
        right = apply("broadcast", right)
    elif isinstance(left.type, Scalar) and isinstance(right.type, Vector):
        left = apply("broadcast", left)
    return apply(op, left, right)


def _operand(operand: Operand, like: Value) -> Value:
    return operand if isinstance(operand, Value) else constant(operand, precision(like.type))


def constant(value: float, bits: int = 32) -> Value:
    """A real constant, a scalar of ``bits`` (32 or 64) bits."""
    return apply("constant", value=float(value), element="f32" if bits == 32 else "f64")


def add(left: Operand, right: Operand) -> Value:
    """``left + right``."""
    return _binary("add", left, right)


def sub(left: Operand, right: Operand) -> Value:
    """``left - right``."""
    return _binary("sub", left, right)


def mul(left: Operand, right: Operand) -> Value:
    """``left * right``."""
    return _binary("mul", left, right)


def scale(factor: Value, value: Value) -> Value:
    """``factor * value``, and zero where the factor is, whatever the value."""
    return apply("scale", factor, value)


def neg(value: Value) -> Value:
    """``-value``."""
    return apply("neg", value)


def conj(value: Value) -> Value:
    """The complex conjugate; a real value is its own."""
    return apply("conj", value) if is_complex(value.type) else value


def real(value: Value) -> Value:
    """The real part; a real value is its own."""
    return apply("real", value) if is_complex(value.type) else value


def imag(value: Value) -> Value:
    """The imaginary part of a complex value."""
    return apply("imag", value)


def complex_(re: Value, im: Value) -> Value:
    """``re + i im`` from two real values."""
    return apply("complex", re, im)


def polar(magnitude: Value, phase: Value) -> Value:
    """``magnitude * exp(i phase)`` from two real values."""
    re = mul(magnitude, apply("cos", phase))
    return complex_(re, mul(magnitude, apply("sin", phase)))


def function(name: str, value: Value) -> Value:
    """A real function by its op's name: exp, log, sin, cos, tanh, sigmoid, softplus, sqrt,
    reciprocal.
    """
    return apply(name, value)


def total(value: Value) -> Value:
    """The sum of a vector's elements."""
    return apply("sum", value)


def broadcast(value: Value) -> Value:
    """A vector of ``N`` copies of a scalar."""
    return apply("broadcast", value)


def select(table: Value, index: Value) -> Value:
    """The map a table holds at an index."""
    return apply("select", table, index)


def gather(value: Value, map_: Value) -> Value:
    """``out[j] = value[map[j]]``."""
    return apply("gather", value, map_)


def scatter_add(value: Value, map_: Value) -> Value:
    """``out[i]`` = the sum of ``value[j]`` over all ``j`` with ``map[j] = i``."""
    return apply("scatter_add", value, map_)


def compose(after: Value, before: Value) -> Value:
    """``out[j] = after[before[j]]``."""
    return apply("compose", after, before)


def invert(map_: Value) -> Value:
    """The inverse of a map promised to be a permutation."""
    return apply("invert", map_)


def keep(value: Value, index: Value) -> Value:
    """The vector where an index below 2 is 1, zeros where it is 0."""
    return apply("keep", value, index)


def iota() -> Value:
    """The identity map."""
    return apply("iota")


def mix(matrices: Value, coefficients: Value) -> Value:
    """The matrix ``Σ_k coefficients[k] matrices[k]``."""
    if not isinstance(matrices.type, Matrices):
        raise IRError(f"mix needs matrices, not {matrices.type}")
    return apply("mix", matrices, coefficients, element=matrices.type.element)


def gumbel(matrix: Value, scale: Value, seed: Value, draw: Value, orientation: str) -> Value:
    """The matrix, and so many times Gumbel noise of a seed and a token's number."""
    return apply("gumbel", matrix, scale, seed, draw, orientation=orientation)


def argmax(matrix: Value, orientation: str) -> Value:
    """The map with its ones where the entries of each column, or row, are largest."""
    return apply("argmax", matrix, orientation=orientation)
