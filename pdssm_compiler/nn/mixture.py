"""Maps of a soft mixture: PD-SSM's way from weights and a dictionary to destination maps.

``M_t = Σ_k s_t[k] M_k``, and map ``t`` has its one, in column ``j``, in row
``argmax_i M_t[i, j]`` (or, row one-hot, in row ``i``, in column ``argmax_j M_t[i, j]``). It is
another map at every token. Its gradient is the straight-through softmax's
(``surrogate="dense"``): what autograd gives for ``(hard - soft).detach() + soft``.

Three torch operators, so that a traced graph has one node for each and no loop over tokens:

- ``mixed_maps`` gives the maps,
- ``mixture_ones`` zeros, through which the gradient of the maps' ones goes back to weights and
  dictionary,
- ``mixture_gradient`` computes that gradient.

Each takes the tokens a block at a time: nothing of the size ``T × N × N`` is ever there, and
nothing of it is kept for the backward.

Source: arXiv 2509.22284 (PD-SSM).
"""

from collections.abc import Iterator
from typing import Any

import torch

from pdssm_compiler.runtime.choices import check_temperature
from pdssm_compiler.runtime.errors import ArgumentError, NanLogitError
from pdssm_compiler.runtime.ops import refuse_batched

_library = torch.library.Library("pdssm_compiler", "FRAGMENT")
_DEFINITIONS = (
    "mixed_maps(Tensor weights, Tensor dictionary, int dim) -> Tensor",
    "mixture_ones(Tensor weights, Tensor dictionary, Tensor temperature, Tensor moved, int dim)"
    " -> Tensor",
    "mixture_gradient(Tensor weights, Tensor dictionary, Tensor temperature, Tensor moved,"
    " Tensor arriving, int dim) -> (Tensor, Tensor)",
)
for _definition in _DEFINITIONS:
    _library.define(_definition, tags=(torch.Tag.pt2_compliant_tag,))

mixed_maps = torch.ops.pdssm_compiler.mixed_maps.default
mixture_ones = torch.ops.pdssm_compiler.mixture_ones.default
mixture_gradient = torch.ops.pdssm_compiler.mixture_gradient.default

# Numbers of M_t that are computed together: few enough for a CPU's caches, enough for a GPU.
_BLOCK_ON_CPU = 2**18
_BLOCK = 2**24


