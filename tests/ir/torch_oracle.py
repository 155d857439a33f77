"""Scan programs in PyTorch, op by op: a second implementation, and autograd's gradients.

It shares no code with the interpreter or the adjoint pass. Every value has its rows expanded to
``[B, H, ...]``.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from pdssm_compiler.ir import Program
from pdssm_compiler.ir.program import SumOutput
from pdssm_compiler.ir.types import Map, Vector, is_complex, is_number
from pdssm_compiler.ir.value import Value
from tests.strategies import Sizes

Rule = Callable[..., Tensor]


def _select(table: Tensor, index: Tensor) -> Tensor:
    n = table.shape[-1]
    return table.gather(-2, index[..., None, None].expand(*index.shape, 1, n)).squeeze(-2)


# Called with the arguments' tensors; the ops without arguments are in _leafless.
RULES: dict[str, Rule] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    # Numbers here are finite.
    "scale": torch.mul,
    "neg": torch.neg,
    "conj": torch.conj_physical,
    "real": torch.real,
    "imag": torch.imag,
    "complex": torch.complex,
    "exp": torch.exp,
    "log": torch.log,
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    # The built-in is linear above its threshold, to 1e-9.
    "softplus": lambda x: torch.logaddexp(torch.zeros_like(x), x),
    "sqrt": torch.sqrt,
    "reciprocal": torch.reciprocal,
    "sum": lambda x: x.sum(-1),
    "gather": lambda x, p: x.gather(-1, p),
    "scatter_add": lambda x, p: torch.zeros_like(x).scatter_add(-1, p, x),
    "select": _select,
    "compose": lambda after, before: after.gather(-1, before),
    "invert": lambda p: p.argsort(-1),
    "keep": lambda x, k: torch.where(k[..., None] == 1, x, torch.zeros_like(x)),
}


def evaluate(value: Value, args: list[Tensor], rows: tuple[int, int], n: int) -> Tensor:
    """One op on tensors whose leading axes are ``rows``."""
    if value.op == "constant":
        return torch.full(rows, value.attribute("value"), dtype=torch.float64)
    if value.op == "iota":
        return torch.arange(n).expand(*rows, n)
    if value.op == "broadcast":
        return args[0][..., None].expand(*rows, n)
    return RULES[value.op](*args)


Evaluate = Callable[[Value, list[Tensor], tuple[int, int], int], Tensor]


def run(
    program: Program,
    tensors: Mapping[str, Tensor],
    sizes: Sizes,
    evaluate: Evaluate = evaluate,
) -> dict[str, Tensor]:
    """Every output of a program without lagged inputs, by name; each op by ``evaluate``."""
    batch, length, heads = sizes
    rows, n = (batch, heads), program.state_size
    state = {c.name: _start(c.type, c.start, tensors, rows, n) for c in program.carries}
    emitted: dict[str, list[Tensor]] = {out.name: [] for out in program.token_outputs}
    sums = {s.name: _no_sum(s, tensors, rows, n) for s in program.sum_outputs}
    forward = program.direction == "forward"
    for t in range(length) if forward else reversed(range(length)):
        values: dict[Value, Tensor] = {}
        for value in program.body:
            if value.op == "carry":
                values[value] = state[value.name]
            elif value.op == "input":
                tensor = tensors[value.name]
                role = program.input(value.name).role
                token = tensor[:, t] if role == "token" else tensor
                values[value] = token.expand(batch, *token.shape) if role == "head" else token
            else:
                args = [values[arg] for arg in value.args]
                values[value] = evaluate(value, args, rows, n)
        for out in program.token_outputs:
            emitted[out.name].append(values[out.value])
        for total in program.sum_outputs:
            index = None if total.index is None else values[total.index]
            sums[total.name] = sums[total.name] + _spread(total, values[total.value], index)
        state = {c.name: values[c.next] for c in program.carries}
    results = sums | {f.name: state[f.carry] for f in program.final_outputs}
    for out in program.token_outputs:
        parts = emitted[out.name] if forward else emitted[out.name][::-1]
        empty = _start(out.value.type, "zero", tensors, rows, n)[:, None][:, :0]
        results[out.name] = torch.stack(parts, 1) if parts else empty
    return results


def _no_sum(
    total: SumOutput, tensors: Mapping[str, Tensor], rows: tuple[int, int], n: int
) -> Tensor:
    zero = _start(total.value.type, "zero", tensors, rows, n)
    return zero if total.groups is None else torch.stack([zero] * total.groups, dim=2)


def _spread(total: SumOutput, value: Tensor, index: Tensor | None) -> Tensor:
    """A token's part of a sum: its value, in the group of its index."""
    if index is None:
        return value
    if not index.is_floating_point():
        index = torch.nn.functional.one_hot(index, total.groups)
    return torch.einsum("bhk,bh...->bhk...", index.to(value.dtype), value)  # index: [B, H, K]


def _start(
    type_: object, start: str, tensors: Mapping[str, Tensor], rows: tuple[int, int], n: int
) -> Tensor:
    if start.startswith("%"):
        return tensors[start[1:]]
    if isinstance(type_, Map):
        return torch.arange(n).expand(*rows, n)
    shape = (*rows, n) if isinstance(type_, Vector) else rows
    dtype = torch.complex128 if is_complex(type_) else torch.float64
    return torch.full(shape, 1.0 if start == "one" else 0.0, dtype=dtype)


def outputs(
    program: Program, arrays: Mapping[str, np.ndarray], sizes: Sizes
) -> dict[str, np.ndarray]:
    """What :func:`run` gives, from and to NumPy."""
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    return {name: out.numpy() for name, out in run(program, tensors, sizes).items()}


def gradients(
    program: Program,
    arrays: Mapping[str, np.ndarray],
    sizes: Sizes,
    cotangents: Mapping[str, np.ndarray],
    wrt: Iterable[str],
) -> dict[str, np.ndarray]:
    """Autograd's gradients of the inputs in ``wrt``; cotangents arrive at the outputs named."""
    wrt = list(wrt)
    tensors = {
        name: torch.tensor(array, requires_grad=name in wrt) for name, array in arrays.items()
    }
    results = run(program, tensors, sizes)
    reached = [name for name in cotangents if results[name].requires_grad]
    found: tuple[Tensor | None, ...] = (None,) * len(wrt)
    if reached and wrt:
        found = torch.autograd.grad(
            [results[name] for name in reached],
            [tensors[name] for name in wrt],
            [torch.tensor(cotangents[name]) for name in reached],
            allow_unused=True,
        )
    return {
        name: np.zeros_like(arrays[name]) if grad is None else grad.resolve_conj().numpy()
        for name, grad in zip(wrt, found, strict=True)
    }


def differentiable(program: Program) -> list[str]:
    """Names of the inputs that have a gradient."""
    return [i.name for i in program.inputs if is_number(i.type) and i.role != "lagged"]
