"""Activation checkpointing as ``transformers`` switches it on: blocks are computed again."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.nn.test_padding import batch

pytest.importorskip("transformers", reason="the adapter is tested where transformers is installed")
hf: Any = importlib.import_module("pdssm_compiler.nn.hugging_face")
REENTRANT = {"use_reentrant": True}
AGAIN = {"use_reentrant": False}


@pytest.fixture(params=["scans", "hybrid"])
def model(request: pytest.FixtureRequest) -> Any:
    from tests.nn.test_hugging_face import built

    return built(request.param == "hybrid").train()


def loss(model: Any) -> torch.Tensor:
    tokens, mask = batch([3, 7, 5])
    labels = tokens.masked_fill(mask == 0, -100)
    out: torch.Tensor = model(tokens, attention_mask=mask, labels=labels).loss
    return out


def calls(model: Any) -> list[int]:
    """How often each block's mixer is called, counted from now on."""
    counts = [0 for _ in model.lm.blocks]

    def counted(number: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[number] += 1

        return hook

    for number, block in enumerate(model.lm.blocks):
        block.mixer.register_forward_pre_hook(counted(number))
    return counts


def run(model: Any, made: Callable[[Any], torch.Tensor] = loss) -> tuple[list[torch.Tensor], int]:
    """Gradients, and how many tensors the forward keeps for them."""
    kept = []
    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        value = made(model)
    value.backward()
    return [parameter.grad.clone() for parameter in model.parameters()], len(kept)


@pytest.mark.parametrize("options", [None, REENTRANT, AGAIN])
def test_gradients_and_what_is_kept(model: Any, options: dict[str, bool] | None) -> None:
    assert model.supports_gradient_checkpointing
    want, plainly = run(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    counts = calls(model)
    got, kept = run(model)
    assert counts == [2, 2, 2]
    for mine, theirs in zip(got, want, strict=True):
        assert torch.equal(mine, theirs)
    # Each block keeps what it is given as well, which is not seen here.
    assert kept + len(counts) < plainly / 4
    model.gradient_checkpointing_disable()
    counts[:] = [0, 0, 0]
    assert run(model)[1] == plainly
    assert counts == [1, 1, 1]


def test_only_in_training(model: Any) -> None:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=AGAIN)
    counts = calls(model)
    run(model.eval())
    assert counts == [1, 1, 1]


def test_hidden_states(model: Any) -> None:
    """They have the gradients that they have without."""

    def states(model: Any) -> torch.Tensor:
        found = model(batch([7])[0], output_hidden_states=True).hidden_states
        total: torch.Tensor = sum(state.sin().sum() for state in found)
        return total

    want, _ = run(model, states)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=AGAIN)
    for mine, theirs in zip(run(model, states)[0], want, strict=True):
        assert torch.equal(mine, theirs)


def test_caches(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    """None is given, with a warning, where blocks are computed again; one is taken."""
    from transformers.utils.logging import warning_once

    tokens, _ = batch([7, 7])
    with torch.no_grad():
        first = model(tokens[:, :4], use_cache=True)[hf._CACHE]

    def rest(model: Any) -> torch.Tensor:
        logits: torch.Tensor = model(tokens[:, 4:], **{hf._CACHE: first}).logits
        return logits.sin().sum()

    want, _ = run(model, rest)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=AGAIN)
    counts = calls(model)
    for mine, theirs in zip(run(model, rest)[0], want, strict=True):
        assert torch.equal(mine, theirs)
    assert counts == [2, 2, 2]
    warning_once.cache_clear()
    assert hf._CACHE not in model(tokens, use_cache=True)
    assert "use_cache=True does not go with gradient checkpointing, so no cache" in caplog.text
    caplog.clear()
    with torch.no_grad():
        assert isinstance(model(tokens, use_cache=True)[hf._CACHE], hf.PdssmCache)
        got = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=3, do_sample=False
        )
    assert torch.equal(got, model.lm.generate(tokens, 3))
    assert not caplog.text


@pytest.mark.skipif(
    not hasattr(hf.PdssmForCausalLM, "activation_checkpointing_enable"),
    reason="every_n_layers came with transformers 5",
)
def test_every_other_block(model: Any) -> None:
    want, _ = run(model)
    model.activation_checkpointing_enable(every_n_layers=2)
    counts = calls(model)
    for mine, theirs in zip(run(model)[0], want, strict=True):
        assert torch.equal(mine, theirs)
    assert counts == [2, 1, 2]
