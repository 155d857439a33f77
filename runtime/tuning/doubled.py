"""The reference of many numbers: the program in double precision, on the device itself.

The interpreter takes a quarter of a second for a million numbers, which is more than a race has
time for where sequences are long. What runs here is plain PyTorch, chunks side by side
(``torch-chunks``), whose turns grow as the root of the length: in single precision an H200 took
26 ms for 234 276 tokens. It is not believed for that: at a length of several chunks and a rest it
is held to the interpreter, and at full length to itself with chunks of another length, so that
what is wrong at some chunk's edge, or from some token on, is wrong elsewhere the second time.
"""

import re
from collections.abc import Sequence

import torch

from pdssm_compiler.ir.interpreter import interpret
from pdssm_compiler.ir.program import Program
from pdssm_compiler.ir.types import is_complex, is_number
from pdssm_compiler.runtime.compile_service import config_text
from pdssm_compiler.runtime.errors import NoTemplateError
from pdssm_compiler.runtime.plan import Plan, caller_inputs, program_of
from pdssm_compiler.schedules.signature import Signature
from pdssm_compiler.schedules.templates.torch_chunks import TorchChunksConfig

Tensors = dict[str, torch.Tensor]

# The second length of chunks; the first is about the square root of the length.
_OTHER_LENGTH = 48
# Tokens that the interpreter is asked about: chunks of both lengths, and a rest.
_PIECE = 331
# What double precision may be off by, of the largest number.
_AGREE = 1e-9

_WIDER = {"f16": "f64", "bf16": "f64", "f32": "f64", "c32": "c128", "cb32": "c128", "c64": "c128"}
# Not in names, which begin with a percent sign.
_NARROW = re.compile(rf"(?<![%\w])({'|'.join(_WIDER)})\b")


def in_double(program: Program, tensors: Sequence[torch.Tensor]) -> Tensors | None:
    """What a program gives in double precision, by name.

    Args:
        program: as calls have it.
        tensors: a caller's.

    Returns:
        float64, complex128 and int64 tensors on the device of ``tensors``. None where there is no
        such reference: the program has no chunks, there is no memory for it or torch cannot
        compute it there, or it does not agree with the interpreter or with itself.
    """
    device = tensors[0].device
    wide = widened(program)
    inputs = caller_inputs(wide)
    cuts = TorchChunksConfig(), TorchChunksConfig(_OTHER_LENGTH)
    try:
        # Integers are stored as they are.
        given = [
            exact(tensor, is_complex(input_.type)) if is_number(input_.type) else tensor
            for input_, tensor in zip(inputs, tensors, strict=True)
        ]
        first, second = (Plan(wide, device, config=config_text(each)) for each in cuts)
        piece = [
            tensor[:, :_PIECE] if input_.role in ("token", "lagged") else tensor
            for input_, tensor in zip(inputs, given, strict=True)
        ]
        arrays = {i.name: t.cpu().numpy() for i, t in zip(inputs, piece, strict=True)}
        true = {name: torch.from_numpy(a) for name, a in interpret(program, arrays).items()}
        if not all(agree(_run(plan, piece), true) for plan in (first, second)):
            return None
        found = _run(first, given)
        return found if agree(_run(second, given), found) else None
    except (NoTemplateError, RuntimeError):
        # Memory that is short is a RuntimeError too. A device that is broken says so again.
        return None


def widened(program: Program) -> Program:
    """The same program with all that it reads, computes and writes in double precision."""
    return program_of(_NARROW.sub(lambda found: _WIDER[found[1]], program.text))


def agree(one: Tensors, other: Tensors) -> bool:
    """Whether results are the same, to what double precision may be off by."""
    for name, true in other.items():
        got = one[name]
        if not true.numel():
            continue
        if not true.is_complex() and not true.is_floating_point():
            if not torch.equal(got.to(true.device), true):
                return False
            continue
        size = max(1.0, float(true.abs().max()))
        # NaN is not within any bound.
        if not float((got.to(true.device) - true).abs().max()) <= _AGREE * size:
            return False
    return True


def exact(tensor: torch.Tensor, complex_: bool) -> torch.Tensor:
    """The numbers of a tensor in double precision, pairs of reals as complex ones."""
    tensor = tensor.detach().resolve_conj()
    if complex_ and not tensor.is_complex():
        tensor = torch.view_as_complex(tensor.double().contiguous())
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor.long()


def _run(plan: Plan, tensors: Sequence[torch.Tensor]) -> Tensors:
    results = plan.run(tensors, trusted=True)
    outputs = Signature(plan.program).outputs
    return {o.name: exact(r, o.complex) for o, r in zip(outputs, results, strict=True)}
