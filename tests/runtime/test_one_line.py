"""No operator of a compiled call is handed a text of several lines: Inductor would end a comment
of its source there.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from torch._dynamo.backends.common import aot_autograd

import pdssm_compiler
from pdssm_compiler.nn import PDSSM, FlashPDSSM
from pdssm_compiler.runtime.one_line import lines_of, one_line
from tests.public.scans import Case, Draw, inputs
from tests.strategies import programs


@given(program=programs())
def test_there_and_back(program: pdssm_compiler.ir.Program) -> None:
    assert "\n" not in one_line(program.text)
    assert lines_of(one_line(program.text)) == program.text
    assert lines_of(program.text) == program.text


def _flash(surrogate: str) -> Callable[[], torch.Tensor]:
    maps = torch.randn(2, 3, 4, 4, requires_grad=True)
    selector = torch.randn(1, 5, 2, 3, requires_grad=True)
    numbers = torch.randn(2, 1, 5, 2, 4, dtype=torch.complex64)
    return lambda: pdssm_compiler.flash_pd_scan(maps, selector, *numbers, surrogate=surrogate)[0]


def _calls() -> Iterator[tuple[str, Callable[[], torch.Tensor]]]:
    """Calls of every operator that takes a program."""
    torch.manual_seed(0)
    given = inputs(Case(4, "dictionary"), Draw(1, 5, 2, "random", "disk", 0))
    given["drive"].requires_grad_()
    yield "scan", lambda: pdssm_compiler.pd_scan(**given)[0]
    yield "active", _flash("active")
    yield "dense", _flash("dense")
    x = torch.randn(2, 6, 16, requires_grad=True)
    for name, layer in (
        ("fused", FlashPDSSM(16, fused=True)),
        ("in parts", FlashPDSSM(16, fused=False)),
        ("mixture", PDSSM(16, dictionary_size=3)),
    ):
        yield name, lambda layer=layer: layer(x)  # type: ignore[misc]
    low = FlashPDSSM(16, fused=True).bfloat16()
    cache = low.init_cache(2)

    def step() -> torch.Tensor:
        with torch.no_grad():
            out: torch.Tensor = low.step(torch.ones(2, 16, dtype=torch.bfloat16), cache)[0]
            return out

    yield "step", step


CALLS = dict(_calls())


@pytest.mark.parametrize("name", CALLS)
def test_what_operators_are_handed(name: str) -> None:
    told: list[str] = []

    def look(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        told.extend(node.format_node() or "" for node in graph.graph.nodes)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(CALLS[name], backend=aot_autograd(fw_compiler=look), fullgraph=True)
    found = compiled()
    if found.requires_grad:
        found.abs().sum().backward()
    assert any("scan N=" in line for line in told)
    assert [line for line in told if "\n" in line] == []
