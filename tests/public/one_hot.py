"""Flash PD-SSM by its definition: every ``P_t`` a matrix whose entries have gradients."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from tests.public.accuracy import magnitudes, wide
from tests.public.scans import Tensors

LOGITS = ("dictionary_logits", "selector_logits")


class Definition(NamedTuple):
    """States, final state, and the gradients by name."""

    states: Tensor
    final: Tensor
    gradients: Tensors


def defined(
    tensors: Tensors,
    orientation: str,
    temperature: float,
    cotangents: tuple[Tensor, Tensor],
    magnitude: bool = False,
    surrogate: str = "active",
) -> Definition:
    """In double precision, of the inputs or, to know their scale, of their absolute values.

    ``∂P_t[i, j] = Re(conj(g_t[i]) D_t[j] x_{t-1}[j])`` is autograd's; of it the active surrogate
    keeps the entries that are one, and the dense one all. What they give the logits is the
    definition's formula.
    """
    change = magnitudes if magnitude else wide
    dictionary, selector = (wide(tensors[name]) for name in LOGITS)
    diagonal, drive, state = (
        change(tensors[name]).clone().requires_grad_()
        for name in ("diagonal", "drive", "initial_state")
    )
    n, heads = diagonal.shape[-1], torch.arange(diagonal.shape[2])
    along = 2 if orientation == "column" else 3
    places, kinds = dictionary.argmax(along), selector.argmax(-1)
    used = places[heads, kinds]  # [B, T, H, N]
    # Column j has its one in row used[j]; in row orientation, row i in column used[i].
    p = one_hot(used, n).to(torch.float64)
    p = (p.mT if orientation == "column" else p).contiguous().requires_grad_()
    states, x = [], state
    for t in range(diagonal.shape[1]):
        d, matrix = diagonal[:, t], p[:, t].to(torch.complex128)
        if orientation == "column":
            x = (matrix @ (d * x).unsqueeze(-1)).squeeze(-1) + drive[:, t]
        else:
            x = d * (matrix @ x.unsqueeze(-1)).squeeze(-1) + drive[:, t]
        states.append(x)
    out = torch.stack(states, 1) if states else torch.zeros_like(drive)
    names = ("diagonal", "drive", "initial_state")
    *found, of_p = torch.autograd.grad(
        [out, x] if states else [x],
        [diagonal, drive, state, p],
        [change(g) for g in (cotangents if states else cotangents[1:])],
        allow_unused=True,
        materialize_grads=True,
    )
    gradients = dict(zip(names, (grad.resolve_conj() for grad in found), strict=True))
    here = one_hot(kinds, dictionary.shape[1]).double()  # [B, T, H, K]
    if surrogate == "dense":
        tables = one_hot(places, n).double()
        tables = tables.mT if orientation == "column" else tables  # [H, K, N, N]
        scores = torch.einsum("bthij,hkij->bthk", of_p, tables)
        sums = torch.einsum("bthk,bthij->hkij", here, of_p)
        for name, logits, arriving, dim in zip(
            LOGITS, (dictionary, selector), (sums, scores), (along, -1), strict=True
        ):
            soft = torch.softmax(logits / temperature, dim)
            mean = (soft * arriving).sum(dim, keepdim=True)
            of_soft = arriving + mean if magnitude else arriving - mean
            gradients[name] = soft * of_soft / temperature
        return Definition(out.detach(), x.detach(), gradients)
    place = used.unsqueeze(-2 if orientation == "column" else -1)
    a = of_p.gather(3 if orientation == "column" else 4, place).view(used.shape)
    sums = torch.einsum("bthk,bthn->hkn", here, a)
    gradients["selector_logits"] = _through_softmax(
        a.sum(-1), selector, kinds, -1, temperature, magnitude
    )
    gradients["dictionary_logits"] = _through_softmax(
        sums, dictionary, places, along, temperature, magnitude
    )
    return Definition(out.detach(), x.detach(), gradients)


def _through_softmax(
    arriving: Tensor, logits: Tensor, place: Tensor, dim: int, temperature: float, magnitude: bool
) -> Tensor:
    """``arriving · ρ_i* (δ_{i, i*} - ρ_i) / τ``, or with a plus."""
    soft = torch.softmax(logits / temperature, dim)
    chosen = soft.gather(dim, place.unsqueeze(dim))
    delta = torch.zeros_like(soft).scatter(dim, place.unsqueeze(dim), 1.0)
    rest = delta + soft if magnitude else delta - soft
    return arriving.unsqueeze(dim) * chosen * rest / temperature
