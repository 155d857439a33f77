"""The warm call: straight-line Python for one plan.

What :func:`pdssm_compiler.runtime.binding.bind` does in loops over slots, for any tensors, costs
more than a small scan. For the usual call (dense tensors of the right dtypes and sizes) the same
checks are written out once for each plan, as source text. Whatever is unusual in a call makes the
generated function give None, and the loops take over, with their messages.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.binding import Slot
from pdssm_compiler.runtime.output_pool import LARGE, new_output

# Kernel arguments (for a GPU complex ones as they are), what the caller gets, sizes.
Prepared = tuple[list[torch.Tensor], list[torch.Tensor], Sizes]
Prepare = Callable[[Sequence[torch.Tensor]], Prepared | None]


def warm_call(
    inputs: Sequence[Slot], outputs: Sequence[Slot], order: Sequence[int], device: torch.device
) -> Prepare:
    """A function that turns the usual call's tensors into a kernel's arguments.

    Args:
        inputs: the caller's tensors.
        outputs: what the kernel writes.
        order: the kernel's inputs as positions among the caller's.
        device: where outputs are allocated.
    """
    text = source(inputs, outputs, order, device)
    scope: dict[str, Any] = {
        "empty": torch.empty,
        "empty_like": torch.empty_like,
        "dense": torch.contiguous_format,
        "view_as_real": torch.view_as_real,
        "Sizes": Sizes,
        "device": device,
        "new_output": new_output,
    }
    scope |= {f"dtype_{n}": slot.dtype for n, slot in enumerate(inputs)}
    scope |= {f"out_dtype_{n}": slot.dtype for n, slot in enumerate(outputs)}
    exec(compile(text, "<pdssm warm call>", "exec"), scope)
    return scope["prepare"]


def source(
    inputs: Sequence[Slot], outputs: Sequence[Slot], order: Sequence[int], device: torch.device
) -> str:
    """The function's text."""
    names = [f"t{number}" for number in range(len(inputs))]
    tokens = next(n for n, slot in enumerate(inputs) if "L" in slot.axes)
    rank = inputs[tokens].leading + len(inputs[tokens].own)
    lines = [
        "def prepare(tensors):",
        f"    if len(tensors) != {len(inputs)}:",
        "        return None",
        f"    {', '.join(names)}, = tensors",
        f"    if t{tokens}.dim() != {rank}:",
        "        return None",
        f"    B, L, H{', _' * (rank - 3)} = t{tokens}.shape",
        "    if not (B and L and H):",
        "        return None",
    ]
    for number, slot in enumerate(inputs):
        lines += [f"    if {' or '.join(_unusual(number, slot))}:", "        return None"]
    for number, slot in enumerate(outputs):
        how = f"({_shape(slot)}), dtype=out_dtype_{number}, device=device"
        # The arguments of empty take longer to read than the allocation.
        same = next((n for n, other in enumerate(inputs) if _alike(slot, other)), None)
        made = f"empty({how})" if same is None else f"empty_like(t{same}, memory_format=dense)"
        if device.type == "cpu":
            each = math.prod(slot.own) * slot.dtype.itemsize
            small = f"{' * '.join(slot.axes)} < {-(-LARGE // each)}"
            made = f"{made} if {small} else new_output({how})"
        lines.append(f"    o{number} = {made}")
    given = [(f"t{position}", inputs[position]) for position in order]
    given += [(f"o{number}", slot) for number, slot in enumerate(outputs)]
    # See Kernel.launch_dense.
    on_gpu = device.type == "cuda"
    arguments = [name if on_gpu else _real(name, slot) for name, slot in given]
    results = ", ".join(f"o{number}" for number in range(len(outputs)))
    lines.append(f"    return [{', '.join(arguments)}], [{results}], Sizes(B, L, H)")
    return "\n".join(lines) + "\n"


def _alike(slot: Slot, other: Slot) -> bool:
    """Whether a dense tensor of one slot has the sizes and the dtype of the other's."""
    mine = (slot.axes, slot.own, slot.dtype)
    return mine == (other.axes, other.own, other.dtype)


def _unusual(number: int, slot: Slot) -> list[str]:
    name = f"t{number}"
    found = [
        f"{name}.dtype is not dtype_{number}",
        f"{name}.shape != ({_shape(slot)})",
        f"not {name}.is_contiguous()",
    ]
    if slot.dtype.is_complex:
        found.append(f"{name}.is_conj()")
    if slot.dtype.is_complex or slot.dtype.is_floating_point:
        found.append(f"{name}.is_neg()")
    return found


def _shape(slot: Slot) -> str:
    return ", ".join([*slot.axes, *map(str, slot.own)]) + ","


def _real(name: str, slot: Slot) -> str:
    return f"view_as_real({name})" if slot.dtype.is_complex else name
