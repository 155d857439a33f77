"""The oracle: any program, in float64 and complex128, by its definition.

Slow and plain on purpose. Every kernel and every pass is held to what this file computes.
"""

from collections.abc import Mapping

import numpy as np

from pdssm_compiler.ir.errors import IRError
from pdssm_compiler.ir.ops import OPS
from pdssm_compiler.ir.program import LEADING_AXES, Input, Program, SumOutput
from pdssm_compiler.ir.types import (
    Coefficients,
    Index,
    Map,
    Matrices,
    Matrix,
    Scalar,
    Table,
    Type,
    is_complex,
    is_numeric,
)
from pdssm_compiler.ir.value import Value

Arrays = dict[str, np.ndarray]


def interpret(program: Program, inputs: Mapping[str, np.ndarray]) -> Arrays:
    """Run a program.

    Args:
        program: what to run.
        inputs: one array an input, by name, derived ones left out: ``token`` and ``lagged``
            ``[B, T, H, ...]``, ``row`` ``[B, H, ...]``, ``head`` ``[H, ...]``, where ``...`` is
            nothing for scalars and indices, ``N`` for vectors and maps, ``K, N`` for tables,
            ``K`` for coefficients, ``K, N, N`` for matrices.

    Returns:
        One array an output, by name: ``[B, T, H, ...]`` for token outputs, ``[B, H, ...]`` for
        final ones and sums, ``[B, H, K, ...]`` for sums by an index; float64, complex128 or int64.

    Raises:
        IRError: an input is missing or misshapen, an index is out of range, a check fails.
    """
    arrays = _read_inputs(program, inputs)
    batch, length, heads = _sizes(program, arrays)
    rows = (batch, heads)
    state = {
        carry.name: _start(carry.type, carry.start, program.state_size, rows, arrays)
        for carry in program.carries
    }
    emitted: dict[str, list[np.ndarray]] = {out.name: [] for out in program.token_outputs}
    sums = {out.name: _no_sum(out, program.state_size, rows) for out in program.sum_outputs}
    forward = program.direction == "forward"
    for t in range(length) if forward else reversed(range(length)):
        token = {
            input_.name: _at(input_, arrays, t, length, forward, rows) for input_ in program.inputs
        }
        values = _run_body(program, token, state)
        for check in program.checks:
            if (values[check.map] != np.arange(program.state_size)).any():
                raise IRError(f"%{check.subject} is not the {check.promise} it was promised")
        for out in program.token_outputs:
            shape = rows + _own_shape(out.value.type, program.state_size)
            emitted[out.name].append(np.broadcast_to(values[out.value], shape))
        for total in program.sum_outputs:
            index = None if total.index is None else values[total.index]
            _add(sums[total.name], values[total.value], index)
        state = {carry.name: values[carry.next] for carry in program.carries}
    results: Arrays = {}
    for out in program.token_outputs:
        parts = emitted[out.name] if forward else emitted[out.name][::-1]
        if parts:
            results[out.name] = np.stack(parts, axis=1)
        else:
            own = _own_shape(out.value.type, program.state_size)
            shape = (batch, 0, heads, *own)
            results[out.name] = np.zeros(shape, dtype=_dtype(out.value.type))
    for final in program.final_outputs:
        own = _own_shape(program.carry(final.carry).type, program.state_size)
        results[final.name] = np.broadcast_to(state[final.carry], rows + own).copy()
    return results | sums


def _no_sum(total: SumOutput, n: int, rows: tuple[int, int]) -> np.ndarray:
    groups = () if total.groups is None else (total.groups,)
    shape = (*rows, *groups, *_own_shape(total.value.type, n))
    return np.zeros(shape, dtype=_dtype(total.value.type))


def _add(total: np.ndarray, value: np.ndarray, index: np.ndarray | None) -> None:
    """Add a token's values to the sums of their rows, ``[B, H, ...]`` or ``[B, H, K, ...]``."""
    if index is None:
        total += value
        return
    b, h = np.indices(total.shape[:2])
    total[b, h, np.broadcast_to(index, total.shape[:2])] += value


def _dtype(type_: Type) -> type:
    if not is_numeric(type_):
        return np.int64
    return np.complex128 if is_complex(type_) else np.float64


