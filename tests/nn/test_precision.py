"""What stays in float32 when the rest is bfloat16."""

import pytest
import torch
from torch import nn

from pdssm_compiler.nn import PDSSM, FlashPDSSM
from tests.nn.layers import Layer

LOW = [torch.bfloat16, torch.float16]


def seen(layer: Layer) -> dict[str, torch.dtype]:
    """The dtypes of what the parts of a layer give, filled in by its next call."""
    found: dict[str, torch.dtype] = {}

    def note(name: str):  # type: ignore[no-untyped-def]
        def hook(_: nn.Module, __: object, output: torch.Tensor | tuple) -> None:
            found[name] = (output if isinstance(output, torch.Tensor) else output[0]).dtype

        return hook

    for name, part in layer.named_children():
        part.register_forward_hook(note(name))
    return found


@pytest.mark.parametrize("low", LOW)
def test_autocast_of_flash(low: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = FlashPDSSM(16)
    x = torch.randn(2, 40, 16)
    want, end = layer(x, output_cache=True)
    dtypes = seen(layer)
    with torch.autocast("cpu", low):
        got, cache = layer(x, output_cache=True)
        step, stepped = layer.step(x[:, 0], layer.init_cache(2))
    assert dtypes == {
        "in_proj": low,
        "conv": torch.float32,
        "token_proj": low,
        "diagonal": torch.float32,
        "out_proj": low,
    }
    assert (got.dtype, step.dtype) == (low, low)
    for each in (cache, stepped):
        assert (each.state.dtype, each.window.dtype) == (torch.float32, torch.float32)
    for mine, right in ((got, want), (cache.state, end.state)):
        assert (mine - right).norm() < 0.1 * right.norm()
    got.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_autocast_of_pdssm() -> None:
    torch.manual_seed(0)
    layer = PDSSM(8)
    x = torch.randn(2, 40, 8)
    want = layer(x)
    dtypes = seen(layer)
    inside: list[torch.dtype] = []
    layer.diagonal.magnitude.register_forward_hook(lambda *given: inside.append(given[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        got, cache = layer(x, output_cache=True)
    assert dtypes["drive_proj"] == dtypes["selector"] == dtypes["readout"] == torch.bfloat16
    assert dtypes["diagonal"] == cache.state.dtype == inside[0] == torch.float32
    torch.testing.assert_close(got.float(), want, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("kind", [FlashPDSSM, PDSSM])
def test_low_precision_parameters(kind: type, low: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = kind(16, dtype=low)
    x = torch.randn(1, 9, 16, dtype=low)
    want = layer.float()(x.float())
    layer = layer.to(low)
    dtypes = seen(layer)
    got, cache = layer(x, output_cache=True)
    assert got.dtype == low
    assert dtypes["diagonal"] == cache.state.dtype == torch.float32
    torch.testing.assert_close(got.float(), want, rtol=0.1, atol=0.1)
    got.float().sum().backward()


def test_a_magnitude_just_below_one_is_not_rounded_to_it() -> None:
    """``exp(-5e-4)`` is 1 in bfloat16: such a state would never forget."""
    layer = FlashPDSSM(4)
    with torch.no_grad():
        layer.diagonal.a_log.zero_()
        layer.diagonal.delta_bias.fill_(-7.6)
    zeros = torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        diagonal = layer.diagonal(zeros, zeros)
    want = torch.exp(-nn.functional.softplus(torch.tensor(-7.6, dtype=torch.float64)))
    assert want.bfloat16() == 1
    got = 1 - diagonal[..., 0].double()
    torch.testing.assert_close(got, (1 - want).expand(1, 1, 2, 2), rtol=2e-4, atol=0)
