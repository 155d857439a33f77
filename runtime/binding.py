"""Tensors to kernel arguments: shapes and dtypes checked, layouts made legal.

A kernel's leading axes ``[B, T, H]`` may have any strides, 0 included; the axes after them must be
dense. What is not is copied, but an axis that is only expanded is never written out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.schedules.signature import Argument

TORCH_DTYPES = {
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
    "f64": torch.float64,
    "c32": torch.float16,
    "cb32": torch.bfloat16,
    "c64": torch.complex64,
    "c128": torch.complex128,
    "u8": torch.uint8,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
}


@dataclass(frozen=True)
class Slot:
    """What one tensor must look like.

    Attributes:
        name: for messages.
        dtype: the caller's dtype; complex for ``c64`` and ``c128``.
        role: see :class:`~pdssm_compiler.ir.program.Input`.
        leading: how many axes come before its own.
        own: sizes of its own axes, the parts of a complex number left out if the dtype is complex.
        dense: the strides of those axes, of reals if the dtype is complex.
    """

    name: str
    dtype: torch.dtype
    role: str
    leading: int
    own: tuple[int, ...]
    dense: tuple[int, ...]

    @classmethod
    def of(cls, argument: Argument, state_size: int) -> "Slot":
        """The slot of a kernel's argument."""
        dtype = TORCH_DTYPES[argument.storage]
        shape = argument.own_shape(state_size)
        dense: list[int] = []
        step = 1
        for size in reversed(shape):
            dense.insert(0, step)
            step *= size
        own = shape[:-1] if dtype.is_complex else shape
        return cls(argument.name, dtype, argument.role, len(argument.leading), own, tuple(dense))

    @cached_property
    def strict(self) -> bool:
        """Whether a contiguous tensor may still have other strides than the dense ones: sizes of
        1 leave them open. (So does emptiness.)
        """
        return 1 in self.own

    def kernel_view(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor as a kernel reads it: reals, dense own axes."""
        if self.dtype.is_complex:
            if tensor.is_conj():
                tensor = _compact(tensor, self.leading, torch.Tensor.resolve_conj)
            tensor = torch.view_as_real(tensor)
        if (
            tensor.is_contiguous()
            and not self.strict
            and not tensor.is_neg()
            and tensor.numel() > 0
        ):
            return tensor
        return self._dense_view(tensor)

    def _dense_view(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_neg():
            tensor = _compact(tensor, self.leading, torch.Tensor.resolve_neg)
        if tensor.stride()[self.leading :] != self.dense:
            tensor = _compact(tensor, self.leading, torch.Tensor.contiguous)
            if tensor.stride()[self.leading :] != self.dense:
                strides = tensor.stride()[: self.leading] + self.dense
                tensor = tensor.as_strided(tensor.shape, strides)
        return tensor


def _compact(tensor, leading, change):  # type: ignore[no-untyped-def]
    """Change a tensor without writing out leading axes that are only expanded."""
    strides = tensor.stride()
    index = tuple(
        slice(0, 1) if strides[axis] == 0 and tensor.shape[axis] > 1 else slice(None)
        for axis in range(leading)
    )
    return change(tensor[index]).expand(tensor.shape)


def bind(
    slots: Sequence[Slot], tensors: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], Sizes]:
    """Check tensors against their slots and give what the kernel reads.

    Raises:
        ArgumentError: wrong number, dtype, rank or size; the message says what was expected.
    """
    sizes = sizes_of(slots, tensors)
    batch, length, heads = sizes
    # The leading sizes of each role; a warm call does nothing else per tensor but compare.
    expected = {
        "token": (batch, length, heads),
        "lagged": (batch, length, heads),
        "row": (batch, heads),
        "head": (heads,),
    }
    bound: list[torch.Tensor] = []
    for slot, tensor in zip(slots, tensors, strict=True):
        if tensor.dtype is not slot.dtype:
            raise ArgumentError(f"{slot.name} must be {slot.dtype}, got {tensor.dtype}")
        if tensor.shape != expected[slot.role] + slot.own:
            raise ArgumentError(_shape_message(slot, tensor, sizes))
        bound.append(slot.kernel_view(tensor))
    return bound, sizes


def sizes_of(slots: Sequence[Slot], tensors: Sequence[torch.Tensor]) -> Sizes:
    """``B``, ``T``, ``H`` of a call, from the first tensor that varies over tokens.

    Raises:
        ArgumentError: the wrong number of tensors, or that one has the wrong rank.
    """
    if len(slots) != len(tensors):
        names = ", ".join(slot.name for slot in slots)
        raise ArgumentError(f"expected {len(slots)} tensors ({names}), got {len(tensors)}")
    slot, tensor = next(
        (slot, tensor)
        for slot, tensor in zip(slots, tensors, strict=True)
        if slot.role in ("token", "lagged")
    )
    if tensor.dim() != slot.leading + len(slot.own):
        raise ArgumentError(_shape_message(slot, tensor, None))
    return Sizes(*tensor.shape[:3])


def _shape_message(slot: Slot, tensor: torch.Tensor, sizes: Sizes | None) -> str:
    axes = {"row": ["B", "H"], "head": ["H"]}.get(slot.role, ["B", "T", "H"])
    shape = [*axes, *map(str, slot.own)]
    message = f"{slot.name} must have the shape [{', '.join(shape)}]"
    if sizes is not None:
        known = {"B": sizes.batch, "T": sizes.length, "H": sizes.heads}
        message += f" = [{', '.join(str(known.get(axis, axis)) for axis in shape)}]"
    return f"{message}, got {list(tensor.shape)}"


def allocate(
    slot: Slot,
    sizes: Sizes,
    device: torch.device,
    empty: Callable[..., torch.Tensor] = torch.empty,
) -> torch.Tensor:
    """An uninitialised output, made by ``empty``."""
    if slot.role == "row":
        shape = (sizes.batch, sizes.heads, *slot.own)
    else:
        shape = (sizes.batch, sizes.length, sizes.heads, *slot.own)
    return empty(shape, dtype=slot.dtype, device=device)