def _own_shape(type_: Type, n: int) -> tuple[int, ...]:
    match type_:
        case Scalar() | Index():
            return ()
        case Table(size, _):
            return (size, n)
        case Coefficients(size, _):
            return (size,)
        case Matrix():
            return (n, n)
        case Matrices(size, _):
            return (size, n, n)
        case _:
            return (n,)


def _read_inputs(program: Program, inputs: Mapping[str, np.ndarray]) -> Arrays:
    arrays: Arrays = {}
    for input_ in program.inputs:
        if input_.inverse_of is not None:
            continue
        if input_.name not in inputs:
            raise IRError(f"no array for %{input_.name}")
        array: np.ndarray = np.asarray(inputs[input_.name])
        if input_.holds_logits:
            array = _places(input_, array)
        array = array.astype(_dtype(input_.type))
        own = _own_shape(input_.type, program.state_size)
        leading = len(LEADING_AXES[input_.role])
        if array.ndim != leading + len(own) or array.shape[leading:] != own:
            raise IRError(f"%{input_.name} has the shape {array.shape}")
        bound = input_.type.bound if isinstance(input_.type, Index) else program.state_size
        if not is_numeric(input_.type) and ((array < 0) | (array >= bound)).any():
            raise IRError(f"%{input_.name} has an index outside [0, {bound})")
        arrays[input_.name] = array
    _check_rows(program, arrays)
    for input_ in program.inputs:
        if input_.inverse_of is not None:
            source = arrays[input_.inverse_of]
            arrays[input_.name] = OPS["invert"].evaluate(program.state_size, {}, source)
    return arrays


def _places(input_: Input, logits: np.ndarray) -> np.ndarray:
    """The index that logits stand for; out of range where one is a NaN."""
    assert isinstance(input_.type, Index)
    if logits.shape[-1:] != (input_.type.bound,):
        raise IRError(f"%{input_.name} has the shape {logits.shape}")
    return np.where(np.isnan(logits).any(-1), -1, logits.argmax(-1))


def _check_rows(program: Program, arrays: Arrays) -> None:
    """Every input has the same ``B``, ``T`` and ``H``: NumPy would broadcast a 1."""
    sizes = dict(zip("BLH", _sizes(program, arrays), strict=True))
    for input_ in program.inputs:
        if input_.inverse_of is None:
            leading = tuple(sizes[axis] for axis in LEADING_AXES[input_.role])
            shape = arrays[input_.name].shape
            if shape[: len(leading)] != leading:
                raise IRError(f"%{input_.name} has the shape {shape}; its rows are {leading}")


def _sizes(program: Program, arrays: Arrays) -> tuple[int, int, int]:
    tokens = [i.name for i in program.inputs if i.role in ("token", "lagged")]
    return arrays[tokens[0]].shape[:3]  # type: ignore[return-value]


def _start(type_: Type, start: str, n: int, rows: tuple[int, int], arrays: Arrays) -> np.ndarray:
    if start.startswith("%"):
        return arrays[start[1:]]
    shape = rows + _own_shape(type_, n)
    if isinstance(type_, Map):
        return np.broadcast_to(np.arange(n), shape)
    return np.full(shape, 1.0 if start == "one" else 0.0, dtype=_dtype(type_))


def _at(
    input_: Input, arrays: Arrays, t: int, length: int, forward: bool, rows: tuple[int, int]
) -> np.ndarray:
    array = arrays[input_.name]
    if input_.role == "token":
        return array[:, t]
    if input_.role == "lagged":
        following = t + 1 if forward else t - 1
        if 0 <= following < length:
            return array[:, following]
        if input_.boundary is not None:
            return arrays[input_.boundary]
        return np.zeros_like(array[:, t])
    return array


def _run_body(program: Program, token: Arrays, state: Arrays) -> dict[Value, np.ndarray]:
    values: dict[Value, np.ndarray] = {}
    for value in program.body:
        if value.op == "input":
            values[value] = token[value.name]
        elif value.op == "carry":
            values[value] = state[value.name]
        else:
            args = [values[arg] for arg in value.args]
            values[value] = OPS[value.op].evaluate(
                program.state_size, dict(value.attributes), *args
            )
    return values
