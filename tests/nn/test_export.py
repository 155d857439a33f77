"""Programs of ``torch.export``: ops, layers and models, of any batch and length, saved and loaded,
as they are and with gradients.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves

from pdssm_compiler import flash_pd_scan, pd_scan
from pdssm_compiler.nn import PDSSM, CausalLM, FlashPDSSM
from pdssm_compiler.nn.cache import LayerCache
from tests.kernels import under_stress
from tests.nn.layers import made, tokens

B, T, S = Dim("B"), Dim("T"), Dim("S", min=3)
BOTH = {0: B, 1: T}
Given = tuple[Any, ...]


def exported(module: nn.Module, given: Given, sizes: Any) -> nn.Module:
    """A module as a file has it."""
    program = torch.export.export(module, given, dynamic_shapes=sizes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


def check(module: nn.Module, given: Given, sizes: Any, other: Given) -> None:
    """What was made for some sizes gives at other ones what the module gives, and its gradients of
    parameters.
    """
    program = exported(module, given, sizes)
    found, want = program(*other), module(*other)
    torch.testing.assert_close(found, want)
    leaves = dict(module.named_parameters())
    if leaves:
        losses = [
            sum(out.abs().sum() for out in tree_leaves(outs) if out.requires_grad)
            for outs in (found, want)
        ]
        mine = dict(program.named_parameters())
        grads = [
            torch.autograd.grad(loss, [each[name] for name in leaves], allow_unused=True)
            for loss, each in zip(losses, (mine, leaves), strict=True)
        ]
        torch.testing.assert_close(*grads)


class Called(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any], module: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.module = function, module

    def forward(self, *given: Any) -> Any:
        return self.function(*given)


def numbers(batch: int, length: int) -> list[torch.Tensor]:
    return [torch.rand(batch, length, 2, 4, dtype=torch.complex128) for _ in range(2)]


def test_pd_scan() -> None:
    def scan(diagonal: Any, drive: Any, dictionary: Any, selection: Any) -> Any:
        maps = {"dictionary": dictionary, "selection": selection}
        return pd_scan(diagonal, drive, **maps, output_final_state=True)

    def given(batch: int, length: int) -> Given:
        selection = torch.randint(3, (batch, length, 2))
        return (*numbers(batch, length), torch.randint(4, (2, 3, 4)), selection)

    check(Called(scan), given(3, 7), ((BOTH, BOTH, None, BOTH),), given(5, 12))


class Flash(nn.Module):
    """The op with a dictionary that learns."""

    def __init__(self, surrogate: str) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.randn(2, 3, 4, 4, dtype=torch.float64))
        self.surrogate = surrogate

    def forward(self, selector: Any, diagonal: Any, drive: Any, cu_seqlens: Any = None) -> Any:
        options = {"surrogate": self.surrogate, "cu_seqlens": cu_seqlens}
        return flash_pd_scan(self.logits, selector, diagonal, drive, **options)[0]


@pytest.mark.parametrize("surrogate", ["active", "dense"])
def test_flash_pd_scan(surrogate: str) -> None:
    def given(batch: int, length: int) -> Given:
        return torch.randn(batch, length, 2, 3, dtype=torch.float64), *numbers(batch, length)

    check(Flash(surrogate), given(3, 7), (BOTH,) * 3, given(5, 12))
    # Packed: two sequences or more.
    sizes = (*({1: T},) * 3, {0: S})
    of_one, of_other = torch.tensor([0, 3, 7]), torch.tensor([0, 3, 3, 12])
    check(Flash(surrogate), (*given(1, 7), of_one), sizes, (*given(1, 12), of_other))


@pytest.mark.parametrize(
    ("kind", "name", "fused"),
    [(FlashPDSSM, "odd", True), (FlashPDSSM, "dense", False), (PDSSM, "linear", None)],
)
def test_layers(kind: type, name: str, fused: bool | None) -> None:
    layer = made(kind, name, 0)
    if fused is not None:
        layer.fused = fused
    check(layer, (tokens(layer, 3, 7),), (BOTH,), (tokens(layer, 2, 40),))


def test_a_step() -> None:
    layer = made(FlashPDSSM, "odd", 0).eval()
    step = Called(layer.step, layer)
    sizes = (({0: B}, LayerCache({0: B}, {0: B}, None)),)
    given = [(tokens(layer, n, 1)[:, 0], layer.init_cache(n)) for n in (3, 5)]
    check(step, given[0], sizes, given[1])


@pytest.mark.parametrize("attention", [*under_stress(None), 2])
def test_a_language_model(attention: int | None) -> None:
    torch.manual_seed(0)
    options = {"attention_every": attention, "attention_heads": 2}
    model = CausalLM(11, 4, layers=2, **options, dtype=torch.float64)
    made_of = [torch.randint(11, sizes) for sizes in ((3, 7), (5, 12))]
    check(model, (made_of[0],), (BOTH,), (made_of[1],))


@pytest.mark.stress
@pytest.mark.parametrize("kind", ["op", "flash", "pdssm"])
def test_aot_inductor(kind: str, tmp_path: Path) -> None:
    """Its runtime has no empty list of tensors: what is not there is None."""

    def scan(*vectors: torch.Tensor) -> torch.Tensor:
        return pd_scan(*vectors)[0]

    def given(batch: int, length: int) -> Given:
        if kind == "op":
            return tuple(torch.rand(2, batch, length, 2, 4, 2).unbind(0))
        return (torch.randn(batch, length, 4),)

    layers = {"flash": FlashPDSSM(4), "pdssm": PDSSM(4, dictionary_size=2)}
    module = layers.get(kind, Called(scan)).eval()
    sizes = {0: Dim("B", max=64), 1: Dim("T", max=4096)}
    if kind == "op":
        sizes = (sizes, sizes)  # type: ignore[assignment]
    with torch.no_grad():
        program = torch.export.export(module, given(3, 7), dynamic_shapes=(sizes,))
        file = str(tmp_path / "model.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=file)
        other = given(5, 12)
        found = torch._inductor.aoti_load_package(file)(*other)
        torch.testing.assert_close(found, module(*other), rtol=1e-4, atol=1e-5)
