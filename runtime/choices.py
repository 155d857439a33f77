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

from typing import Any, NamedTuple

import torch
from torch._C import _has_storage, _len_torch_dispatch_stack

from pdssm_compiler.runtime.errors import ArgumentError, NanLogitError
from pdssm_compiler.runtime.hand_written import triton_runs
from pdssm_compiler.runtime.operators import refuse_vmap

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


def check_temperature(temperature: torch.Tensor, dtype: torch.dtype) -> None:
    """Refuse a temperature that no softmax has, where looking at it waits for no device.

    A backward asks for it: a choice by itself does not depend on it.

    Args:
        temperature: one number, of any dtype.
        dtype: what the softmax is computed in.

    Raises:
        ArgumentError: a number on the CPU that is not positive, or 0 or infinite in that dtype.
    """
    # What is traced, by torch.compile or with shapes alone, has no value to look at.
    if type(temperature) is not torch.Tensor or not temperature.is_cpu:
        return
    if not temperature > 0:
        raise ArgumentError(
            f"temperature must be a positive number, got {temperature.item()}: the surrogate's "
            f"softmax divides by it; of a layer, temperature.fill_(0.5)"
        )
    range_ = torch.finfo(dtype)
    if not range_.tiny <= temperature.item() <= range_.max:
        raise ArgumentError(
            f"temperature is 0 or infinite in {dtype}, in which the softmax is computed, got "
            f"{temperature.item()}; pass one between {range_.tiny:.3g} and {range_.max:.3g}"
        )


def copy_for_backward(temperature: torch.Tensor) -> torch.Tensor:
    """A copy for the backward, which divides by what the forward was given.

    A layer's buffer may be written in between: by annealing, and by ``DistributedDataParallel``,
    which sends all buffers around at each forward.
    """
    return temperature.clone()


def _entries(logits: torch.Tensor, index: torch.Tensor, dense: bool) -> torch.Tensor:
    one = logits.new_ones((), dtype=_computed_in(logits))
    return one.expand(logits.shape if dense else index.shape)


