"""The language model: decoding equals the forward pass, with and without attention."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from pdssm_compiler.nn import CausalAttention, CausalLM, FlashPDSSM
from pdssm_compiler.runtime.errors import ArgumentError, OffsetError

KINDS: dict[str, dict[str, Any]] = {"scans": {}, "hybrid": {"attention_every": 2}}


def made(**options: Any) -> CausalLM:
    """A model whose logits differ."""
    torch.manual_seed(0)
    model = CausalLM(11, 4, 3, attention_heads=2, mixer={"conv_width": 3}, dtype=torch.float64,
                     **options)  # fmt: skip
    with torch.no_grad():
        model.embedding.weight.mul_(50)
    return model


def prompts(batch: int, length: int) -> torch.Tensor:
    return torch.randint(11, (batch, length), generator=torch.Generator().manual_seed(1))


def test_every_nth_layer_is_attention() -> None:
    model = CausalLM(5, 4, 5, attention_every=2)
    kinds = [type(block.mixer) for block in model.blocks]
    assert kinds == [FlashPDSSM, CausalAttention, FlashPDSSM, CausalAttention, FlashPDSSM]


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_equals_the_forward(kind: str) -> None:
    """Each token by a step, after a piece by a call; and no token sees a later one."""
    model, tokens = made(**KINDS[kind]), prompts(2, 9)
    with torch.no_grad():
        want = model(tokens)
        for cut in (0, 1, 6):
            first, cache = model(tokens[:, :cut], cache=model.init_cache(2), output_cache=True)
            second, cache = model(tokens[:, cut : cut + 2], cache=cache, output_cache=True)
            outs = [first, second]
            for token in tokens[:, cut + 2 :].unbind(1):
                out, cache = model.step(token, cache)
                outs.append(out[:, None])
            torch.testing.assert_close(torch.cat(outs, 1), want)


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states(kind: str) -> None:
    """With and without caches, and token by token."""
    model, tokens = made(**KINDS[kind]), prompts(2, 5)
    logits, states = model(tokens, output_hidden_states=True)
    assert len(states) == len(model.blocks) + 1
    assert torch.equal(states[0], model.embedding(tokens))
    for number, block in enumerate(model.blocks):
        after = block(states[number])
        last = number + 1 == len(model.blocks)
        assert torch.equal(states[number + 1], model.norm(after) if last else after)
    assert torch.equal(logits, functional.linear(states[-1], model.embedding.weight))
    again, cache, same = model(tokens[:, :-1], output_cache=True, output_hidden_states=True)
    assert torch.equal(again, model(tokens[:, :-1]))
    with torch.no_grad():
        _, _, one = model(tokens[:, -1], cache=cache, step=True, output_hidden_states=True)
    for before, last, whole in zip(same, one, states, strict=True):
        torch.testing.assert_close(torch.cat([before, last[:, None]], 1), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_equals_separate(kind: str) -> None:
    model, tokens, offsets = made(**KINDS[kind]), prompts(1, 9), [0, 4, 4, 5, 9]
    got = model(tokens, cu_seqlens=torch.tensor(offsets))
    alone = [model(tokens[:, begin:end]) for begin, end in pairwise(offsets) if end > begin]
    torch.testing.assert_close(got, torch.cat(alone, 1))


def test_attention_is_a_softmax_over_the_tokens_until_each() -> None:
    """By its formula, values and gradients; what it is in caches and batches is held to this."""
    torch.manual_seed(0)
    layer, x = CausalAttention(6, 2, dtype=torch.float64), torch.randn(2, 5, 6).double()
    x.requires_grad_()
    query, key, value = (x @ layer.in_proj.weight.T).chunk(3, -1)
    heads = []
    for part in (slice(0, 3), slice(3, 6)):
        scores = query[..., part] @ key[..., part].mT / 3**0.5
        shares = scores.exp().tril() / scores.exp().tril().sum(-1, keepdim=True)
        heads.append(shares @ value[..., part])
    want = torch.cat(heads, -1) @ layer.out_proj.weight.T
    got = layer(x)
    torch.testing.assert_close(got, want)
    leaves = [x, *layer.parameters()]
    torch.testing.assert_close(
        *(torch.autograd.grad(out.sin().sum(), leaves) for out in (got, want))
    )


def test_attention_by_itself_checks_offsets() -> None:
    model, tokens = made(attention_every=1), prompts(1, 9)
    got = model(tokens, cu_seqlens=torch.tensor([0, 4, 9], dtype=torch.int32))
    torch.testing.assert_close(got[:, 4:], model(tokens[:, 4:]))
    for wrong, message in (([0, 5], "leaves tokens over"), ([0, 7, 4, 9], "must not decrease")):
        with pytest.raises(OffsetError, match=message):
            model(tokens, cu_seqlens=torch.tensor(wrong))


def test_a_wrapped_projection_has_a_cache() -> None:
    """As adapters wrap it: a module with a layer in it, in the layer's place."""
    model, tokens = made(attention_every=1), prompts(1, 3)
    want = model.generate(tokens, 2)
    for block in model.blocks:
        block.mixer.in_proj = nn.Sequential(block.mixer.in_proj)
    assert torch.equal(model.generate(tokens, 2), want)
    torch.testing.assert_close(model(tokens, cache=model.init_cache(1)), model(tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_generate(kind: str) -> None:
    """As by whole forward passes; and as a search with one beam twice."""
    model, tokens = made(**KINDS[kind]), prompts(3, 4)
    want = tokens
    with torch.no_grad():
        for _ in range(6):
            want = torch.cat([want, model(want)[:, -1:].argmax(-1)], 1)
    assert torch.equal(model.generate(tokens, 6), want)
    assert torch.equal(model.generate(tokens, 0), tokens)
    draw = {"temperature": 0.7, "top_k": 1}
    assert torch.equal(model.generate(tokens, 6, **draw), want)
    with torch.no_grad():
        _, cache = model(tokens, output_cache=True)
        rows = torch.tensor([2, 2, 0])
        got, _ = model.step(want[rows, 4], tuple(each.select(rows) for each in cache))
    torch.testing.assert_close(got.argmax(-1), want[rows, 5])


def test_generate_ends() -> None:
    model, tokens = made(), prompts(3, 4)
    free = model.generate(tokens, 8)
    end = int(free[0, 5])
    got = model.generate(tokens, 8, end=end)
    for mine, without in zip(got, free, strict=True):
        places = (without[4:] == end).nonzero()
        last = 4 + int(places[0]) if len(places) else got.shape[1] - 1
        assert torch.equal(mine[: last + 1], without[: last + 1])
        assert (mine[last + 1 :] == end).all()
    stop = 5 + int((free[0, 4:] == end).nonzero()[0])
    assert torch.equal(model.generate(tokens[:1], 8, end=end), free[:1, :stop])


def test_draws() -> None:
    """By their shares, repeatable by the generator."""
    model, tokens = made(), prompts(1, 3).repeat(2000, 1)
    first, again = (
        model.generate(tokens, 1, temperature=1.5, generator=torch.Generator().manual_seed(0))
        for _ in range(2)
    )
    assert torch.equal(first, again)
    shares = torch.softmax(model(tokens[:1])[0, -1].detach() / 1.5, -1)
    counts = torch.bincount(first[:, -1], minlength=11) / 2000
    torch.testing.assert_close(counts.double(), shares, rtol=0, atol=0.05)
    few = model.generate(tokens, 1, temperature=1.5, top_k=2)[:, -1].unique()
    assert set(few.tolist()) == set(shares.topk(2).indices.tolist())


def test_it_learns_a_text() -> None:
    torch.manual_seed(0)
    model = CausalLM(7, 16, 2, attention_every=2)
    text = torch.tensor([[0, 1, 2, 3, 1, 4, 1]])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    for _ in range(15):
        loss = torch.nn.functional.cross_entropy(model(text[:, :-1])[0], text[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(model.generate(text[:, :1], 6), text)


WRONG: dict[str, tuple[Any, str]] = {
    "dtype": (
        lambda m: m(torch.zeros(1, 2)),
        r"tokens must be int32 or int64 \[B, T\], got torch.* convert by .long\(\), and one token",
    ),
    "rank": (lambda m: m.step(prompts(1, 2), ()), r"tokens must be int32 or int64 \[B\], got"),
    "cache": (lambda m: m(prompts(1, 2), cache=()), "cache must have one entry a layer, 3, got 0"),
    "no caches": (
        lambda m: m(prompts(1, 2), cache=3),
        "cache must be a tuple of a cache for each layer, got 3; take what init_cache",
    ),
    "other things": (
        lambda m: m(prompts(1, 2), cache=(1, 2, 3), attention_mask=torch.ones(1, 2).long()),
        r"cache must be a tuple of a cache for each layer, got \(1, 2, 3\)",
    ),
    "prompt": (lambda m: m.generate(prompts(1, 0), 2), "generate needs a prompt: at least one"),
    "temperature": (lambda m: m.generate(prompts(1, 1), 2, temperature=-1), "must be at least 0"),
    "no temperature": (
        lambda m: m.generate(prompts(1, 1), 2, temperature="1"),
        "temperature must be at least 0, got '1'; 0 takes the likeliest token",
    ),
    "temperature of float64": (
        lambda m: m.generate(prompts(1, 1), 2, temperature=1e-40),
        r"temperature must be .*, and float32 divides by 1.18e-38 to 3.4e\+38",
    ),
    "endless": (
        lambda m: m.generate(prompts(1, 1), 1, temperature=float("inf")),
        "must be at lea",
    ),
    "count": (
        lambda m: m.generate(prompts(1, 1), 2.5),
        "count must be a whole number of at least 0, got 2.5; pass an int",
    ),
    "negative": (lambda m: m.generate(prompts(1, 1), -1), "count must be a whole number of at le"),
    "end": (
        lambda m: m.generate(prompts(1, 1), 1, end=[1, 2]),
        r"end must be a whole number of at least 0, got \[1, 2\]; pass an int",
    ),
    "an end that is no token": (
        lambda m: m.generate(prompts(1, 1), 1, end=99),
        r"end=99 is none of the vocabulary of \d+, so no sequence would end; compare the token",
    ),
    "vocabulary": (
        lambda m: m(torch.tensor([[0, 1], [1, 99]])),
        r"tokens\[1, 1\] = 99 is none of the vocabulary of \d+; compare the tokenizer's",
    ),
    "batch": (
        lambda m: m.init_cache(-1),
        "batch_size must be a whole number of at least 0, got -1; pass an int",
    ),
    "top_k": (lambda m: m.generate(prompts(1, 1), 2, top_k=0), "top_k must be a whole number"),
    "packed": (
        lambda m: m(prompts(1, 2), cu_seqlens=torch.tensor([0, 2]), output_cache=True),
        "attention over packed sequences has no cache",
    ),
    "another cache": (
        lambda m: m(prompts(1, 2), cache=m.init_cache(1)[:1] * 3),
        "cache must be an AttentionCache of 1 sequences",
    ),
    "option": (
        lambda m: CausalLM(5, 4, 1, mixer={"width": 3}),
        "mixer has no option 'width'; there are bias, conv_width, dictionary_size, fused, heads",
    ),
    "the model's own": (
        lambda m: CausalLM(5, 4, 1, mixer={"d_model": 4}),
        "mixer has no option 'd_model'",
    ),
    "options": (
        lambda m: CausalLM(5, 4, 1, mixer=[3]),
        "mixer must be a dict of FlashPDSSM's opt",
    ),
    "sizes": (lambda m: CausalAttention(6, 4), "d_model=6 is not divisible by heads=4"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors(case: str) -> None:
    call, message = WRONG[case]
    with pytest.raises(ArgumentError, match=message):
        call(made(attention_every=2))
