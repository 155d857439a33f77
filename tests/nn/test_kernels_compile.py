"""Triton kernels that are written by hand compile for GPUs that are not here, without spills."""

from typing import Any

import pytest
from triton import compile as compile_kernel
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pdssm_compiler.nn import convolution_kernels
from pdssm_compiler.nn.convolution_op import _BACKWARD, _FORWARD
from pdssm_compiler.runtime import choice_kernels, product_kernels
from pdssm_compiler.runtime.backends.cubin import cubin_resources

_LOW, _WIDE, _INDEX = "*bf16", "*fp32", "*i32"
_POINTERS = {
    "x": _LOW, "grad": _LOW, "more": _LOW, "gate": _LOW, "out": _LOW, "grad_x": _LOW,
    "logits": _LOW, "into": _LOW, "weight": _WIDE, "bias": _WIDE, "sums": _WIDE,
    "window": _WIDE, "after": _WIDE, "temperature": _WIDE, "chosen": _INDEX,
}  # fmt: skip
# Of `surrogate`, whose gradient is of entries.
_OF_ENTRIES = {"grad": _WIDE}


def resources(kernel: Any, warps: int, arch: int, of: dict[str, str], **constants: Any) -> Any:
    names = kernel.arg_names
    types = _POINTERS | of
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
    # Pointers and strides as a layer of 1024 channels has them.
    plain = ("length", "runs", "count", *constants)
    attributes = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n not in plain}
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    made = compile_kernel(
        source,
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": warps, "enable_fp_fusion": True},
    )
    return cubin_resources(made.asm["cubin"])


@pytest.mark.parametrize("arch", [80, 90])
def test_the_convolution(arch: int) -> None:
    for kernel, (tokens, block, warps), more in (
        (convolution_kernels.convolve, _FORWARD, {}),
        (convolution_kernels.convolve_backward, _BACKWARD, {"HAS_MORE": True, "HAS_GATE": True}),
    ):
        how = {"WIDTH": 4, "TOKENS": tokens, "BLOCK": block}
        found = resources(kernel, warps, arch, {}, **how, **more)
        assert found["spilled"] == 0
        # Two blocks of the backward on a processor, where it was measured (docs/gpu-log.md).
        assert found["registers"] <= 176
    _, block, warps = _FORWARD
    step = convolution_kernels.convolve_step
    assert resources(step, warps, arch, {}, WIDTH=4, BLOCK=block)["spilled"] == 0


@pytest.mark.parametrize("arch", [80, 90])
def test_choices(arch: int) -> None:
    tile = {"ROWS": 64, "MAPS": 32}
    for kernel, of in ((choice_kernels.choose, {}), (choice_kernels.surrogate, _OF_ENTRIES)):
        assert resources(kernel, 4, arch, of, **tile)["spilled"] == 0


@pytest.mark.parametrize("arch", [80, 90])
def test_products(arch: int) -> None:
    places = dict.fromkeys(("bounds", "order", "first", "end", "map_", "last"), "*i64")
    sums = dict.fromkeys(("of_left", "of_right", "product", "total"), "*fp64")
    of = places | sums | {"left": _WIDE, "right": _WIDE}
    for kernel, tile in (
        (product_kernels.cut, {"BLOCKS": 64, "MAPS": 16}),
        (product_kernels.cut, {"BLOCKS": 1, "MAPS": 1024}),
        (product_kernels.gather, {"PARTS": 2, "ROWS": 16, "LANES": 256}),
        (product_kernels.add_up, {"LANES": 1024}),
    ):
        assert resources(kernel, 4, arch, of, **tile)["spilled"] == 0
