"""Symbols: what a user's function computes with while it is traced.

A :class:`Symbol` stands in for a tensor ``[..., N]``, ``[...]`` or ``[..., 1]`` whose leading axes
are tokens and heads, or heads alone. Its operators, its methods and the functions of torch that it
meets build a value of the IR, by the rules in :mod:`pdssm_compiler.fusion.functions`. It knows the
shapes that torch would need, so that a function that can be traced runs on tensors as well.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from pdssm_compiler.ir.errors import PdssmError, shown
from pdssm_compiler.ir.types import Scalar
from pdssm_compiler.ir.value import Value


class TraceError(PdssmError, TypeError):
    """An expression that cannot be traced into a kernel; the message says where and why."""


Rule = Callable[..., "Symbol"]

# What can be traced, by the name that torch has for it.
FUNCTIONS: dict[str, Rule] = {}


class Symbol:
    """A tensor of a traced function.

    Args:
        value: what it is in the IR.
        column: of a scalar, whether it has an axis of size 1 in the place of N.
    """

    __slots__ = ("_column", "_value")

    # NumPy would take it for an array of objects.
    __array_ufunc__ = None

    def __init__(self, value: Value, column: bool = False) -> None:
        self._value = value
        self._column = column

    def __repr__(self) -> str:
        return f"<a traced tensor {shape_of(self)} of {self._value.type}>"

    @classmethod
    def __torch_function__(
        cls,
        function: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> "Symbol":
        return call(function.__name__, args, kwargs or {})

    def __getattr__(self, name: str) -> Callable[..., "Symbol"]:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in FUNCTIONS:
            raise TraceError(f"a traced tensor has no .{name}; it has {', '.join(FUNCTIONS)}")
        return lambda *args, **kwargs: call(name, (self, *args), kwargs)

    @property
    def real(self) -> "Symbol":
        """The real part."""
        return call("real", (self,), {})

    @property
    def imag(self) -> "Symbol":
        """The imaginary part."""
        return call("imag", (self,), {})

    def __neg__(self) -> "Symbol":
        return call("neg", (self,), {})

    def __pos__(self) -> "Symbol":
        return self

    def __add__(self, other: Any) -> "Symbol":
        return call("add", (self, other), {})

    def __radd__(self, other: Any) -> "Symbol":
        return call("add", (other, self), {})

    def __sub__(self, other: Any) -> "Symbol":
        return call("sub", (self, other), {})

    def __rsub__(self, other: Any) -> "Symbol":
        return call("sub", (other, self), {})

    def __mul__(self, other: Any) -> "Symbol":
        return call("mul", (self, other), {})

    def __rmul__(self, other: Any) -> "Symbol":
        return call("mul", (other, self), {})

    def __truediv__(self, other: Any) -> "Symbol":
        return call("div", (self, other), {})

    def __rtruediv__(self, other: Any) -> "Symbol":
        return call("div", (other, self), {})

    def __pow__(self, exponent: Any) -> "Symbol":
        return call("pow", (self, exponent), {})

    def __getitem__(self, index: Any) -> "Symbol":
        if isinstance(index, tuple) and len(index) == 2 and index[0] is ... and index[1] is None:
            return call("unsqueeze", (self, -1), {})
        raise TraceError(
            f"a traced tensor is indexed by [..., None] alone, not by [{shown(index)}]; a kernel "
            f"computes element by element"
        )

    def _compared(self, _: object) -> NoReturn:
        raise TraceError(
            "a traced tensor is compared, and nothing is known of its numbers yet; an expression "
            "is the same for all of them: write it without comparisons and branches"
        )

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _compared  # type: ignore[assignment]
    __hash__ = object.__hash__

    def __bool__(self) -> NoReturn:
        raise TraceError(
            "the expression branches on a traced tensor, and nothing is known of its numbers yet; "
            "an expression is the same for all of them: write it without branches"
        )

    def _converted(self, *_: Any) -> NoReturn:
        raise TraceError(
            "a traced tensor is converted to a number or an array (by math, numpy, len or a loop "
            "over it); use torch's functions and operators"
        )

    __float__ = __int__ = __complex__ = __index__ = _converted
    __iter__ = __len__ = __array__ = _converted

    def _written(self, *_: Any) -> NoReturn:
        # In torch every other name of the tensor would see the change, and so would its owner.
        raise TraceError(
            "a traced tensor is changed in place (by +=, an index or the like); make a new one: "
            "y = x + 1 in the place of x += 1"
        )

    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ipow__ = _written
    __ifloordiv__ = __imod__ = __imatmul__ = __iand__ = __ior__ = __ixor__ = _written
    __setitem__ = __delitem__ = _written

    def _no_operator(self, *_: Any) -> NoReturn:
        raise TraceError(
            "an operator that cannot be traced meets a traced tensor; there are + - * / and whole "
            "powers of it, and p ** x is written exp(log(p) * x)"
        )

    __abs__ = __invert__ = __round__ = __floor__ = __ceil__ = __trunc__ = _no_operator
    __matmul__ = __rmatmul__ = __mod__ = __rmod__ = __floordiv__ = __rfloordiv__ = _no_operator
    __divmod__ = __rdivmod__ = __rpow__ = __and__ = __rand__ = __or__ = __ror__ = _no_operator
    __xor__ = __rxor__ = __lshift__ = __rlshift__ = __rshift__ = __rrshift__ = _no_operator


def call(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Symbol:
    """A function on symbols and numbers, by torch's name for it.

    Raises:
        TraceError: a function, or arguments, that cannot be traced.
    """
    if any(isinstance(arg, torch.Tensor) for arg in (*args, *kwargs.values())):
        raise TraceError(
            f"{name} meets a tensor that is not a parameter of the function; make it one, and "
            f"pass the tensor when the scan is called"
        )
    if not torch.is_grad_enabled():
        raise TraceError(
            f"{name} is computed without gradients (under no_grad), and a kernel's backward has "
            f"them all; compute that part before the call and pass it as an input"
        )
    rule = FUNCTIONS.get(name)
    if rule is None:
        raise TraceError(f"{name} cannot be traced; there are {', '.join(FUNCTIONS)}")
    try:
        bound = inspect.signature(rule).bind(*args, **kwargs)
    except TypeError as error:
        raise TraceError(
            f"{name}{inspect.signature(rule)} is traced; the call differs: {error}"
        ) from None
    return rule(*bound.args, **bound.kwargs)


def value_of(symbol: Symbol) -> Value:
    """What a symbol is in the IR."""
    return symbol._value


def is_column(symbol: Symbol) -> bool:
    """Whether a scalar has an axis of size 1 in the place of N."""
    return symbol._column


def shape_of(symbol: Symbol) -> str:
    """The shape of the tensor it stands for."""
    if not isinstance(symbol._value.type, Scalar):
        return "[..., N]"
    return "[..., 1]" if symbol._column else "[...]"