def _blocks(tokens: int, dictionary: torch.Tensor) -> Iterator[slice]:
    """The tokens, cut into blocks."""
    size = _BLOCK_ON_CPU if dictionary.device.type == "cpu" else _BLOCK
    count = max(1, size // (dictionary.shape[-1] ** 2))
    for start in range(0, tokens, count):
        yield slice(start, start + count)


def _mixed_maps(weights: torch.Tensor, dictionary: torch.Tensor, dim: int) -> torch.Tensor:
    """The destination maps of mixtures.

    ``M_t`` is added up in float32 over ``k = 0 … K-1`` in that order with fused multiply-adds, by
    definition: in another order near-ties choose another map. (A float64 dictionary in float64.)
    Ties go to the lowest index.

    Args:
        weights: ``s``, float32 or float64 ``[B, T, K]``.
        dictionary: ``M``, likewise, ``[K, N, N]``.
        dim: -2 if columns are one-hot, -1 if rows are.

    Returns:
        int32 ``[B, T, N]``. Where there is a NaN the entry is -1, which the scan reports.

    Raises:
        NanLogitError: a NaN; elsewhere than on a CPU the scan reports it, as an index.
    """
    batch, length, entries = weights.shape
    size = dictionary.shape[-1]
    found = weights.new_empty((batch * length, size), dtype=torch.int32)
    flat = weights.reshape(-1, entries)
    # A product of float32 numbers is exact in float64, so this rounds once, as an FMA does.
    wide = dictionary.double()
    for block in _blocks(len(flat), dictionary):
        factors = flat[block, :, None, None].double()
        total = factors[:, 0] * wide[0]
        mixed = total.to(weights.dtype)
        for k in range(1, entries):
            # Rounded, and in float64 again.
            total.copy_(mixed).addcmul_(factors[:, k], wide[k])
            mixed.copy_(total)
        largest, place = mixed.max(dim)
        found[block] = torch.where(largest.isnan(), -1, place)
    if found.device.type == "cpu" and (found < 0).any():
        at = (found < 0).view(batch, length, size).nonzero()[0].tolist()
        raise NanLogitError(
            f"the mixture of maps at token {at[:2]} has a NaN, so nothing can be chosen; look for "
            f"what made it, in x or in the parameters"
        )
    return found.view(batch, length, size)


def _fake_mixed_maps(weights: torch.Tensor, dictionary: torch.Tensor, dim: int) -> torch.Tensor:
    return weights.new_empty((*weights.shape[:2], dictionary.shape[-1]), dtype=torch.int32)


def _mixture_ones(
    weights: torch.Tensor,
    dictionary: torch.Tensor,
    temperature: torch.Tensor,
    moved: torch.Tensor,
    dim: int,
) -> torch.Tensor:
    """Zeros, to be added to what ``P_t v_t`` gives.

    The gradient ``g`` that arrives at them is that of ``P_t v_t``, so the entries of ``P_t`` have
    the gradient ``Re(conj(g[i]) v[j])``, and weights and dictionary have theirs by it. ``v`` has
    none here: the scan gives it.

    Args:
        weights: as in ``mixed_maps``.
        dictionary: likewise.
        temperature: ``τ`` of the softmax of ``M_t / τ``, one number.
        moved: ``v``, pairs ``[B, T, N, 2]``: what ``P_t`` was applied to.
        dim: as in ``mixed_maps``.

    Returns:
        zeros like ``moved``.
    """
    return torch.zeros_like(moved, memory_format=torch.contiguous_format)


def _fake_mixture_ones(
    weights: torch.Tensor,
    dictionary: torch.Tensor,
    temperature: torch.Tensor,
    moved: torch.Tensor,
    dim: int,
) -> torch.Tensor:
    return torch.empty_like(moved, memory_format=torch.contiguous_format)


def _mixture_gradient(
    weights: torch.Tensor,
    dictionary: torch.Tensor,
    temperature: torch.Tensor,
    moved: torch.Tensor,
    arriving: torch.Tensor,
    dim: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of weights and dictionary; see ``mixture_ones``.

    With ``ρ = softmax(M_t / τ)`` and ``∂P_t[i, j] = Re(conj(g[i]) v[j])``:
    ``∂M_t = ρ (∂P_t - Σ ρ ∂P_t) / τ``, ``∂s_t[k] = ⟨∂M_t, M_k⟩``, ``∂M_k = Σ_t s_t[k] ∂M_t``.
    """
    check_temperature(temperature)
    entries, size, _ = dictionary.shape
    flat, tables = weights.reshape(-1, entries), dictionary.reshape(entries, -1)
    v, g = moved.reshape(-1, size, 2), arriving.reshape(-1, size, 2)
    of_weights, of_tables = torch.empty_like(flat), torch.zeros_like(tables)
    # A backward may be called under autocast, which would have the products in low precision.
    with torch.autocast(weights.device.type, enabled=False):
        for block in _blocks(len(flat), dictionary):
            soft = torch.softmax((flat[block] @ tables).view(-1, size, size) / temperature, dim)
            # Re(conj(g) v) is the inner product of pairs.
            of_ones = g[block] @ v[block].mT
            of_ones = (of_ones - (soft * of_ones).sum(dim, keepdim=True)) * soft / temperature
            of_mixed = of_ones.flatten(1)
            of_weights[block] = of_mixed @ tables.mT
            of_tables.addmm_(flat[block].mT, of_mixed)
    return of_weights.view(weights.shape), of_tables.view(dictionary.shape)


def _fake_mixture_gradient(
    weights: torch.Tensor,
    dictionary: torch.Tensor,
    temperature: torch.Tensor,
    moved: torch.Tensor,
    arriving: torch.Tensor,
    dim: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.empty_like(weights, memory_format=torch.contiguous_format),
        torch.empty_like(dictionary, memory_format=torch.contiguous_format),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    weights, dictionary, temperature, moved, ctx.dim = inputs
    ctx.save_for_backward(weights, dictionary, temperature, moved)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    of_weights, of_dictionary = mixture_gradient(*ctx.saved_tensors, grad, ctx.dim)
    return of_weights, of_dictionary, None, None, None


def _refuse_second(ctx: Any, *grads: torch.Tensor) -> None:
    raise ArgumentError(
        "the gradient of a mixture of maps has no gradient of its own: the maps are hard choices; "
        "differentiate once"
    )


for _name, _kernel, _fake in (
    ("mixed_maps", _mixed_maps, _fake_mixed_maps),
    ("mixture_ones", _mixture_ones, _fake_mixture_ones),
    ("mixture_gradient", _mixture_gradient, _fake_mixture_gradient),
):
    _library.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pdssm_compiler::{_name}", _fake)
    for _key in ("FuncTorchBatched", "Batched"):
        _library.impl(_name, refuse_batched, _key)
torch.library.register_autograd(
    "pdssm_compiler::mixture_ones", _backward, setup_context=_setup_context
)
torch.library.register_autograd("pdssm_compiler::mixture_gradient", _refuse_second)

__all__ = ["mixed_maps", "mixture_gradient", "mixture_ones"]
