"""``PDSSM``: noise in training, and soft inference."""

import math

import pytest
import torch

from pdssm_compiler.nn import PDSSM
from pdssm_compiler.runtime.errors import ArgumentError


def made(**options: object) -> tuple[PDSSM, torch.Tensor]:
    torch.manual_seed(0)
    layer = PDSSM(6, state_size=5, dictionary_size=3, dtype=torch.float64, **options)
    return layer, torch.randn(2, 7, 6, dtype=torch.float64)


def test_noise_is_of_training_alone() -> None:
    plain, x = made()
    noisy, _ = made(noise=1.0)
    assert torch.equal(plain.eval()(x), noisy.eval()(x))
    noisy.train()
    torch.manual_seed(1)
    first, second = noisy(x), noisy(x)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(noisy(x), first)
    noisy.noise = 0.0
    assert torch.equal(noisy(x), plain.train()(x))


def test_noise_trains() -> None:
    layer, x = made(noise=0.5)
    layer(x).square().mean().backward()
    gradients = {name: p.grad for name, p in layer.named_parameters()}
    assert all(grad is not None and grad.isfinite().all() for grad in gradients.values())
    assert gradients["dictionary_logits"].abs().max() > 0


@pytest.mark.parametrize("orientation", ["column", "row"])
def test_soft_steps_are_the_whole(orientation: str) -> None:
    layer, x = made(orientation=orientation)
    hard = layer(x)
    layer.choice = "soft"
    whole, after = layer(x, output_cache=True)
    assert not torch.equal(whole, hard)
    cache, outs = layer.init_cache(2), []
    for token in x.unbind(1):
        out, cache = layer.step(token, cache)
        outs.append(out)
    torch.testing.assert_close(torch.stack(outs, 1), whole)
    torch.testing.assert_close(cache.state, after.state)


@pytest.mark.parametrize("noise", [-1.0, math.inf, "1"])
def test_noise_is_a_number(noise: object) -> None:
    with pytest.raises(ArgumentError, match="noise must be a number of at least 0, got"):
        PDSSM(6, noise=noise)
