"""States at the ends of packed sequences: two torch operators around a scan.

A packed scan begins anew, from zero, where a sequence does; see
:mod:`pdssm_compiler.runtime.packing`. What sequences start from reaches it by the drive of their
first tokens, and what they end in is among its states:

- ``begun(Tensor drive, Tensor moved, Tensor places) -> Tensor`` gives the drive ``[1, T, H, N]``,
  complex, with ``moved`` ``[S, H, N]`` added at ``places`` ``[S]``,
- ``at_places(Tensor by_token, Tensor places) -> Tensor`` gives ``[S, …]`` of ``[1, T, …]``.

Both move numbers alone, and torch's own operations would do; but each makes a tensor as large as
the states, and on a CPU mapping new memory for it takes longer than the scan. Here it is made in
memory that was used before (:mod:`pdssm_compiler.runtime.output_pool`), in one pass.
"""

from typing import Any

import torch

from pdssm_compiler.runtime.operators import on_every_device, refuse_vmap
from pdssm_compiler.runtime.output_pool import new_output

_library = torch.library.Library("pdssm_compiler", "FRAGMENT")
for _definition in (
    "begun(Tensor drive, Tensor moved, Tensor places) -> Tensor",
    "at_places(Tensor by_token, Tensor places) -> Tensor",
    "at_places_backward(Tensor grad, Tensor places, SymInt length) -> Tensor",
):
    _library.define(_definition, tags=(torch.Tag.pt2_compliant_tag,))

begun = torch.ops.pdssm_compiler.begun.default
at_places = torch.ops.pdssm_compiler.at_places.default
_at_places_backward = torch.ops.pdssm_compiler.at_places_backward.default


def _begun(drive: torch.Tensor, moved: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """See the module's text.

    Args:
        drive: complex ``[1, T, H, N]``, or pairs ``[1, T, H, N, 2]`` in low precision.
        moved: complex ``[S, H, N]``.
        places: int64 ``[S]``, in ``[0, T)``.
    """
    found = new_output(tuple(drive.shape[:4]), dtype=moved.dtype, device=drive.device)
    (found if drive.is_complex() else torch.view_as_real(found)).copy_(drive)
    return found.index_add_(1, places, moved.unsqueeze(0))


def _fake_begun(drive: torch.Tensor, moved: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return moved.new_empty(drive.shape[:4])


def _at_places(by_token: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """See the module's text.

    Args:
        by_token: ``[1, T, …]``, of any dtype.
        places: as in ``begun``.
    """
    return by_token[0].index_select(0, places)


def _fake_at_places(by_token: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return by_token.new_empty((places.shape[0], *by_token.shape[2:]))


def _backward(grad: torch.Tensor, places: torch.Tensor, length: int) -> torch.Tensor:
    """The gradient of all tokens: zero, but at places."""
    shape = (1, length, *grad.shape[1:])
    found = new_output(shape, dtype=grad.dtype, device=grad.device).zero_()
    return found.index_add_(1, places, grad.unsqueeze(0))


def _fake_backward(grad: torch.Tensor, places: torch.Tensor, length: int) -> torch.Tensor:
    return grad.new_empty((1, length, *grad.shape[1:]))


def _keep_places(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    first, places = inputs[0], inputs[-1]
    ctx.save_for_backward(places)
    ctx.dtype, ctx.length = first.dtype, first.shape[1]


def _of_begun(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
    (places,) = ctx.saved_tensors
    of_moved = grad[0].index_select(0, places)
    if ctx.dtype.is_complex:
        return grad, of_moved, None
    return torch.view_as_real(grad).to(ctx.dtype), of_moved, None


def _of_tokens(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
    return _at_places_backward(grad, *ctx.saved_tensors, ctx.length), None


def _keep(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _of_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
    return at_places(grad, *ctx.saved_tensors), None, None


for _name, _kernel, _fake in (
    ("begun", _begun, _fake_begun),
    ("at_places", _at_places, _fake_at_places),
    ("at_places_backward", _backward, _fake_backward),
):
    on_every_device(_library, _name, _kernel)
    refuse_vmap(_library, _name)
    torch.library.register_fake(f"pdssm_compiler::{_name}", _fake)
for _name, _gradient, _setup in (
    ("begun", _of_begun, _keep_places),
    ("at_places", _of_tokens, _keep_places),
    ("at_places_backward", _of_backward, _keep),
):
    torch.library.register_autograd(f"pdssm_compiler::{_name}", _gradient, setup_context=_setup)

__all__ = ["at_places", "begun"]
