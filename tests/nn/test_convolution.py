"""The convolution against torch's own."""

import pytest
import torch

from pdssm_compiler.nn.convolution import CausalConvolution


@pytest.mark.parametrize("width", [1, 4, 9])
@pytest.mark.parametrize("length", [0, 1, 6])
def test_it_is_a_depthwise_conv1d(width: int, length: int) -> None:
    layer = CausalConvolution(3, width, dtype=torch.float64)
    x = torch.randn(2, length, 3, dtype=torch.float64)
    window = torch.randn(2, width - 1, 3, dtype=torch.float64)
    got, after = layer(x, window)
    padded = torch.cat([window, x], 1)
    assert torch.equal(after, padded[:, length:])
    if length:
        want = torch.nn.functional.conv1d(padded.mT, layer.weight[:, None], layer.bias, groups=3)
        torch.testing.assert_close(got, want.mT)
    assert got.shape == x.shape


def test_gradients() -> None:
    layer = CausalConvolution(2, 3, dtype=torch.float64)
    x = torch.randn(1, 5, 2, dtype=torch.float64, requires_grad=True)
    window = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    offsets = torch.tensor([0, 1, 5])
    assert torch.autograd.gradcheck(lambda *given: layer(*given, offsets), (x, window))
    assert torch.autograd.gradcheck(layer, (x, window[:1]))
