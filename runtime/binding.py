"""Tensors to kernel arguments: shapes and dtypes checked, layouts made legal.

A kernel's leading axes ``[B, T, H]`` may have any strides, 0 included; the axes after them must be
dense. What is not is copied, but an axis that is only expanded is never written out.
"""

import sys
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


_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})


@dataclass(frozen=True)
class Slot:
    """What one tensor must look like.

    Attributes:
        name: for messages.
        dtype: the caller's dtype; complex for ``c64`` and ``c128``.
        role: see :class:`~pdssm_compiler.ir.program.Input`.
        axes: names of the axes that come before its own, by its role.
        own: sizes of its own axes, the parts of a complex number left out if the dtype is complex.
        dense: the strides of those axes, of reals if the dtype is complex.
    """

    name: str
    dtype: torch.dtype
    role: str
    axes: tuple[str, ...]
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
        return cls(argument.name, dtype, argument.role, argument.leading, own, tuple(dense))

    @cached_property
    def leading(self) -> int:
        """How many axes come before its own."""
        return len(self.axes)

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
    sizes = check(slots, tensors)
    return [slot.kernel_view(t) for slot, t in zip(slots, tensors, strict=True)], sizes


def check(slots: Sequence[Slot], tensors: Sequence[torch.Tensor]) -> Sizes:
    """Refuse tensors that do not fit their slots; gives the sizes of the call.

    Raises:
        ArgumentError: wrong number, dtype, rank or size; the message says what was expected.
    """
    sizes = sizes_of(slots, tensors)
    batch, length, heads = sizes
    leading = {("B", "L", "H"): (batch, length, heads), ("B", "H"): (batch, heads)}
    leading["H",] = (heads,)
    for slot, tensor in zip(slots, tensors, strict=True):
        if tensor.dtype is not slot.dtype:
            raise ArgumentError(
                f"{slot.name} must be {slot.dtype}, got {tensor.dtype}; convert it with "
                f".to({slot.dtype})"
            )
        if tensor.shape != leading[slot.axes] + slot.own:
            raise ArgumentError(_size_message(slot, tensor, slots, sizes))
    return sizes


def is_distributed(tensor: torch.Tensor) -> bool:
    """Whether it is a ``DTensor``, of which each process holds a part. Nothing is imported for it,
    and where a compiler traces it is not asked: Dynamo knows ``DTensor`` by itself.
    """
    if torch.compiler.is_compiling():
        return False
    known = sys.modules.get("torch.distributed.tensor")
    return known is not None and isinstance(tensor, known.DTensor)


def check_layout(name: str, tensor: torch.Tensor) -> None:
    """Refuse what has no strides to be read by.

    Raises:
        ArgumentError: a sparse, MKL-DNN, nested or distributed tensor, or one without memory.
    """
    if is_distributed(tensor):
        raise ArgumentError(
            f"{name} must be a tensor of this process, got a DTensor; pass its part by "
            f".to_local() where batch or heads are sharded, or all of it by .full_tensor(). "
            f"Parameters of layers are gathered by torch.distributed.fsdp.fully_shard"
        )
    if tensor.layout is not torch.strided or tensor.is_nested:
        layout = "nested" if tensor.is_nested else tensor.layout
        remedy = "pad it to a dense one" if tensor.is_nested else "convert it with .to_dense()"
        raise ArgumentError(f"{name} must be a dense tensor, got a {layout} one; {remedy}")
    if not torch.compiler.is_compiling() and not has_memory(tensor):
        raise ArgumentError(
            f"{name} has no memory: its storage was freed, or it is zeros that were never written "
            f"out; give one that has, by .clone() of zeros"
        )


def has_memory(tensor: torch.Tensor) -> bool:
    """Whether there is memory to read, which a kernel does not ask. A tensor whose storage was
    freed has none, and zeros that torch does not write out (``torch._efficientzerotensor``) have
    none; of tensors of other kinds, such as fake ones, it is not asked.
    """
    if type(tensor) not in _PLAIN or tensor.device.type not in ("cpu", "cuda"):
        return True
    try:
        return tensor.numel() == 0 or tensor.data_ptr() != 0
    except RuntimeError:
        # What a transform of torch.func wraps has no storage of its own.
        return True


def sizes_of(slots: Sequence[Slot], tensors: Sequence[torch.Tensor]) -> Sizes:
    """``B``, ``T``, ``H`` of a call, from the first tensor that varies over tokens.

    Raises:
        ArgumentError: the wrong number of tensors, or that one has the wrong rank.
    """
    if len(slots) != len(tensors):
        names = ", ".join(slot.name for slot in slots)
        raise ArgumentError(f"expected {len(slots)} tensors ({names}), got {len(tensors)}")
    first = _first_of_tokens(slots)
    slot, tensor = slots[first], tensors[first]
    if tensor.dim() != slot.leading + len(slot.own):
        raise ArgumentError(f"{_wanted(slot)}, got {list(tensor.shape)}; reshape it")
    return Sizes(*tensor.shape[:3])


def _first_of_tokens(slots: Sequence[Slot]) -> int:
    """The tensor that says what ``B``, ``T`` and ``H`` are."""
    return next(n for n, slot in enumerate(slots) if "L" in slot.axes)


def _wanted(slot: Slot) -> str:
    axes = ["T" if axis == "L" else axis for axis in slot.axes]
    return f"{slot.name} must have the shape [{', '.join([*axes, *map(str, slot.own)])}]"


def _size_message(slot: Slot, tensor: torch.Tensor, slots: Sequence[Slot], sizes: Sizes) -> str:
    first = slots[_first_of_tokens(slots)]
    want, got = list(shape_of(slot, sizes)), list(tensor.shape)
    remedy = "reshape it" if slot is first else f"make it agree with {first.name}"
    return f"{_wanted(slot)} = {want}, got {got}; {remedy}"


def shape_of(slot: Slot, sizes: Sizes) -> tuple[int, ...]:
    """The shape a slot's tensor has in a call of these sizes."""
    batch, length, heads = sizes
    known = {"B": batch, "L": length, "H": heads}
    return (*[known[axis] for axis in slot.axes], *slot.own)


def allocate(
    slot: Slot,
    sizes: Sizes,
    device: torch.device,
    empty: Callable[..., torch.Tensor] = torch.empty,
) -> torch.Tensor:
    """An uninitialised output, made by ``empty``."""
    return empty(shape_of(slot, sizes), dtype=slot.dtype, device=device)