def _choose(
    logits: torch.Tensor, dim: int, temperature: torch.Tensor, name: str, dense: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    _check_device(logits, temperature)
    index = _chosen(logits, dim)
    return _entries(logits, index, dense), index


def _chosen(logits: torch.Tensor, dim: int) -> torch.Tensor:
    along = logits.movedim(dim, -1)
    return _chosen_by_kernel(along) if _has_kernel(along) else _places(logits, dim)


def _places(logits: torch.Tensor, dim: int) -> torch.Tensor:
    # Of equal ones torch gives the first, and NaN counts as the largest.
    largest, place = logits.max(dim)
    # Out of range, so a kernel that reads it clamps it and reports it.
    return torch.where(largest.isnan(), -1, place).to(torch.int32)


def chosen_along_last(logits: torch.Tensor, name: str) -> torch.Tensor:
    """The place of the largest along the last axis, int32: what ``hard_choice`` gives, without
    entries.

    Args:
        logits: real ``[B, T, H, K]``, or of another rank.
        name: for the message.

    Raises:
        NanLogitError: a NaN among logits on a CPU; elsewhere its place is -1.
    """
    index = _chosen(logits, -1)
    if logits.is_cpu:
        _refuse_nan(index, -1, logits.dim(), name)
    return index


def _choose_on_cpu(
    logits: torch.Tensor, dim: int, temperature: torch.Tensor, name: str, dense: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    entries, index = _choose(logits, dim, temperature, name, dense)
    _refuse_nan(index, dim, logits.dim(), name)
    return entries, index


def _refuse_nan(index: torch.Tensor, dim: int, rank: int, name: str) -> None:
    wrong = (index < 0).nonzero()
    if len(wrong):
        at = [str(place) for place in wrong[0].tolist()]
        at.insert(dim % rank, ":")
        raise NanLogitError(
            f"{name}[{', '.join(at)}] has a NaN, so nothing can be chosen; look for what made it"
        )


# Logits that a kernel takes, and how many numbers a program of it holds.
_NARROW = (torch.bfloat16, torch.float16, torch.float32)
_MOST_MAPS, _AT_ONCE = 1024, 2048
# Programs that every GPU has room for.
_PROGRAMS = 512


def _has_kernel(logits: torch.Tensor) -> bool:
    return (
        triton_runs(logits.device)
        and logits.dim() == 4
        and logits.dtype in _NARROW
        and logits.shape[3] <= _MOST_MAPS
        and logits.numel() > 0
    )


class _Launch(NamedTuple):
    """How a kernel is launched over the rows of logits."""

    programs: int
    sizes: tuple[int, int, int]
    maps: int
    tiles: tuple[int, int]
    warps: int


def _launch_over(logits: torch.Tensor) -> _Launch:
    batch, length, heads, maps = logits.shape
    wide = 1 << (maps - 1).bit_length()
    count = batch * length * heads
    # Of few rows, as those of one token, a program takes few: there are processors for all.
    few = 1 << max(0, (count // _PROGRAMS).bit_length() - 1)
    rows = max(1, min(few, _AT_ONCE // wide))
    warps = 4 if rows * wide >= _AT_ONCE // 2 else 1
    return _Launch(-(-count // rows), (count, length, heads), maps, (rows, wide), warps)


def _chosen_by_kernel(logits: torch.Tensor) -> torch.Tensor:
    from pdssm_compiler.runtime import choice_kernels

    how = _launch_over(logits)
    index = torch.empty(logits.shape[:3], dtype=torch.int32, device=logits.device)
    with torch.cuda.device(logits.device):
        choice_kernels.choose[(how.programs,)](
            logits,
            index,
            *how.sizes,
            *logits.stride(),
            how.maps,
            *how.tiles,
            num_warps=how.warps,
            enable_fp_fusion=True,
        )
    return index


def surrogate_gradient(
    logits: torch.Tensor,
    grad: torch.Tensor,
    index: torch.Tensor,
    temperature: torch.Tensor,
    dense: bool,
    into: torch.Tensor,
) -> None:
    """Write the gradient of logits chosen from along the last axis.

    Args:
        logits: real ``[B, T, H, K]``, or of another rank.
        grad: what arrives at the entries: float32 or float64 ``[B, T, H]``, dense likewise with
            the logits' shape.
        index: the places, int32 ``[B, T, H]``.
        temperature: one number.
        dense: of which surrogate.
        into: where, like the logits.
    """
    check_temperature(temperature, _computed_in(logits))
    by_kernel = not temperature.is_cpu and _has_kernel(logits)
    if not (by_kernel and logits.stride(3) == into.stride(3) == 1):
        into.copy_(softmax_gradient(logits, grad, index, temperature, -1, dense))
        return
    from pdssm_compiler.runtime import choice_kernels

    how = _launch_over(logits)
    with torch.cuda.device(logits.device):
        choice_kernels.surrogate[(how.programs,)](
            grad.contiguous(),
            logits,
            index,
            temperature,
            into,
            *how.sizes,
            *logits.stride()[:3],
            *into.stride()[:3],
            how.maps,
            *how.tiles,
            dense,
            num_warps=how.warps,
            enable_fp_fusion=True,
        )


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
    ctx.save_for_backward(logits, output[1], copy_for_backward(temperature))


def _backward(
    ctx: Any, grad: torch.Tensor | None, _: torch.Tensor | None
) -> tuple[torch.Tensor | None, None, None, None, None]:
    if grad is None:
        return None, None, None, None, None
    logits, index, temperature = ctx.saved_tensors
    check_temperature(temperature, _computed_in(logits))
    along_last = ctx.dim % logits.dim() == logits.dim() - 1
    if along_last and _has_kernel(logits) and _is_run(logits, grad):
        found = torch.empty_like(logits)
        surrogate_gradient(logits, grad, index, temperature, ctx.dense, found)
    else:
        found = softmax_gradient(logits, grad, index, temperature, ctx.dim, ctx.dense)
    return found, None, None, None, None


def _is_run(*tensors: torch.Tensor) -> bool:
    """Whether what is computed of tensors is neither traced, in which case a compiler fuses it,
    nor mapped by ``vmap``, nor differentiated again: then it may be a kernel that torch does not
    know.
    """
    if torch.is_grad_enabled() or _len_torch_dispatch_stack():
        return False
    plain = (torch.Tensor, torch.nn.Parameter)
    # What vmap maps is of torch's own type, and has no memory of its own.
    return all(type(tensor) in plain and _has_storage(tensor) for tensor in tensors)


def softmax_gradient(
    logits: torch.Tensor,
    grad: torch.Tensor,
    index: torch.Tensor,
    temperature: torch.Tensor,
    dim: int,
    dense: bool,
) -> torch.Tensor:
    """The gradient of logits, in their dtype, by either surrogate; ``grad`` arrives at the
    entries of what was chosen along ``dim``.
    """
    soft = torch.softmax(logits.to(_computed_in(logits)) / temperature, dim)
    if dense:
        # ρ_i (grad_i - Σ ρ grad) / τ
        found = soft * (grad - (soft * grad).sum(dim, keepdim=True)) / temperature
        return found.to(logits.dtype)
    # grad · ρ_i* (δ_{i,i*} - ρ_i) / τ; a gather would have a compiler write the softmax.
    chosen = grad.unsqueeze(dim) * soft.amax(dim, keepdim=True) / temperature
    shape = [1] * logits.dim()
    shape[dim] = -1
    places = torch.arange(logits.shape[dim], device=logits.device).view(shape)
    found = chosen * ((places == index.unsqueeze(dim)).to(soft.dtype) - soft)
    return found.to(logits.dtype)


_library.impl("hard_choice", _choose_on_cpu, "CPU")
for _key in ("CUDA", "MPS", "XPU"):
    _library.impl("hard_choice", _choose, _key)
refuse_vmap(_library, "hard_choice")
torch.library.register_fake("pdssm_compiler::hard_choice", _fake)
torch.library.register_autograd(
    "pdssm_compiler::hard_choice", _backward, setup_context=_setup_context
)

__all__ = [
    "check_temperature",
    "chosen_along_last",
    "copy_for_backward",
    "hard_choice",
    "softmax_gradient",
    "surrogate_gradient",
]
