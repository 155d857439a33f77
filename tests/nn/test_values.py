"""Values and gradients of the layers against their formulas in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdssm_compiler.nn import PDSSM, FlashPDSSM
from tests.nn import formulas
from tests.nn.layers import CASES, formula, made, tokens


@pytest.mark.parametrize(("kind", "name"), [*CASES, (FlashPDSSM, "dense")])
@settings(max_examples=3)
@given(batch=st.integers(1, 2), length=st.integers(1, 7), seed=st.integers(0, 2**32 - 1))
def test_values_and_gradients(kind: type, name: str, batch: int, length: int, seed: int) -> None:
    layer = made(kind, name, seed)
    x = tokens(layer, batch, length, seed).requires_grad_()
    leaves = formulas.parameters(layer)
    want, got = formula(layer)(leaves, x), layer(x)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    arriving = tokens(layer, batch, length, seed + 1)
    mine = formulas.gradients(got, arriving, {**dict(layer.named_parameters()), "x": x})
    right = formulas.gradients(want, arriving, {**leaves, "x": x})
    for gradient, tensor in mine.items():
        torch.testing.assert_close(
            tensor, right[gradient], rtol=1e-8, atol=1e-8, msg=lambda m, g=gradient: f"{g}: {m}"
        )


@pytest.mark.parametrize(("kind", "name"), [(FlashPDSSM, "odd"), (PDSSM, "linear")])
def test_values_of_kernels_in_float32(kernels: None, kind: type, name: str) -> None:
    """By what users get on a CPU, forward and step."""
    layer = made(kind, name, 1, torch.float32)
    x = tokens(layer, 3, 50)
    want = formula(layer)(formulas.parameters(layer), x.double())
    got = layer(x)
    assert got.dtype == torch.float32
    # Fifty tokens of a few dozen roundings each.
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        _, cache = layer(x[:, :-1], output_cache=True)
        last, _ = layer.step(x[:, -1], cache)
    torch.testing.assert_close(last, got[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("orientation", ["column", "row"])
@pytest.mark.parametrize(("size", "entries"), [(128, 8), (64, 6)])
def test_the_published_sizes_in_float32(
    kernels: None, size: int, entries: int, orientation: str
) -> None:
    """Output and every parameter's gradient, given the maps: float64 would choose others where a
    column is a near-tie, and one of those would move the states by more than is allowed.
    """
    torch.manual_seed(3)
    layer = PDSSM(size, dictionary_size=entries, orientation=orientation)
    with torch.no_grad():
        layer.temperature.fill_(0.7)
    x = tokens(layer, 2, 7).requires_grad_()
    leaves, wide = formulas.parameters(layer), x.detach().double().requires_grad_()
    want, got = formula(layer)(leaves, wide), layer(x)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
    arriving = tokens(layer, 2, 7, 1)
    mine = formulas.gradients(got, arriving, {**dict(layer.named_parameters()), "x": x})
    right = formulas.gradients(want, arriving.double(), {**leaves, "x": wide})
    for name, gradient in mine.items():
        off = (gradient.double() - right[name]).abs().max()
        assert off <= 1e-5 * right[name].abs().max(), name
    assert all(gradient.abs().max() > 0 for gradient in mine.values())


@pytest.mark.parametrize(("kind", "name"), CASES)
@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_empty(kind: type, name: str, shape: tuple[int, int]) -> None:
    layer = made(kind, name, 0)
    x = tokens(layer, *shape).requires_grad_()
    out, cache = layer(x, output_cache=True)
    assert out.shape == x.shape
    out.sum().backward()
    assert not x.grad.any()
    for mine, start in zip(cache, layer.init_cache(shape[0]), strict=True):
        assert (mine is None and start is None) or torch.equal(mine, start)


def test_every_parameter_of_a_fresh_layer_learns() -> None:
    """Nothing starts where its gradient is zero."""
    for layer in (FlashPDSSM(16), PDSSM(6, readout="mlp")):
        layer(torch.randn(2, 12, layer.d_model)).pow(3).sum().backward()
        for name, parameter in layer.named_parameters():
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("kind", "name", "fused"),
    [(FlashPDSSM, "odd", False), (FlashPDSSM, "odd", True), (PDSSM, "linear", None)],
)
def test_a_temperature_set_between_forward_and_backward(
    kind: type, name: str, fused: bool | None
) -> None:
    """By annealing, or by the buffers that ``DistributedDataParallel`` sends around."""
    found = []
    for later in (0.7, 3.0):
        layer = made(kind, name, 0)
        if fused is not None:
            layer.fused = fused
        out = layer(tokens(layer, 2, 5))
        layer.temperature.fill_(later)
        out.sin().sum().backward()
        found.append([parameter.grad for parameter in layer.parameters()])
    for mine, right in zip(*found, strict=True):
        assert torch.equal(mine, right)
