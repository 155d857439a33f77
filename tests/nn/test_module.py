"""What every ``torch.nn`` module can: state dicts, printing, devices, optimisers, a good start."""

import io
import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from pdssm_compiler.nn import PDSSM, CausalLM, FlashPDSSM, parameter_groups
from pdssm_compiler.nn.diagonal import DecayDiagonal, SigmoidDiagonal
from pdssm_compiler.runtime.errors import ArgumentError
from tests.nn.layers import CASES, made, tokens


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_state_dict_round_trip(kind: type, name: str) -> None:
    layer, other = made(kind, name, 0), made(kind, name, 1)
    x = tokens(layer, 2, 5)
    assert not torch.equal(layer(x), other(x))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    assert str(other.load_state_dict(torch.load(file))) == "<All keys matched successfully>"
    assert torch.equal(layer(x), other(x))


def test_names_of_a_state_dict_stay() -> None:
    """They are what checkpoints hold."""
    assert list(FlashPDSSM(4).state_dict()) == [
        "dictionary_logits", "skip", "temperature", "in_proj.weight", "conv.weight", "conv.bias",
        "token_proj.weight", "diagonal.a_log", "diagonal.delta_bias", "out_proj.weight",
    ]  # fmt: skip
    mlps = [
        f"diagonal.{mlp}.{layer}.{part}"
        for mlp in ("magnitude", "phase")
        for layer in (0, 2)
        for part in ("weight", "bias")
    ]
    assert list(PDSSM(4).state_dict()) == [
        "dictionary_logits", "skip", "temperature", *mlps, "selector.weight", "drive_proj.weight",
        "readout.weight", "readout.bias", "norm.weight", "norm.bias",
    ]  # fmt: skip


def test_printing() -> None:
    text = repr(nn.Sequential(FlashPDSSM(16, dictionary_size=3), PDSSM(5, orientation="row")))
    for piece in (
        "16, heads=4, state_size=4, dictionary_size=3, conv_width=4, surrogate='active'",
        "CausalConvolution(16, width=4)",
        "DecayDiagonal(heads=4, state_size=4)",
        "5, state_size=5, dictionary_size=8, hidden=10, readout='linear', orientation='row'",
    ):
        assert piece in text


def test_sizes_by_default() -> None:
    layer = FlashPDSSM(64)
    assert (layer.heads, layer.state_size, layer.dictionary_size) == (8, 8, 8)
    products = [p.numel() for name, p in layer.named_parameters() if "proj" in name]
    assert sum(products) == 10 * 64**2
    layer = FlashPDSSM(32, state_size=16)
    assert (layer.heads, layer.state_size, layer.dictionary_size) == (2, 16, 2)
    # Widths of models that are no squares.
    for width, state_size in ((1, 1), (128, 16), (512, 32), (768, 32), (1536, 48), (2048, 64)):
        layer = FlashPDSSM(width, device="meta")
        assert (layer.heads, layer.state_size) == (width // state_size, state_size)


@pytest.mark.parametrize(
    "kind", [FlashPDSSM, PDSSM, partial(CausalLM, 5, layers=2, attention_every=2)]
)
def test_from_the_meta_device(kind: Any) -> None:
    """Made without memory, then given some and started, as large models are."""
    layer = kind(d_model=16, device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    torch.manual_seed(0)
    layer.reset_parameters()
    torch.manual_seed(0)
    same = kind(d_model=16)
    same.reset_parameters()
    torch.manual_seed(0)
    same.reset_parameters()
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name]), name


@pytest.mark.parametrize("kind", [FlashPDSSM, PDSSM])
def test_shapes_on_the_meta_device(kind: Any) -> None:
    layer = kind(4, device="meta")
    out, cache = layer(torch.empty(2, 3, 4, device="meta"), output_cache=True)
    assert out.is_meta
    assert out.shape == (2, 3, 4)
    out, after = layer.step(torch.empty(2, 4, device="meta"), cache)
    assert out.shape == (2, 4)
    assert after.state.shape == cache.state.shape


