"""Hard choices from logits: the torch operator ``pdssm_compiler::hard_choice``.

``hard_choice(Tensor logits, int dim, Tensor temperature, str name, bool dense=False) -> (Tensor,
Tensor)`` chooses the largest logit along an axis: it gives *entries* of the choice's one-hot form,
and its place, int32. The gradient that arrives at the entries goes on as if they were those of
``softmax(logits / temperature)``: a straight-through choice. The entries are the chosen ones, of
the memory-optimised surrogate of Flash PD-SSM (arXiv 2605.19150), in the shape of the places, or
``dense``, all of them, in the shape of the logits.

The entries stand for their gradients alone: they are one number in memory, 1, whatever the form
has there. The backward needs the logits and the places: no softmax is kept.
"""

from typing import Any

import torch

from pdssm_compiler.runtime.errors import ArgumentError, NanLogitError
from pdssm_compiler.runtime.ops import refuse_batched

_library = torch.library.Library("pdssm_compiler", "FRAGMENT")
_library.define(
    "hard_choice(Tensor logits, int dim, Tensor temperature, str name, bool dense=False)"
    " -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)

hard_choice = torch.ops.pdssm_compiler.hard_choice.default


def _computed_in(logits: torch.Tensor) -> torch.dtype:
    """float64 for float64, float32 for everything narrower."""
    return torch.float64 if logits.dtype is torch.float64 else torch.float32


def _check_device(logits: torch.Tensor, temperature: torch.Tensor) -> None:
    """A number on the host goes with any device; elsewhere torch runs the kernel of either one.

    Raises:
        ArgumentError: names both devices.
    """
    if temperature.device not in (logits.device, torch.device("cpu")):
        raise ArgumentError(
            f"temperature is on {temperature.device} and the logits on {logits.device}; move it "
            f"there with .to()"
        )


def check_temperature(temperature: torch.Tensor) -> None:
    """Refuse a temperature that no softmax has, where looking at it waits for no device.

    A backward asks for it: a choice by itself does not depend on it.

    Raises:
        ArgumentError: a number on the CPU that is not positive.
    """
    # What is traced, by torch.compile or with shapes alone, has no value to look at.
    if type(temperature) is not torch.Tensor or not temperature.is_cpu:
        return
    if not temperature > 0:
        raise ArgumentError(
            f"temperature must be a positive number, got {temperature.item()}: the surrogate's "
            f"softmax divides by it; of a layer, temperature.fill_(0.5)"
        )


def _entries(logits: torch.Tensor, index: torch.Tensor, dense: bool) -> torch.Tensor:
    one = logits.new_ones((), dtype=_computed_in(logits))
    return one.expand(logits.shape if dense else index.shape)


def _choose(
    logits: torch.Tensor, dim: int, temperature: torch.Tensor, name: str, dense: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    _check_device(logits, temperature)
    # Of equal ones torch gives the first, and NaN counts as the largest.
    largest, place = logits.max(dim)
    # Out of range, so a kernel that reads it clamps it and reports it.
    index = torch.where(largest.isnan(), -1, place).to(torch.int32)
    return _entries(logits, index, dense), index


def _choose_on_cpu(
    logits: torch.Tensor, dim: int, temperature: torch.Tensor, name: str, dense: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    entries, index = _choose(logits, dim, temperature, name, dense)
    wrong = (index < 0).nonzero()
    if len(wrong):
        at = [str(place) for place in wrong[0].tolist()]
        at.insert(dim % logits.dim(), ":")
        raise NanLogitError(
            f"{name}[{', '.join(at)}] has a NaN, so nothing can be chosen; look for what made it"
        )
    return entries, index


def _fake(
    logits: torch.Tensor, dim: int, temperature: torch.Tensor, name: str, dense: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    _check_device(logits, temperature)
    shape = list(logits.shape)
    del shape[dim]
    index = logits.new_empty(shape, dtype=torch.int32)
    return _entries(logits, index, dense), index


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]
) -> None:
    logits, ctx.dim, temperature, _, ctx.dense = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, output[1], temperature)


def _backward(
    ctx: Any, grad: torch.Tensor | None, _: torch.Tensor | None
) -> tuple[torch.Tensor | None, None, None, None, None]:
    if grad is None:
        return None, None, None, None, None
    logits, index, temperature = ctx.saved_tensors
    check_temperature(temperature)
    soft = torch.softmax(logits.to(_computed_in(logits)) / temperature, ctx.dim)
    if ctx.dense:
        # ρ_i (grad_i - Σ ρ grad) / τ
        found = soft * (grad - (soft * grad).sum(ctx.dim, keepdim=True)) / temperature
        return found.to(logits.dtype), None, None, None, None
    place = index.long().clamp(min=0).unsqueeze(ctx.dim)
    # grad · ρ_i* (δ_{i,i*} - ρ_i) / τ
    chosen = grad.unsqueeze(ctx.dim) * soft.gather(ctx.dim, place) / temperature
    shape = [1] * logits.dim()
    shape[ctx.dim] = -1
    places = torch.arange(logits.shape[ctx.dim], device=logits.device).view(shape)
    found = chosen * ((places == place).to(soft.dtype) - soft)
    return found.to(logits.dtype), None, None, None, None


_library.impl("hard_choice", _choose_on_cpu, "CPU")
for _key in ("CUDA", "MPS", "XPU"):
    _library.impl("hard_choice", _choose, _key)
for _key in ("FuncTorchBatched", "Batched"):
    _library.impl("hard_choice", refuse_batched, _key)
torch.library.register_fake("pdssm_compiler::hard_choice", _fake)
torch.library.register_autograd(
    "pdssm_compiler::hard_choice", _backward, setup_context=_setup_context
)

__all__ = ["check_temperature", "hard_choice"]
