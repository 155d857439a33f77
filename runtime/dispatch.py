"""The way from a public function to a kernel.

In plain eager calls that need no gradient, the plan is called directly; everything else (autograd,
``torch.compile``, fake and functional tensors, dispatch modes, subclasses) goes through the torch
operator, which those know. Both ways run the same plan.
"""

from collections.abc import Sequence

import torch
from torch._C import _len_torch_dispatch_stack
from torch._C._functorch import peek_interpreter_stack

from pdssm_compiler.runtime.ops import scan
from pdssm_compiler.runtime.plan import check_layouts, run

_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})


def call(text: str, tensors: Sequence[torch.Tensor], config: str = "") -> list[torch.Tensor]:
    """Run a program; differentiable.

    Args:
        text: the program's text form.
        tensors: its inputs, in order.
        config: an explicit schedule, or "".
    """
    if not torch.compiler.is_compiling():
        if _is_plain(tensors):
            return run(text, tensors, config)
        check_layouts(text, tensors)
    return scan(text, list(tensors), config, False)


def _is_plain(tensors: Sequence[torch.Tensor]) -> bool:
    grad = torch.is_grad_enabled()
    # Meta tensors have the operator's fake kernel, but no plan.
    if tensors and tensors[0].is_meta:
        return False
    for tensor in tensors:
        if type(tensor) not in _PLAIN or (grad and tensor.requires_grad):
            return False
    return _len_torch_dispatch_stack() == 0 and peek_interpreter_stack() is None
