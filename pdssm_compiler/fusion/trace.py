"""From Python functions to the values of a program."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pdssm_compiler.fusion.functions import number
from pdssm_compiler.fusion.inputs import FusedInput, InputSpec, fused_input
from pdssm_compiler.fusion.symbols import Symbol, TraceError, shape_of, value_of
from pdssm_compiler.ir import builder as b
from pdssm_compiler.ir.errors import shown
from pdssm_compiler.ir.program import Input
from pdssm_compiler.ir.programs import Fusion
from pdssm_compiler.ir.types import Scalar, Vector, precision
from pdssm_compiler.ir.value import Value, topological
from pdssm_compiler.spec import ELEMENTS, ScanSpec

Expression = Callable[..., Any]

# The scan's own parameters.
RESERVED = (
    "cu_seqlens",
    "destination",
    "diagonal",
    "dictionary",
    "dictionary_logits",
    "drive",
    "initial_state",
    "output_final_state",
    "reverse",
    "selection",
    "selector_logits",
    "surrogate",
    "temperature",
)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*")
# No name of an input has two underscores in a row.
_STATE = "the__state"


@dataclass(frozen=True)
class Traced:
    """Traced expressions.

    Attributes:
        inputs: their parameters, each once, in order.
        fusion: what the program's builder needs.
    """

    inputs: tuple[FusedInput, ...]
    fusion: Fusion


def trace(
    spec: ScanSpec,
    diagonal: Expression | None,
    readout: Expression | None,
    inputs: Mapping[str, InputSpec] | None = None,
) -> Traced:
    """Trace the expressions of a scan.

    Raises:
        TraceError: an expression that has no meaning in a kernel, or parameters that cannot be
            told apart.
        ArgumentError: an input specification that does not fit.
    """
    element = ELEMENTS[spec.dtype]
    bits = precision(Vector(element))
    state = Input(_STATE, Vector(element)).value
    of_diagonal = _parameters("diagonal", diagonal)
    of_readout = _parameters("readout", readout)
    if readout is not None and not of_readout:
        raise TraceError("readout needs a parameter, the state; write readout(x, ...)")
    state_name, of_readout = of_readout[:1], of_readout[1:]
    for name in set(state_name) & set(of_diagonal):
        raise TraceError(
            f"{name} is the state in readout and an input in diagonal; rename one of them"
        )
    names = tuple(dict.fromkeys((*of_diagonal, *of_readout)))
    specs = _specs(inputs, names)
    found = {name: fused_input(name, specs[name], bits) for name in names}
    symbols = {name: Symbol(each.input.value) for name, each in found.items()}

    multiplied = written = None
    if diagonal is not None:
        given = {name: symbols[name] for name in of_diagonal}
        multiplied = _vector(_called("diagonal", diagonal, given, bits))
    if readout is not None:
        after = Symbol(state)
        given = {state_name[0]: after} | {name: symbols[name] for name in of_readout}
        written = _token(_called("readout", readout, given, bits, after))
    program_inputs = tuple(each.input for each in found.values())
    leaf = None if readout is None else state
    return Traced(tuple(found.values()), Fusion(program_inputs, multiplied, written, leaf))


def _parameters(role: str, function: Expression | None) -> list[str]:
    """The names of a function's parameters."""
    if function is None:
        return []
    if not callable(function):
        raise TraceError(f"{role} must be a function, got {shown(function)}")
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        raise TraceError(
            f"{role} has no signature to read its inputs from: wrap {shown(function)} in a "
            f"function of its own"
        ) from None
    for parameter in parameters:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise TraceError(
                f"{role} has the parameter {parameter}: every parameter is one named input, given "
                f"by position"
            )
        if parameter.default is not parameter.empty:
            raise TraceError(
                f"{role} has the default {parameter}: every parameter is an input; write the "
                f"number into the expression, or leave the default out"
            )
        if parameter.name in RESERVED:
            raise TraceError(
                f"{role} has a parameter {parameter.name}, which is the scan's own; rename it"
            )
        if not _NAME.fullmatch(parameter.name):
            raise TraceError(
                f"{role} has a parameter {parameter.name}: a name is made of ASCII letters and "
                f"digits, and single underscores between them; rename it"
            )
    return [parameter.name for parameter in parameters]


def _specs(inputs: Mapping[str, InputSpec] | None, names: Iterable[str]) -> dict[str, InputSpec]:
    """What each input is."""
    if inputs is not None and not isinstance(inputs, Mapping):
        raise TraceError(
            f"inputs must be a mapping of the parameters' names, {{'a': InputSpec('HN')}}, got "
            f"{shown(inputs)}"
        )
    given = dict(inputs or {})
    known = list(names)
    for name, spec in given.items():
        if name not in known:
            raise TraceError(
                f"inputs has {shown(name)}, which is no parameter; there are {', '.join(known)}"
            )
        if not isinstance(spec, InputSpec):
            raise TraceError(f"inputs[{name!r}] must be an InputSpec, got {shown(spec)}")
    return {name: given.get(name, InputSpec()) for name in known}


def _called(
    role: str,
    function: Expression,
    given: dict[str, Symbol],
    bits: int,
    state: Symbol | None = None,
) -> Symbol:
    """What a function makes of symbols, each of which it uses; the state may be one."""
    try:
        with torch.enable_grad():  # so that a no_grad of the function's own is seen
            result = function(*given.values())
        if result is None or isinstance(result, list | tuple | dict | torch.Tensor):
            raise TraceError(
                f"it returns {shown(result)}; return one tensor, made of its parameters"
            )
        if not isinstance(result, Symbol):
            result = Symbol(number("the result", result, bits), column=True)
    except TraceError as error:
        raise TraceError(f"{role}: {error}") from error
    below = set(topological([value_of(result)]))
    for name, symbol in given.items():
        if value_of(symbol) not in below:
            if symbol is state:
                raise TraceError(
                    f"{role} does not use its parameter {name}, the first one, which is the "
                    f"state; write {role}({name}, ...) of it, or compute what needs no state "
                    f"without a scan"
                )
            raise TraceError(f"{role} does not use its parameter {name}; leave it out")
    return result


def _vector(result: Symbol) -> Value:
    """A diagonal: N numbers a token."""
    if shape_of(result) == "[...]":
        raise TraceError(
            "diagonal gives one number a token, [...]; a diagonal has N, or one for all of them "
            "as [..., 1]: write [..., None] after it"
        )
    value = value_of(result)
    return b.broadcast(value) if isinstance(value.type, Scalar) else value


def _token(result: Symbol) -> Value:
    """A read-out: N numbers a token, or one."""
    if shape_of(result) == "[..., 1]":
        raise TraceError(
            "readout gives one number a token as [..., 1]; leave the last axis out: sum without "
            "keepdim, or .squeeze(-1)"
        )
    return value_of(result)
