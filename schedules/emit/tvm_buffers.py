"""TVM text of buffers: what a thread has on its stack, and tensors with free strides."""

import math
from collections.abc import Iterable, Sequence

from pdssm_compiler.schedules.signature import width_of
from pdssm_compiler.schedules.source import Writer

# TVM keeps such an allocation as it is; it makes calls to its workspace of others.
ON_STACK = ', annotations={"disable_lower_builtin": True}'


def write_local(writer: Writer, name: str, size: int, dtype: str) -> None:
    """An array of a thread, on its stack."""
    writer.line(f'{name} = T.alloc_buffer(({size},), "{dtype}", scope="local"{ON_STACK})')


def write_strided(
    writer: Writer, name: str, axes: Iterable[str], own: Sequence[int], dtype: str
) -> None:
    """A tensor of the function's arguments.

    Args:
        writer: of the text.
        name: of the buffer; the argument's has a ``_`` behind it.
        axes: sizes of its leading axes, each with a free stride.
        own: sizes of its own axes, which are dense.
        dtype: of its numbers.
    """
    axes = tuple(axes)
    strides = [f"{name}_s{axis}" for axis in axes]
    for stride in strides:
        writer.line(f"{stride} = T.int64()")
    dense = [math.prod(own[axis + 1 :]) for axis in range(len(own))]
    # The pipeline for GPUs wants every extent in one dtype.
    shape = ", ".join([*axes, *(f"T.int64({size})" for size in own)])
    steps = ", ".join([*strides, *(f"T.int64({step})" for step in dense)])
    # TVM assumes 64-byte alignment unless told otherwise, and does not check it.
    writer.line(
        f'{name} = T.match_buffer({name}_, ({shape},), "{dtype}", strides=[{steps}], '
        f"align={width_of(dtype)})"
    )
