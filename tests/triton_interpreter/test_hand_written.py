"""Triton kernels that are written by hand, interpreted: outputs are poisoned before, and what
stands beside them must stay.
"""

import pytest
import torch

# For its repairs of the interpreter.
import tests.triton_interpreter.interpreted  # noqa: F401
from pdssm_compiler.nn import convolution_kernels, convolution_op
from pdssm_compiler.runtime import blocks as blocks_module
from pdssm_compiler.runtime import choice_kernels, dense
from pdssm_compiler.runtime.blocks import cut
from pdssm_compiler.runtime.choices import _launch_over, _places, softmax_gradient

TOKENS, BLOCK = 8, 4


@pytest.mark.parametrize(("has_more", "has_gate"), [(True, True), (False, False)])
@pytest.mark.parametrize(
    ("sizes", "width"),
    [((2, 13, 5), 4), ((1, 9, 3), 3), ((2, 8, 4), 2), ((1, 17, 6), 1), ((1, 1, 2), 4)],
)
def test_convolution(
    sizes: tuple[int, int, int], width: int, has_more: bool, has_gate: bool
) -> None:
    torch.manual_seed(width)
    batch, length, channels = sizes
    x = torch.randn(batch, length, 2 * channels)[..., channels:]
    weight, bias = torch.randn(channels, width), torch.randn(channels)
    runs = -(-length // TOKENS)
    grid = (runs * batch, -(-channels // BLOCK))
    out = torch.full(sizes, float("nan"))
    how = (width, TOKENS, BLOCK)
    convolution_kernels.convolve[grid](
        x, weight, bias, out, length, runs, channels, *x.stride()[:2], *how
    )
    wide = [each.double() for each in (x, weight, bias)]
    want = convolution_op.convolve_silu(*wide)[0]
    assert torch.allclose(out.double(), want, rtol=1e-5, atol=1e-6)

    grad, more, gate = (torch.randn(sizes) for _ in range(3))
    whole = torch.full((batch, length, 2 * channels), float("nan"))
    into = whole[..., :channels]
    sums = torch.full((batch, runs, 5, channels), float("nan"))
    strides = [s for each in (x, into) for s in each.stride()[:2]]
    sources = (grad, more, gate, x, weight, bias)
    convolution_kernels.convolve_backward[grid](
        *sources, into, sums, length, runs, channels, *strides, has_more, has_gate, *how
    )
    arrived = grad.double() + more.double() if has_more else grad.double()
    of_x, of_weight, of_bias = convolution_op.convolve_silu_backward([arrived, None, None], *wide)
    assert torch.allclose(into.double(), of_x, rtol=1e-5, atol=1e-5)
    total = sums.sum((0, 1)).double()
    assert torch.allclose(total[:width].flip(0).T, of_weight, rtol=1e-5, atol=1e-5)
    assert torch.allclose(total[4], of_bias, rtol=1e-5, atol=1e-5)
    behind = whole[..., channels:]
    assert torch.equal(behind, gate) if has_gate else behind.isnan().all()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_one_token_of_the_convolution(width: int) -> None:
    torch.manual_seed(width)
    x, window = torch.randn(3, 14)[:, 7:], torch.randn(3, width - 1, 7)
    weight, bias = torch.randn(7, width), torch.randn(7)
    out, after = torch.full((3, 7), float("nan")), torch.full_like(window, float("nan"))
    convolution_kernels.convolve_step[(3, 2)](
        x, window, weight, bias, out, after, 7, x.stride(0), width, BLOCK
    )
    want, following = convolution_op.convolve_silu_step(x, window, weight, bias)
    assert torch.allclose(out, want, rtol=1e-5, atol=1e-6)
    assert torch.equal(after, following)


@pytest.mark.parametrize("sizes", [(2, 5, 3, 4), (1, 7, 2, 5), (2, 3, 1, 1), (1, 2, 2, 33)])
def test_choices(sizes: tuple[int, int, int, int]) -> None:
    """Ties go to the first, a NaN is -1, in a part of wider tensors."""
    torch.manual_seed(0)
    batch, length, heads, maps = sizes
    whole = torch.randn(batch, length, 7 + heads * maps).round(decimals=1)
    logits = whole[..., 7:].unflatten(2, (heads, maps))
    if maps > 2:
        logits[0, 1, 0, 2] = float("nan")
    how = _launch_over(logits)
    strides = logits.stride()[:3]
    index = torch.full(sizes[:3], -7, dtype=torch.int32)
    choice_kernels.choose[(how.programs,)](
        logits, index, *how.sizes, *logits.stride(), how.maps, *how.tiles
    )
    assert torch.equal(index, _places(logits, -1))

    grad, tau = torch.randn(sizes[:3]), torch.tensor(0.7)
    beside = torch.full_like(whole, float("inf"))
    into = beside[..., 7:].unflatten(2, (heads, maps))
    choice_kernels.surrogate[(how.programs,)](
        grad, logits, index, tau, into, *how.sizes, *strides, *into.stride()[:3], how.maps,
        *how.tiles, False,
    )  # fmt: skip
    want = softmax_gradient(logits, grad, index, tau, -1, False)
    assert torch.allclose(into, want, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert beside[..., :7].isinf().all()

    grad = torch.randn(sizes)
    choice_kernels.surrogate[(how.programs,)](
        grad, logits, index, tau, into, *how.sizes, *strides, *into.stride()[:3], how.maps,
        *how.tiles, True,
    )  # fmt: skip
    want = softmax_gradient(logits, grad, index, tau, -1, True)
    assert torch.allclose(into, want, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert beside[..., :7].isinf().all()


def test_choices_along_another_axis() -> None:
    """As columns of a dictionary choose their rows."""
    torch.manual_seed(1)
    logits = torch.randn(2, 3, 5, 5).round(decimals=1)
    along = logits.movedim(-2, -1)
    how = _launch_over(along)
    index = torch.full((2, 3, 5), -7, dtype=torch.int32)
    choice_kernels.choose[(how.programs,)](
        along, index, *how.sizes, *along.stride(), how.maps, *how.tiles
    )
    assert torch.equal(index, _places(logits, -2))


@pytest.mark.parametrize("maps", [1, 5, 40])
@pytest.mark.parametrize("rows", [0, 1, 70])
def test_blocks_are_cut_as_by_torch(maps: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps of no rows, of one block and of several, in one program and in several."""
    random = torch.Generator().manual_seed(rows)
    map_of_row = torch.randint(maps, (rows,), generator=random) // 2
    for length, numbers in ((1, 1), (4, 16), (64, 1024)):
        monkeypatch.setattr(blocks_module, "_NUMBERS", numbers)
        want = cut(map_of_row, maps, length)
        with monkeypatch.context() as kernels:
            kernels.setattr(blocks_module, "triton_runs", lambda device: True)
            found = cut(map_of_row, maps, length)
        assert all(map(torch.equal, found[:5], want[:5]))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float32, torch.float64])
def test_products_of_maps(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit as by torch's operations, some blocks at a time; infinities stay in their map."""
    random = torch.Generator().manual_seed(1)
    # Parts of wider tensors, conjugated or negated on the way.
    left, right = (
        torch.randn(2, 45, 2, 7, dtype=dtype, generator=random)[..., 1:6] for _ in range(2)
    )
    right = right.conj() if dtype.is_complex else right._neg_view()
    selection = torch.randint(3, (2, 45, 2), generator=random)
    left[1, 7, 0, 2] = float("inf")
    monkeypatch.setattr(dense, "_SHORTEST_BLOCK", 6)
    for at_once in (200, 2**18):
        monkeypatch.setattr(dense, "_AT_ONCE_ON_CPU", at_once)
        want = dense._map_products(left, right, selection, 3)
        with monkeypatch.context() as kernels:
            kernels.setattr(blocks_module, "triton_runs", lambda device: True)
            found = dense._map_products(left, right, selection, 3)
        assert torch.equal(found.nan_to_num(7.0), want.nan_to_num(7.0))
        assert not found.isfinite().all()
        assert found[1].isfinite().all()
