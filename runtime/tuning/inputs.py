"""Random tensors for any program."""

import torch

from pdssm_compiler.ir.program import Input, Program
from pdssm_compiler.ir.types import Index, Map, Table
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.binding import Slot, shape_of
from pdssm_compiler.runtime.ops import slots_of
from pdssm_compiler.runtime.plan import caller_inputs
from pdssm_compiler.runtime.tuning.memory import remember


def random_tensors(
    program: Program, sizes: Sizes, device: torch.device, seed: int
) -> list[torch.Tensor]:
    """A caller's tensors, in order: numbers of magnitude at most 1, but for those by which the
    carry is kept (:mod:`~pdssm_compiler.runtime.tuning.memory`), so that products of many stay
    finite and the last tokens show what the first have left; indices within their bounds, and maps
    that are what they are promised to be.
    """
    random = torch.Generator(device).manual_seed(seed)
    slots, _ = slots_of(program.text)
    inputs = caller_inputs(program)
    found = [_tensor(i, s, program, sizes, random) for i, s in zip(inputs, slots, strict=True)]
    remember(program, found, sizes.length)
    # What keeps a state or drops it keeps it mostly: sequences have more tokens than one or two.
    kept = {v.args[1] for v in program.body if v.op == "keep"}
    found = [
        _mostly_one(tensor, random) if input_.value in kept else tensor
        for input_, tensor in zip(inputs, found, strict=True)
    ]
    # By a temperature is divided, and a softmax of random numbers is not to be a choice.
    divisors = {v.args[3] for v in program.body if v.op == "straight_through"}
    return [
        tensor.abs().add(1.0) if input_.value in divisors else tensor
        for input_, tensor in zip(inputs, found, strict=True)
    ]


def _tensor(
    input_: Input, slot: Slot, program: Program, sizes: Sizes, random: torch.Generator
) -> torch.Tensor:
    shape, device, n = shape_of(slot, sizes), random.device, program.state_size
    match input_.type:
        case Index(bound):
            made = torch.randint(bound, shape, generator=random, device=device)
        case Map("identity") | Table(_, "identity"):
            made = torch.arange(n, device=device).expand(shape)
        case Map("permutation") | Table(_, "permutation"):
            made = torch.rand(shape, generator=random, device=device).argsort(-1)
        case Map() | Table():
            made = torch.randint(n, shape, generator=random, device=device)
        case _:
            return _numbers(shape, slot.dtype, random)
    return made.to(slot.dtype).contiguous()


# Tokens of a sequence in the first quarter, on average. Later ones are longer, this many in all:
# what is given at their beginning is to show after several chunks.
_SEQUENCE = 16


def _mostly_one(tensor: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    drawn = torch.rand(tensor.shape, generator=random, device=tensor.device)
    length = tensor.shape[1]
    ends = torch.full_like(drawn, 1 / max(_SEQUENCE, length / _SEQUENCE))
    ends[:, : length // 4] = 1 / _SEQUENCE
    return (drawn >= ends).to(tensor.dtype)


def _numbers(shape: tuple[int, ...], dtype: torch.dtype, random: torch.Generator) -> torch.Tensor:
    real = dtype.to_real() if dtype.is_complex else dtype
    drawn = torch.float64 if real is torch.float64 else torch.float32
    magnitude = torch.rand(shape, dtype=drawn, generator=random, device=random.device)
    if not dtype.is_complex:
        return magnitude.mul_(2).sub_(1).to(dtype)
    phase = torch.rand(shape, dtype=drawn, generator=random, device=random.device)
    return torch.polar(magnitude, phase.mul_(2 * torch.pi))
