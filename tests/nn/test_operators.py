"""Every operator of the library, those of backwards too, is what torch asks of one: as layers and
functions call it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pdssm_compiler import pd_scan
from pdssm_compiler.nn import PDSSM, FlashPDSSM
from tests.nn.layers import made, tokens

NAMESPACE = "pdssm_compiler::"
Calls = dict[str, tuple[Any, tuple[Any, ...]]]


class Taken(TorchDispatchMode):
    """The first call of each of our operators that is run within."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Calls = {}

    def __torch_dispatch__(
        self, operator: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        name = operator.name()
        if name.startswith(NAMESPACE):
            given = torch.utils._pytree.tree_map_only(torch.Tensor, _kept, arguments)
            self.calls.setdefault(name.removeprefix(NAMESPACE), (operator, given))
        return operator(*arguments, **(options or {}))


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    # Scratch is reused, and an expanded one stays expanded.
    return tensor.detach() if 0 in tensor.stride() else tensor.detach().clone()


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """The convolution by its operator."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pdssm_compiler.nn.convolution.has_kernel", lambda *_: True)
        yield


def trained(layer: FlashPDSSM | PDSSM, **options: Any) -> None:
    x = tokens(layer, 1, 5).requires_grad_()
    layer(x, **options).float().square().sum().backward()


def calls() -> Calls:
    with Taken() as taken:
        trained(made(FlashPDSSM, "dense", 0, torch.float32), cu_seqlens=torch.tensor([0, 2, 5]))
        in_parts = made(FlashPDSSM, "dense", 0, torch.float32)
        in_parts.fused = False
        trained(in_parts)
        layer = made(PDSSM, "linear", 0, torch.float32)
        layer.noise = 0.5
        trained(layer)
        layer.noise = 0.0
        table = tokens(layer, 1, 3)[0].requires_grad_()
        layer(table, symbols=torch.tensor([[0, 2, 2]])).square().sum().backward()
        diagonal = torch.ones(1, 3, 2, 4, dtype=torch.complex64)
        pd_scan(diagonal.requires_grad_(), diagonal)[0].abs().sum().backward()
        packed = {"cu_seqlens": torch.tensor([0, 1, 3]), "output_final_state": True}
        start = torch.ones(2, 2, 4, dtype=torch.complex64, requires_grad=True)
        sum(
            each.abs().sum() for each in pd_scan(diagonal, diagonal, initial_state=start, **packed)
        ).backward()
        low = made(FlashPDSSM, "odd", 0, torch.bfloat16)
        with as_on_a_gpu():
            trained(low)
            with torch.no_grad():
                low.step(tokens(low, 2, 1)[:, 0], low.init_cache(2))
    return taken.calls


def test_all_of_them() -> None:
    found = calls()
    every = {
        name.removeprefix(NAMESPACE)
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith(NAMESPACE)
    }
    assert set(found) == every
    for name, (operator, given) in found.items():
        checked = torch.library.opcheck(operator, given)
        assert set(checked.values()) == {"SUCCESS"}, name
