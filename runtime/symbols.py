"""What tokens have of their symbols: the torch operator ``pdssm_compiler::of_symbols``.

``of_symbols(Tensor table, Tensor symbols) -> Tensor`` gives ``[B, T, …]``, of every token row
``symbols[b, t]`` of the table ``[V, …]``, as ``torch.nn.functional.embedding`` does. Its backward,
``sum_by_symbol(Tensor grad, Tensor symbols, SymInt count) -> Tensor``, adds up the tokens of each
symbol: few symbols with many tokens each, which torch would add one after the other, or in any
order. Here it is a product with the symbols' one-hot form, in float64: the same bit by bit every
time. Where there are many symbols, that would be large, and torch does it.

A symbol out of range is the nearest that there is. It is for others to report: the scan, whose
selection it is.
"""

from typing import Any

import torch

from pdssm_compiler.runtime.operators import on_every_device, refuse_vmap
from pdssm_compiler.runtime.sums import add_at, widest

_library = torch.library.Library("pdssm_compiler", "FRAGMENT")
for _definition in (
    "of_symbols(Tensor table, Tensor symbols) -> Tensor",
    "sum_by_symbol(Tensor grad, Tensor symbols, SymInt count) -> Tensor",
):
    _library.define(_definition, tags=(torch.Tag.pt2_compliant_tag,))

of_symbols = torch.ops.pdssm_compiler.of_symbols.default
_sum_by_symbol = torch.ops.pdssm_compiler.sum_by_symbol.default

# Symbols whose one-hot form is smaller than what tokens have of them.
_FEW = 128


def _places(symbols: torch.Tensor, count: int) -> torch.Tensor:
    return symbols.flatten().long().clamp(0, count - 1)


def _of_symbols(table: torch.Tensor, symbols: torch.Tensor) -> torch.Tensor:
    """See the module's text.

    Args:
        table: ``[V, …]``, of any dtype, ``V`` at least 1.
        symbols: integer ``[B, T]``.
    """
    found = table.index_select(0, _places(symbols, table.shape[0]))
    return found.view(*symbols.shape, *table.shape[1:])


def _fake_of_symbols(table: torch.Tensor, symbols: torch.Tensor) -> torch.Tensor:
    return table.new_empty((*symbols.shape, *table.shape[1:]))


def _sum(grad: torch.Tensor, symbols: torch.Tensor, count: int) -> torch.Tensor:
    """See the module's text.

    Args:
        grad: real or complex ``[B, T, …]``.
        symbols: as in ``of_symbols``.
        count: ``V``.
    """
    places = _places(symbols, count)
    numbers = torch.view_as_real(grad.resolve_conj()) if grad.is_complex() else grad
    rows = numbers.reshape(len(places), numbers.shape[2:].numel())
    wide = widest(rows.dtype, grad.device)
    if count <= _FEW:
        every = torch.arange(count, device=places.device).unsqueeze(1)
        with torch.autocast(grad.device.type, enabled=False):
            one_hot = rows.new_empty((count, len(places)), dtype=wide)
            found = torch.eq(places, every, out=one_hot) @ rows.to(wide)
    else:
        found = rows.new_zeros((count, rows.shape[1]), dtype=wide)
        add_at(found, places, rows.to(wide))
    found = found.to(rows.dtype).view(count, *numbers.shape[2:])
    return torch.view_as_complex(found) if grad.is_complex() else found


def _fake_sum(grad: torch.Tensor, symbols: torch.Tensor, count: int) -> torch.Tensor:
    return grad.new_empty((count, *grad.shape[2:]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    table, symbols = inputs
    ctx.save_for_backward(symbols)
    ctx.count = table.shape[0]


def _of_table(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
    return _sum_by_symbol(grad, *ctx.saved_tensors, ctx.count), None


def _keep_symbols(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _of_sums(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
    return of_symbols(grad, *ctx.saved_tensors), None, None


for _name, _kernel, _fake, _gradient, _setup in (
    ("of_symbols", _of_symbols, _fake_of_symbols, _of_table, _keep),
    ("sum_by_symbol", _sum, _fake_sum, _of_sums, _keep_symbols),
):
    on_every_device(_library, _name, _kernel)
    refuse_vmap(_library, _name)
    torch.library.register_fake(f"pdssm_compiler::{_name}", _fake)
    torch.library.register_autograd(f"pdssm_compiler::{_name}", _gradient, setup_context=_setup)

__all__ = ["of_symbols"]