@pytest.mark.parametrize("kind", [FlashPDSSM, PDSSM])
def test_a_default_device_changes_nothing(kind: Any) -> None:
    """Neither where the parameters are nor what a seed means."""
    torch.manual_seed(0)
    want = kind(16)
    torch.manual_seed(0)
    with torch.device("meta"):
        layer = kind(16, device="cpu")
        found, _ = layer(torch.zeros(1, 2, 16, device="cpu"), output_cache=True)
    assert found.device.type == "cpu"
    for name, value in want.state_dict().items():
        assert torch.equal(layer.state_dict()[name], value), name


@pytest.mark.parametrize("kind", [FlashPDSSM, PDSSM])
@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_maps_start_as_permutations(kind: type, size: int) -> None:
    options = {"heads": 2} if kind is FlashPDSSM else {}
    logits = kind(8, state_size=size, dictionary_size=5, **options).dictionary_logits.detach()
    maps = logits.argmax(-2)
    assert torch.equal(maps.sort(-1).values, torch.arange(size).expand_as(maps))
    assert torch.equal(maps[..., 0, :], torch.arange(size).expand_as(maps[..., 0, :]))
    assert torch.equal(logits.argmax(-1), maps.argsort(-1))  # by row as well
    if kind is FlashPDSSM and size > 1:
        chosen = logits.softmax(-2).amax(-2)
        assert 0.4 < chosen.mean() < 0.72


def test_memories_start_on_all_scales() -> None:
    zeros = torch.zeros(1, 1, 32, 32)
    torch.manual_seed(0)
    for loss in (
        1 - DecayDiagonal(32, 32)(zeros, zeros)[..., 0],
        1 - SigmoidDiagonal(8, 1024, 4)(torch.zeros(1, 1, 8)).norm(dim=-1),
    ):
        # Some last longer than 300 tokens, some shorter than 30.
        assert (loss < 1 / 300).any()
        assert (loss > 1 / 30).any()
        assert (loss > 0).all()


@pytest.mark.parametrize("kind", [FlashPDSSM, PDSSM])
def test_states_start_at_the_scale_of_the_tokens(kind: type) -> None:
    torch.manual_seed(0)
    layer = kind(16)
    x = torch.randn(8, 200, 16)
    _, cache = layer(x, output_cache=True)
    # Flash PD-SSM's u is what is left of a token after a projection, a convolution and SiLU.
    assert (0.01 if kind is FlashPDSSM else 0.2) < cache.state.square().mean() < 5


def test_parameter_groups() -> None:
    embedding = nn.Embedding(5, 16)
    model = nn.Sequential(embedding, FlashPDSSM(16), PDSSM(16), nn.LayerNorm(16), nn.Linear(16, 5))
    model[4].weight = embedding.weight  # shared: with the owner that does not decay
    model[2].norm.requires_grad_(False)
    decayed, kept = parameter_groups(model, 0.3)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    mlps = [f"2.diagonal.{m}.{i}" for m in ("magnitude", "phase") for i in (0, 2)]
    assert {names[id(p)] for p in decayed["params"]} == {
        "1.in_proj.weight", "1.conv.weight", "1.token_proj.weight", "1.out_proj.weight",
        "2.selector.weight", "2.drive_proj.weight", "2.readout.weight",
        *(f"{mlp}.weight" for mlp in mlps),
    }  # fmt: skip
    assert {names[id(p)] for p in kept["params"]} == {
        "0.weight", "1.dictionary_logits", "1.skip", "1.conv.bias", "1.diagonal.a_log",
        "1.diagonal.delta_bias", "2.dictionary_logits", "2.skip", "2.readout.bias",
        "3.weight", "3.bias", "4.bias", *(f"{mlp}.bias" for mlp in mlps),
    }  # fmt: skip
    total = [p for p in model.parameters() if p.requires_grad]
    assert len(decayed["params"]) + len(kept["params"]) == len(total)
    torch.optim.AdamW(parameter_groups(model), lr=1e-3)
    with pytest.raises(
        ArgumentError, match=re.escape("weight_decay must be a number of at least")
    ):
        parameter_groups(model, -0.1)
    with pytest.raises(ArgumentError, match=r"weight_decay must be .*, got '0.1'"):
        parameter_groups(model, "0.1")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"model must be a torch.nn.Module, got list; several"):
        parameter_groups([model])  # type: ignore[arg-type]
