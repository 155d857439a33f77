"""What a user would run instead: operators of public packages, where they are installed.

A function a peer gives the operator bound to random inputs of the same tokens and model width, in
bfloat16, and the tensors that have gradients. Nothing here is imported unless it is asked for. The
calls follow the packages' published signatures: `mamba_ssm` 2 and `flash-linear-attention` (`fla`)
since its tensors are `[B, T, H, ...]`.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch

from pdssm_compiler.ir.errors import PdssmError
from pdssm_compiler.nn.convolution_op import convolve_silu
from pdssm_compiler.suite import Shape


class NotInstalledError(PdssmError, ImportError):
    """The package of a peer is not there."""


class Bound(NamedTuple):
    """An operator with its inputs.

    Attributes:
        forward: gives the output.
        leaves: the inputs that have gradients.
        sizes: what it was given, for the table.
    """

    forward: Callable[[], torch.Tensor]
    leaves: list[torch.Tensor]
    sizes: str


@dataclass(frozen=True)
class Peer:
    """A public operator.

    Attributes:
        name: what it is called in the field.
        package: what to install.
        bind: makes its call.
    """

    name: str
    package: str
    bind: Callable[[Shape, torch.device], Bound]


def ssd(shape: Shape, device: torch.device) -> Bound:
    """Mamba-2's state-space dual: heads of 64, state 128, expanded twice as the layer does."""
    module = _module("mamba_ssm.ops.triton.ssd_combined", "mamba-ssm")
    width, state, chunk = 64, 128, 256
    heads = 2 * shape.heads * shape.state_size // width
    x = _random(device, shape.batch, shape.length, heads, width)
    steps = _random(device, shape.batch, shape.length, heads)
    decay = -torch.rand(heads, device=device).add_(0.5)
    inputs, outputs = (_random(device, shape.batch, shape.length, 1, state) for _ in range(2))
    leaves = [t.requires_grad_() for t in (x, steps, decay, inputs, outputs)]

    def forward() -> torch.Tensor:
        return module.mamba_chunk_scan_combined(*leaves, chunk, dt_softplus=True)

    return Bound(forward, leaves, f"{heads} heads of {width}, state {state}, chunks of {chunk}")


def gated_delta_rule(shape: Shape, device: torch.device) -> Bound:
    """The gated delta rule: keys of 256 and values of 512 a head, keys of length 1."""
    module = _module("fla.ops.gated_delta_rule", "flash-linear-attention")
    key, value = 256, 512
    heads = max(1, shape.heads * shape.state_size // key)
    sizes = (shape.batch, shape.length, heads)
    q, k = (torch.nn.functional.normalize(_random(device, *sizes, key), dim=-1) for _ in range(2))
    v = _random(device, *sizes, value)
    # The gate in log space, and how much of a value is written.
    g = torch.nn.functional.logsigmoid(torch.randn(sizes, device=device))
    beta = _random(device, *sizes).sigmoid()
    leaves = [t.requires_grad_() for t in (q, k, v, g, beta)]
    named = dict(zip(("q", "k", "v", "g", "beta"), leaves, strict=True))

    def forward() -> torch.Tensor:
        return module.chunk_gated_delta_rule(**named)[0]

    return Bound(forward, leaves, f"{heads} heads, {key}×{value}")


PEERS = (
    Peer("Mamba-2 SSD", "mamba-ssm", ssd),
    Peer("gated delta rule", "flash-linear-attention", gated_delta_rule),
)


@dataclass(frozen=True)
class PeerLayer:
    """A public layer.

    Attributes:
        name: what it is called in the field.
        package: what to install.
        make: gives it, of a model width.
        output: its output among what its call gives.
    """

    name: str
    package: str
    make: Callable[[int], torch.nn.Module]
    output: Callable[[Any], torch.Tensor]


def mamba2(d_model: int) -> torch.nn.Module:
    """The Mamba-2 layer: state 128, expanded twice."""
    package = _module("mamba_ssm", "mamba-ssm")
    # The layer takes its convolution's kernel for granted, and calls None where there is none.
    _module("causal_conv1d", "causal-conv1d, which mamba-ssm's layer needs")
    layer: torch.nn.Module = package.Mamba2(d_model=d_model, d_state=128, d_conv=4, expand=2)
    return layer


class _WithOurConvolution(torch.nn.Module):
    """Mamba-2's layer, in whose calls the kernel of its convolution is this package's."""

    def __init__(self, layer: torch.nn.Module, module: ModuleType) -> None:
        super().__init__()
        self.layer, self.module = layer, module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = self.module.causal_conv1d_fn
        self.module.causal_conv1d_fn = _convolved
        try:
            out: torch.Tensor = self.layer(x)
        finally:
            self.module.causal_conv1d_fn = before
        return out


def _convolved(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, activation: str, **_: Any
) -> torch.Tensor:
    """``causal_conv1d_fn`` as Mamba-2 calls it: ``x`` ``[B, channels, T]``, then SiLU."""
    return convolve_silu(x.transpose(1, 2), weight, bias)[0].transpose(1, 2)


def mamba2_with_our_convolution(d_model: int) -> torch.nn.Module:
    """The Mamba-2 layer where ``causal-conv1d`` is not built: out of the path that is fused with
    that package's kernel, with a kernel of Triton's in its place.
    """
    package = _module("mamba_ssm", "mamba-ssm")
    inside = _module("mamba_ssm.modules.mamba2", "mamba-ssm")
    layer = package.Mamba2(
        d_model=d_model, d_state=128, d_conv=4, expand=2, use_mem_eff_path=False
    )
    return _WithOurConvolution(layer, inside)


def gated_delta_net(d_model: int) -> torch.nn.Module:
    """The layer of the gated delta rule: keys of 256 and values of 512 a head."""
    layer: torch.nn.Module = _module("fla.layers", "flash-linear-attention").GatedDeltaNet(
        hidden_size=d_model, num_heads=max(1, d_model // 256), head_dim=256, expand_v=2
    )
    return layer


LAYERS = (
    PeerLayer("Mamba-2", "mamba-ssm", mamba2, lambda found: found),
    PeerLayer(
        "Mamba-2 with our convolution",
        "mamba-ssm",
        mamba2_with_our_convolution,
        lambda found: found,
    ),
    PeerLayer(
        "gated delta net", "flash-linear-attention", gated_delta_net, lambda found: found[0]
    ),
)


def forward_and_backward(bound: Bound) -> Callable[[], object]:
    """The operator and all its gradients, as one call."""
    grad = torch.randn_like(bound.forward())
    return lambda: torch.autograd.grad(bound.forward(), bound.leaves, grad)


def _random(device: torch.device, *sizes: int) -> torch.Tensor:
    return torch.randn(sizes, device=device, dtype=torch.bfloat16)


def _module(name: str, package: str) -> ModuleType:
    """A peer's module.

    Raises:
        NotInstalledError: it cannot be imported; says which of its own needs is missing.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        top = name.partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and error.name == top:
            raise NotInstalledError(f"not installed: {package}") from None
        raise NotInstalledError(f"{package} cannot be imported: {error}") from error
