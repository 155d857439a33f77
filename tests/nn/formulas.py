"""The two layers as their formulas say, token by token in float64 or complex128.

Slow and plain: one-hot matrices are matrices, and straight-through choices are written
``(hard - soft).detach() + soft``. Nothing here is of the package; what is read of a layer are its
parameters.
"""

import math
from typing import Any

import torch
from torch.nn import functional


def parameters(layer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers in float64, as leaves."""
    found = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    return {name: t.detach().double().requires_grad_() for name, t in found.items()}


def _one_hot(logits: torch.Tensor, dim: int) -> torch.Tensor:
    """Ones at the first of the largest along an axis."""
    size = logits.shape[dim]
    return functional.one_hot(logits.argmax(dim), size).movedim(-1, dim).to(logits.dtype)


def _active(logits: torch.Tensor, dim: int, tau: torch.Tensor) -> torch.Tensor:
    """One-hot, the one with the gradient of its softmax; the zeros have none."""
    hard, soft = _one_hot(logits, dim), torch.softmax(logits / tau, dim)
    return hard * (1 - soft.detach() + soft)


def _dense(logits: torch.Tensor, dim: int, tau: torch.Tensor) -> torch.Tensor:
    """One-hot, ones and zeros with the gradient of their softmax."""
    hard, soft = _one_hot(logits, dim), torch.softmax(logits / tau, dim)
    return (hard - soft).detach() + soft


def causal_convolution(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """``y_t = bias + Σ_j weight[:, j] x_{t - W + 1 + j}``, zeros before the first token."""
    width = weight.shape[1]
    rows = []
    for t in range(x.shape[1]):
        total = bias.expand(x.shape[0], -1)
        for j in range(width):
            if t - width + 1 + j >= 0:
                total = total + weight[:, j] * x[:, t - width + 1 + j]
        rows.append(total)
    return torch.stack(rows, 1) if rows else x


def flash(p: dict[str, torch.Tensor], x: torch.Tensor, surrogate: str = "active") -> torch.Tensor:
    """``FlashPDSSM`` of tokens ``[B, T, d_model]`` with parameters ``p``."""
    H, K, N, _ = p["dictionary_logits"].shape
    d = H * N
    v, gate = (x @ p["in_proj.weight"].T).split(d, -1)
    u = causal_convolution(v, p["conv.weight"], p["conv.bias"])
    u = u * torch.sigmoid(u)
    b, c, delta, phase, selector = (u @ p["token_proj.weight"].T).split(
        [2 * d, 2 * d, d, d, H * K], -1
    )
    rows = (*x.shape[:2], H)
    b, c = (torch.view_as_complex(each.reshape(*rows, N, 2).contiguous()) for each in (b, c))
    step = functional.softplus(delta.reshape(*rows, N) + p["diagonal.delta_bias"])
    magnitude = torch.exp(-step * torch.exp(p["diagonal.a_log"]))
    D = torch.polar(magnitude, phase.reshape(*rows, N))
    tau = p["temperature"].detach()
    choice = {"active": _active, "dense": _dense}[surrogate]
    maps = choice(p["dictionary_logits"], -2, tau)  # [H, K, N, N]
    chosen = choice(selector.reshape(*rows, K), -1, tau)  # [B, T, H, K]
    P = torch.einsum("bthk,hkij->bthij", chosen, maps).to(D.dtype)
    state = torch.zeros(x.shape[0], H, N, dtype=D.dtype)
    ys = []
    for t in range(x.shape[1]):
        state = (P[:, t] @ (D[:, t] * state).unsqueeze(-1)).squeeze(-1) + b[:, t]
        ys.append((c[:, t] * state).real)
    y = torch.stack(ys, 1) + p["skip"] * u.reshape(*rows, N)
    g = gate.reshape(*rows, N)
    return (y * g * torch.sigmoid(g)).reshape(*x.shape[:2], d) @ p["out_proj.weight"].T


def _mlp(p: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    hidden = x @ p[f"{name}.0.weight"].T + p[f"{name}.0.bias"]
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return hidden @ p[f"{name}.2.weight"].T + p[f"{name}.2.bias"]


def pdssm(p: dict[str, torch.Tensor], u: torch.Tensor, orientation: str) -> torch.Tensor:
    """``PDSSM`` of tokens ``[B, T, d_model]`` with parameters ``p``."""
    N = p["dictionary_logits"].shape[-1]
    D = torch.polar(
        torch.sigmoid(_mlp(p, "diagonal.magnitude", u)),
        2 * math.pi * torch.sigmoid(_mlp(p, "diagonal.phase", u)),
    )
    s = torch.softmax(u @ p["selector.weight"].T, -1)
    M = torch.einsum("btk,kij->btij", s, p["dictionary_logits"])
    dim = -2 if orientation == "column" else -1
    soft = torch.softmax(M / p["temperature"].detach(), dim)
    P = ((_one_hot(M, dim) - soft).detach() + soft).to(D.dtype)
    B = torch.view_as_complex(p["drive_proj.weight"].reshape(N, 2, -1).mT.contiguous())  # [N, E]
    b = u.to(D.dtype) @ B.T
    state = torch.zeros(u.shape[0], N, dtype=D.dtype)
    state[:, 0] = 1
    states = []
    for t in range(u.shape[1]):
        if orientation == "column":
            state = (P[:, t] @ (D[:, t] * state).unsqueeze(-1)).squeeze(-1) + b[:, t]
        else:
            state = D[:, t] * (P[:, t] @ state.unsqueeze(-1)).squeeze(-1) + b[:, t]
        states.append(state)
    x = torch.stack(states, 1)
    parts = torch.cat([x.real, x.imag], -1)
    if "readout.weight" in p:
        y = parts @ p["readout.weight"].T + p["readout.bias"]
    else:
        y = _mlp(p, "readout", parts)
    y = y + p["skip"] * u
    y = y - y.mean(-1, keepdim=True)
    y = y / torch.sqrt(y.square().mean(-1, keepdim=True) + 1e-5)
    return y * p["norm.weight"] + p["norm.bias"]


def gradients(
    outputs: torch.Tensor, arriving: torch.Tensor, leaves: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """Gradients by name; zeros where there is none."""
    wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    found = torch.autograd.grad(
        outputs, list(wanted.values()), arriving, allow_unused=True, materialize_grads=True
    )
    return dict(zip(wanted, found, strict=True))
