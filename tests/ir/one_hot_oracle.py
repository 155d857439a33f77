"""The surrogates by their definition: autograd through one-hot matrices written out.

Every map is a matrix ``[N, N]`` with a one in row ``p[j]`` of column ``j``, every index a vector
``[K]``, and every op on them is a sum of products, so autograd gives the gradient of each of their
entries. That is the dense surrogate; what the active one keeps is that of the ones.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pdssm_compiler.ir import Program
from pdssm_compiler.ir.types import Index, is_number
from pdssm_compiler.ir.value import Value
from tests.ir import torch_oracle
from tests.strategies import Sizes

# Maps are [B, H, N, N], tables [B, H, K, N, N], indices [B, H, K].
RULES = {
    "gather": lambda x, p: torch.einsum("bhij,bhi->bhj", p.to(x.dtype), x),
    "scatter_add": lambda x, p: torch.einsum("bhij,bhj->bhi", p.to(x.dtype), x),
    "select": lambda table, index: torch.einsum("bhk,bhkij->bhij", index, table),
    "compose": lambda after, before: after @ before,
    "invert": lambda p: p.mT,
    "keep": lambda x, index: index[..., 1:] * x,
}


def _evaluate(value: Value, args: list[Tensor], rows: tuple[int, int], n: int) -> Tensor:
    if value.op == "iota":
        return torch.eye(n, dtype=torch.float64).expand(*rows, n, n)
    if value.op in RULES:
        return RULES[value.op](*args)
    return torch_oracle.evaluate(value, args, rows, n)


def gradients(
    program: Program,
    arrays: Mapping[str, np.ndarray],
    sizes: Sizes,
    cotangents: Mapping[str, np.ndarray],
    wrt: Sequence[str],
    dense: bool = False,
) -> dict[str, np.ndarray]:
    """Gradients of the inputs in ``wrt``, of maps, tables and indices those of the ones, or of all
    entries.
    """
    leaves = {name: _leaf(program, name, torch.tensor(array)) for name, array in arrays.items()}
    for name in wrt:
        leaves[name].requires_grad_()
    results = torch_oracle.run(program, leaves, sizes, _evaluate)
    reached = [name for name in cotangents if results[name].requires_grad]
    found: tuple[Tensor, ...] = tuple(torch.zeros_like(leaves[name]) for name in wrt)
    if reached:
        found = torch.autograd.grad(
            [results[name] for name in reached],
            [leaves[name] for name in wrt],
            [torch.tensor(cotangents[name]) for name in reached],
            allow_unused=True,
            materialize_grads=True,
        )
    if dense:
        return {n: grad.resolve_conj().numpy() for n, grad in zip(wrt, found, strict=True)}
    return {
        name: _used(program, name, torch.tensor(arrays[name]), grad).resolve_conj().numpy()
        for name, grad in zip(wrt, found, strict=True)
    }


def _leaf(program: Program, name: str, given: Tensor) -> Tensor:
    type_ = program.input(name).type
    if is_number(type_):
        return given
    if isinstance(type_, Index):
        return one_hot(given, type_.bound).double()
    # [..., j, i] is 1 where p[j] = i.
    return one_hot(given, program.state_size).double().mT.contiguous()


def _used(program: Program, name: str, given: Tensor, grad: Tensor) -> Tensor:
    """The gradients of the entries that are one."""
    type_ = program.input(name).type
    if is_number(type_):
        return grad
    if isinstance(type_, Index):
        return grad.gather(-1, given[..., None]).squeeze(-1)
    return grad.gather(-2, given[..., None, :]).squeeze(-2)
