"""What the tensors of a fused expression are: :class:`InputSpec`."""

from dataclasses import dataclass

import torch

from pdssm_compiler.arguments import as_complex, truth, widened
from pdssm_compiler.ir.program import Input, Role
from pdssm_compiler.ir.types import Element, Scalar, Type, Vector, element_of
from pdssm_compiler.runtime.binding import check_layout
from pdssm_compiler.runtime.errors import ArgumentError
from pdssm_compiler.spec import ELEMENTS, PAYLOADS, one_of

# How a tensor varies: its role in a program, and whether a token has N numbers of it or one.
AXES: dict[str, tuple[Role, type[Scalar] | type[Vector]]] = {
    "BTHN": ("token", Vector),
    "BTH": ("token", Scalar),
    "HN": ("head", Vector),
    "H": ("head", Scalar),
}
REALS: dict[torch.dtype, str] = {
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.float32: "f32",
    torch.float64: "f64",
}


@dataclass(frozen=True)
class InputSpec:
    """A tensor that a fused expression reads, apart from its sizes.

    Whatever it is stored as, the expression computes in float32, or in float64 where the scan is
    complex128.

    Attributes:
        axes: ``"BTHN"`` (a vector a token), ``"BTH"`` (a number a token), ``"HN"`` or ``"H"``
            (a head's, the same for all tokens and sequences; its gradient is summed over them).
        dtype: ``torch.float32``, ``bfloat16`` or ``float16``, with a complex128 scan ``float64``
            as well; or ``complex64``, with a complex128 scan ``complex128``. None is the scan's
            own precision, real.
        pairs: whether a bfloat16 or float16 tensor has one more axis, ``[..., 2]``, and is read as
            complex numbers. (A complex dtype takes float32 or float64 pairs as they come.)

    Raises:
        ArgumentError: a value outside the above; the message names the field.
    """

    axes: str = "BTHN"
    dtype: torch.dtype | None = None
    pairs: bool = False

    def __post_init__(self) -> None:
        one_of("axes", self.axes, tuple(AXES))
        if self.dtype is not None:
            one_of("dtype", self.dtype, (*REALS, *ELEMENTS))
        truth("pairs", self.pairs)
        if self.pairs and self.dtype not in PAYLOADS:
            raise ArgumentError(
                f"pairs=True needs dtype bfloat16 or float16, got {self.dtype}; a complex dtype "
                f"takes pairs as they are"
            )


@dataclass(frozen=True)
class FusedInput:
    """A parameter of a fused expression.

    Attributes:
        name: the parameter's name.
        spec: what its tensor is.
        dtype: the dtype of the tensor.
        input: the program's input.
    """

    name: str
    spec: InputSpec
    dtype: torch.dtype
    input: Input

    def read(self, tensor: object) -> torch.Tensor:
        """The tensor as the program reads it, but for its sizes.

        Raises:
            ArgumentError: not a dense tensor, another dtype or another rank.
        """
        if not isinstance(tensor, torch.Tensor):
            raise ArgumentError(
                f"{self.name} must be a torch.Tensor, got {type(tensor).__name__}; "
                f"torch.as_tensor makes one"
            )
        check_layout(self.name, tensor)
        if self.dtype not in PAYLOADS:
            tensor = widened(tensor)
        rank = len(self.spec.axes) + self.spec.pairs
        paired = tensor.dim() == rank + 1 and tensor.shape[-1] == 2
        if self.dtype in ELEMENTS and paired and tensor.dtype == self.dtype.to_real():
            return as_complex(self.name, tensor, rank)
        if tensor.dtype != self.dtype:
            raise ArgumentError(
                f"{self.name} must be {self.dtype}, got {tensor.dtype}; convert it with "
                f".to({self.dtype}), or say another dtype in "
                f"inputs={{{self.name!r}: InputSpec(...)}}"
            )
        return tensor

    def check_shape(self, tensor: torch.Tensor, sizes: dict[str, int]) -> None:
        """Refuse a tensor of other sizes than the call has.

        Raises:
            ArgumentError: names the axes and the sizes they have.
        """
        want = [sizes[axis] for axis in self.spec.axes] + [2] * self.spec.pairs
        if list(tensor.shape) != want:
            axes = ", ".join([*self.spec.axes, *(["2"] * self.spec.pairs)])
            raise ArgumentError(
                f"{self.name} must have the shape [{axes}] = {want}, got {list(tensor.shape)}; "
                f"reshape it, or say other axes in inputs={{{self.name!r}: InputSpec(...)}}"
            )


def fused_input(name: str, spec: InputSpec, bits: int) -> FusedInput:
    """A parameter, for a scan of 32 or 64 bits.

    Raises:
        ArgumentError: a dtype that the scan's precision has no room for.
    """
    wide = torch.float32 if bits == 32 else torch.float64
    dtype = spec.dtype or wide
    complex_ = spec.pairs or dtype.is_complex
    if (dtype == torch.float64 and bits == 32) or (dtype.is_complex and dtype.to_real() != wide):
        scan = "complex64" if bits == 32 else "complex128"
        raise ArgumentError(
            f"inputs[{name!r}] has dtype {dtype}, and the scan is {scan}; give both one precision"
        )
    storage = ELEMENTS.get(dtype) or (PAYLOADS if spec.pairs else REALS)[dtype]
    role, shape = AXES[spec.axes]
    element: Element = element_of(bits, complex_=complex_)
    type_: Type = shape(element)
    return FusedInput(name, spec, dtype, Input(input_name(name), type_, role, storage))


def input_name(name: str) -> str:
    """A parameter's name in the program, and so in the source of kernels. It begins and ends
    unlike any name that code generators make up, and unlike what they make of another.
    """
    return f"in_{name}_"
