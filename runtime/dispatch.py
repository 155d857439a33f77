"""The way from a public function to a kernel.

In plain eager calls that need no gradient, the plan is called directly; everything else (autograd,
``torch.compile``, fake and functional tensors, dispatch modes, subclasses) goes through the torch
operator, which those know. Both ways run the same plan.
"""

from collections.abc import Sequence

import torch
from torch._C import _get_tracing_state, _len_torch_dispatch_stack
from torch._C._functorch import TransformType, peek_interpreter_stack
from torch.autograd import forward_ad

from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.runtime.one_line import one_line
from pdssm_compiler.runtime.ops import hard_choices, scan
from pdssm_compiler.runtime.plan import check_layouts, run
from pdssm_compiler.runtime.segments import scan_in_segments

_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
_PLAIN_TORCH = (
    "pdssm_compiler.reference, whose pd_scan, flash_pd_scan and mixture_pd_scan are plain torch"
)


def call(
    text: str,
    tensors: Sequence[torch.Tensor],
    config: str = "",
    entries: Sequence[torch.Tensor] = (),
) -> list[torch.Tensor]:
    """Run a program; differentiable.

    Args:
        text: the program's text form.
        tensors: its inputs, in order.
        config: an explicit schedule, or "".
        entries: where gradients of the inputs that are maps or indices arrive; see
            :mod:`pdssm_compiler.runtime.ops`.
    """
    if not torch.compiler.is_compiling():
        _refuse_jit()
        if is_plain((*tensors, *entries) if entries else tensors):
            return run(text, tensors, config, chosen=hard_choices(text, entries))
        refuse_unsupported(text, tensors)
    return scan(one_line(text), list(tensors), list(entries) or None, config, False)


def call_in_segments(
    text: str,
    tensors: Sequence[torch.Tensor],
    config: str,
    length: int | None,
    entries: Sequence[torch.Tensor] = (),
) -> list[torch.Tensor]:
    """:func:`call`, keeping no token output for the backward: where gradients are wanted, the
    program runs in segments of ``length`` tokens, and their boundaries stand behind its outputs.
    """
    given = (*tensors, *entries)
    if not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)):
        return call(text, tensors, config, entries)
    if not torch.compiler.is_compiling():
        refuse_unsupported(text, tensors)
    choices = list(entries) or None
    return scan_in_segments(one_line(text), list(tensors), choices, config, length)


def refuse_unsupported(text: str, tensors: Sequence[torch.Tensor]) -> None:
    """Refuse what torch would not refuse before an operator, or in words of its own.

    Args:
        text: the program's text form.
        tensors: its inputs, in order, and others behind them.

    Raises:
        ArgumentError: layouts without strides, tangents, ``torch.jit``, ``torch.func``.
    """
    _refuse_jit()
    check_layouts(text, tensors)
    refuse_transforms(tensors)


def is_plain(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether a call with these tensors needs nothing of torch's, so that its plan can be called
    directly.
    """
    if forward_ad._current_level >= 0:
        return False
    grad = torch.is_grad_enabled()
    # Meta tensors have the operator's fake kernel, but no plan.
    if tensors and tensors[0].is_meta:
        return False
    for tensor in tensors:
        if type(tensor) not in _PLAIN or (grad and tensor.requires_grad):
            return False
    return _len_torch_dispatch_stack() == 0 and peek_interpreter_stack() is None


def _refuse_tangents(tensors: Sequence[torch.Tensor]) -> None:
    """Forward-mode differentiation would lose the tangents and say nothing.

    Raises:
        ArgumentError: a tensor carries one.
    """
    if forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise ArgumentError(
            "a scan has no forward-mode derivative (jvp, jacfwd): use reverse mode "
            f"(torch.autograd.grad, .backward()), or {_PLAIN_TORCH}"
        )


def _refuse_jit() -> None:
    """``torch.jit.trace`` would have its sizes for ours.

    Raises:
        ArgumentError: the call is inside it.
    """
    if _get_tracing_state() is not None:
        raise ArgumentError(
            "a scan cannot be traced by torch.jit, whose sizes are tensors: use torch.compile or "
            "torch.export, or pdssm_compiler.reference.pd_scan"
        )


def refuse_transforms(tensors: Sequence[torch.Tensor]) -> None:
    """Operators with a gradient of their own are not differentiated by ``torch.func``.

    Args:
        tensors: what such an operator is about to read.

    Raises:
        ArgumentError: the call is inside ``grad``, ``vjp`` or ``jacrev``, or a tensor carries a
            tangent, which the operator would lose.
    """
    _refuse_tangents(tensors)
    inside = peek_interpreter_stack()
    if inside is not None and inside.key() == TransformType.Grad:
        raise ArgumentError(
            "a scan cannot be differentiated by torch.func (grad, vjp, jacrev): use "
            f"torch.autograd.grad or .backward(), or {_PLAIN_TORCH}"
        )
