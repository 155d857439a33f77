"""Maps of a soft mixture: the definition of the argmax, the operators, and what they keep."""

import numpy as np
import pytest
import torch

from pdssm_compiler.nn import mixture
from pdssm_compiler.nn.mixture import mixed_maps, mixture_gradient, mixture_ones
from pdssm_compiler.runtime.errors import ArgumentError


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """``a·b + c`` rounded once, float32; a long double holds the product and the sum's bits."""
    wide = np.longdouble
    return (a.astype(wide) * b.astype(wide) + c.astype(wide)).astype(np.float32)


@pytest.mark.parametrize("dim", [-2, -1])
def test_the_sum_is_in_order_and_fused(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near-ties are decided as defined: all candidates of a column differ by a few roundings."""
    monkeypatch.setattr(mixture, "_BLOCK_ON_CPU", 200)  # some blocks, the last one short
    K, N, random = 6, 7, np.random.default_rng(0)
    weights = random.random((3, 11, K), np.float32)
    dictionary = random.standard_normal((K, 1, 1), np.float32).repeat(N, 1).repeat(N, 2)
    dictionary += np.float32(1e-7) * random.standard_normal((K, N, N), np.float32)
    want = np.zeros((3, 11, N, N), np.float32)
    for k in range(K):
        want = fused(weights[..., k, None, None], dictionary[k], want)
    got = mixed_maps(torch.from_numpy(weights), torch.from_numpy(dictionary), dim)
    assert got.dtype == torch.int32
    assert np.array_equal(got, want.argmax(dim))
    # A matrix product adds in another order, and chooses other maps.
    product = np.einsum("btk,kij->btij", weights, dictionary)
    assert not np.array_equal(got, product.argmax(dim))


def given(grad: bool = False) -> tuple[torch.Tensor, ...]:
    """Weights, dictionary, temperature, moved."""
    torch.manual_seed(0)
    weights = torch.randn(2, 3, 4).softmax(-1).requires_grad_(grad)
    dictionary = torch.randn(4, 5, 5, requires_grad=grad)
    return weights, dictionary, torch.tensor(0.7), torch.randn(2, 3, 5, 2)


def test_autocast_changes_nothing() -> None:
    """A backward that is called within a region computes in float32 all the same."""
    leaves = given()
    arriving = torch.randn(2, 3, 5, 2)
    want = mixed_maps(*leaves[:2], -2), *mixture_gradient(*leaves, arriving, -2)
    with torch.autocast("cpu", torch.bfloat16):
        got = mixed_maps(*leaves[:2], -2), *mixture_gradient(*leaves, arriving, -2)
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(grad: bool) -> None:
    weights, dictionary, temperature, moved = given(grad)
    for op, arguments in (
        (mixed_maps, (weights.detach(), dictionary.detach(), -2)),
        (mixture_ones, (weights, dictionary, temperature, moved, -1)),
        (
            mixture_gradient,
            (
                weights.detach(),
                dictionary.detach(),
                temperature,
                moved,
                torch.randn(2, 3, 5, 2),
                -2,
            ),
        ),
    ):
        assert set(torch.library.opcheck(op, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize("dim", [-2, -1])
def test_blocks_change_nothing(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = given(True)

    def gradients() -> tuple[torch.Tensor, ...]:
        arriving = torch.ones_like(arguments[3])
        return torch.autograd.grad(mixture_ones(*arguments, dim), arguments[:2], arriving)

    whole = gradients()
    monkeypatch.setattr(mixture, "_BLOCK_ON_CPU", 2 * 25)
    torch.testing.assert_close(gradients(), whole)


def test_nothing_quadratic_is_kept() -> None:
    """Between forward and backward: inputs alone, whatever ``T × N × N`` may be."""
    kept: list[int] = []
    arguments = given(True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        mixture_ones(*arguments, -2)
    assert sorted(kept) == sorted(tensor.numel() for tensor in arguments)


def test_a_second_derivative_is_refused() -> None:
    arguments = given(True)
    ones = mixture_ones(*arguments, -2)
    (first,) = torch.autograd.grad(ones, arguments[0], torch.ones_like(ones), create_graph=True)
    with pytest.raises(ArgumentError, match="the gradient of a mixture of maps has no gradient"):
        first.sum().backward()
