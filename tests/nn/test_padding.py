"""Batches padded on the left: each sequence as if it were alone, and beams over them."""

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdssm_compiler.nn import AttentionCache, CausalAttention, CausalLM, FlashPDSSM, LayerCache
from pdssm_compiler.runtime.errors import ArgumentError
from tests.nn.test_language import KINDS, made, prompts

LENGTH, VOCABULARY = 7, 11


def batch(lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens ``[B, LENGTH]``, at the padding any others, and the mask."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (len(lengths), LENGTH), generator=random)
    place = torch.arange(LENGTH)
    return tokens, (place >= LENGTH - torch.tensor(lengths)[:, None]).long()


def padded_lengths(least: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(least, LENGTH), min_size=1, max_size=3)


def assert_same_caches(got: Any, want: Any, row: int, length: int) -> None:
    """One sequence's caches, in a padded batch and alone."""
    for mine, right in zip(got, want, strict=True):
        if isinstance(mine, LayerCache):
            torch.testing.assert_close(mine.state[row], right.state[0])
            torch.testing.assert_close(mine.window[row], right.window[0])
        else:
            assert mine.mask is not None
            assert mine.mask[row].sum() == length
            torch.testing.assert_close(mine.keys[row, :, mine.mask[row]], right.keys[0])
            torch.testing.assert_close(mine.values[row, :, mine.mask[row]], right.values[0])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=3)
@given(lengths=padded_lengths(0), cut=st.integers(0, LENGTH), seed=st.integers(0, 99))
def test_as_alone(kind: str, lengths: list[int], cut: int, seed: int) -> None:
    """In one call, in two with a cut anywhere (in the padding, too), and in a step after them."""
    model = made(**KINDS[kind])
    tokens, mask = batch(lengths, seed)
    following = prompts(len(lengths), 1)[:, 0]
    with torch.no_grad():
        whole, cache = model(tokens, attention_mask=mask, output_cache=True)
        first, between = model(tokens[:, :cut], attention_mask=mask[:, :cut], output_cache=True)
        second, after = model(
            tokens[:, cut:], attention_mask=mask[:, cut:].bool(), cache=between, output_cache=True
        )
        stepped, _ = model.step(following, cache)
        assert whole.isfinite().all()
        torch.testing.assert_close(torch.cat([first, second], 1), whole)
        for row, length in enumerate(lengths):
            alone = tokens[row : row + 1, LENGTH - length :]
            want, own = model(alone, output_cache=True)
            torch.testing.assert_close(whole[row, LENGTH - length :], want[0])
            assert_same_caches(cache, own, row, length)
            assert_same_caches(after, own, row, length)
            step, _ = model.step(following[row : row + 1], own)
            torch.testing.assert_close(stepped[row], step[0])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: str) -> None:
    """Those of the sequences alone; padding has none."""
    model, lengths = made(**KINDS[kind]), [3, 7, 5, 0]
    tokens, mask = batch(lengths)
    logits = model(tokens, attention_mask=mask)
    padded = (logits * mask[..., None]).sin().sum()
    alone = sum(
        model(tokens[row : row + 1, LENGTH - length :]).sin().sum()
        for row, length in enumerate(lengths)
    )
    parameters = list(model.parameters())
    for mine, right in zip(
        torch.autograd.grad(padded, parameters),
        torch.autograd.grad(alone, parameters),
        strict=True,
    ):
        torch.testing.assert_close(mine, right, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_on_the_right_is_seen_by_no_token(kind: str) -> None:
    """So it is taken where nothing goes on from it, as in training."""
    model, tokens = made(**KINDS[kind]), prompts(3, 6)
    mask = torch.tensor([[0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]])
    got = model(tokens, attention_mask=mask)
    for row, (begin, end) in enumerate([(1, 4), (0, 6), (0, 1)]):
        want = model(tokens[row : row + 1, begin:end])
        torch.testing.assert_close(got[row, begin:end], want[0])
    with pytest.raises(ArgumentError, match=r"attention_mask\[0, 2\] is 0 behind a token"):
        model(tokens, attention_mask=mask.index_fill(1, torch.tensor([2]), 0))
    with pytest.raises(ArgumentError, match=r"mask\[0, 4\] is 0 behind .* no cache is wanted"):
        model(tokens, attention_mask=mask, output_cache=True)


@pytest.mark.parametrize("kind", KINDS)
def test_generate(kind: str) -> None:
    model, lengths = made(**KINDS[kind]), [1, 7, 4]
    tokens, mask = batch(lengths)
    got = model.generate(tokens, 5, attention_mask=mask)
    assert torch.equal(got[:, :LENGTH], tokens)
    for row, length in enumerate(lengths):
        want = model.generate(tokens[row : row + 1, LENGTH - length :], 5)
        assert torch.equal(got[row, LENGTH - length :], want[0])


@torch.no_grad()
def beams(model: CausalLM, tokens: torch.Tensor, mask: Any, count: int, width: int) -> Any:
    """A search with ``width`` beams a sequence: the best continuation of each, ``[B, count]``."""
    rows = torch.arange(len(tokens)).repeat_interleave(width)
    logits, cache = model(tokens, attention_mask=mask, output_cache=True)
    cache, logits = tuple(each.select(rows) for each in cache), logits[rows, -1]
    # All beams of a sequence are one to begin with.
    scores = torch.zeros(len(tokens), width, dtype=logits.dtype)
    scores[:, 1:] = -torch.inf
    written = torch.empty(len(rows), 0, dtype=torch.long)
    for number in range(count):
        if number:
            logits, cache = model.step(written[:, -1], cache)
        total = scores.view(-1, 1) + logits.log_softmax(-1)
        scores, best = total.view(len(tokens), -1).topk(width)
        origin = (best // VOCABULARY + width * torch.arange(len(tokens))[:, None]).flatten()
        written = torch.cat([written[origin], (best % VOCABULARY).view(-1, 1)], 1)
        cache = tuple(each.select(origin) for each in cache)
    return written.view(len(tokens), width, count)[:, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_beams_follow_their_caches(kind: str) -> None:
    """With a beam for every beginning the search is one through all continuations."""
    model, lengths = made(**KINDS[kind]), [2, 6]
    tokens, mask = batch(lengths)
    got = beams(model, tokens, mask, 2, VOCABULARY)
    every = torch.cartesian_prod(*[torch.arange(VOCABULARY)] * 2)
    for row, length in enumerate(lengths):
        alone = tokens[row, LENGTH - length :].expand(len(every), -1)
        with torch.no_grad():
            scores = model(torch.cat([alone, every], 1))[:, length - 1 : -1].log_softmax(-1)
        total = scores.gather(-1, every[..., None]).sum((1, 2))
        assert torch.equal(got[row], every[total.argmax()])


def test_selected_and_detached_caches_keep_their_mask() -> None:
    model = made(attention_every=2)
    tokens, mask = batch([3, 7])
    _, cache = model(tokens, attention_mask=mask, output_cache=True)
    attention = next(each for each in cache if isinstance(each, AttentionCache))
    assert torch.equal(attention.mask, mask.bool())
    assert torch.equal(attention.detach().mask, mask.bool())
    assert torch.equal(attention.select(torch.tensor([1, 1, 0])).mask, mask[[1, 1, 0]].bool())
    _, cache = model(tokens, output_cache=True)
    assert all(getattr(each, "mask", None) is None for each in cache)


def test_nothing_of_the_padding_is_seen() -> None:
    """A layer's inputs there may be anything that is a number."""
    layer = FlashPDSSM(16)
    x = torch.randn(2, 6, 16)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]).bool()
    other = torch.where(mask[..., None], x, 1e30)
    assert torch.equal(
        layer(other, attention_mask=mask)[mask], layer(x, attention_mask=mask)[mask]
    )
    torch.testing.assert_close(layer(x, attention_mask=mask)[0, 2:], layer(x[:1, 2:])[0])


def test_compiled_by_torch() -> None:
    model = CausalLM(VOCABULARY, 4, 1, mixer={"conv_width": 3})
    tokens, mask = batch([3, 7, 5])
    run = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        got = run(tokens, attention_mask=mask)
        torch.testing.assert_close(got, model(tokens, attention_mask=mask))


ONES = torch.ones(2, 4, dtype=torch.long)
WRONG: dict[str, tuple[Any, str]] = {
    "list": ([[1, 1]], r"attention_mask must be a torch.Tensor, got list"),
    "shape": (
        ONES[:, :3],
        r"\[B, T\] = \[2, 4\], 1 at tokens .* got torch.int64 \[2, 3\]; of this",
    ),
    "of four axes": (ONES[:, None, None], r"got torch.int64 \[2, 1, 1, 4\]"),
    "numbers": (ONES.float(), "must be booleans or integers .* got torch.float32"),
    "right": (
        torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        r"attention_mask\[1, 2\] is 0 behind a token .* padding_side='left'\)",
    ),
    "a gap": (torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1]]), r"attention_mask\[0, 1\] is 0 behind"),
    "segments": (ONES * 2, r"attention_mask\[0, 0\] = 2: it holds 1 at tokens .* by cu_seqlens"),
    "negative": (ONES - 2, r"attention_mask\[0, 0\] = -1: it holds 1"),
    "meta": (ONES.to("meta"), "attention_mask is on meta and the tokens on cpu; move it there"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("entry", ["forward", "generate"])
def test_errors(case: str, entry: str) -> None:
    model, (mask, message) = made(attention_every=2), WRONG[case]
    call = partial(model, output_cache=True) if entry == "forward" else model.generate
    given = (prompts(2, 4),) if entry == "forward" else (prompts(2, 4), 2)
    with pytest.raises(ArgumentError, match=message):
        call(*given, attention_mask=mask)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_of_what_goes_with_it(kind: str) -> None:
    model, tokens = made(**KINDS[kind]), prompts(2, 4)
    _, cache = model(tokens, output_cache=True)
    late = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    with pytest.raises(ArgumentError, match=r"attention_mask\[1, 0\] is 0 behind a token"):
        model(tokens, cache=cache, attention_mask=late)
    with pytest.raises(ArgumentError, match=r"a step is of one token .* leave out attention_mask"):
        model(tokens[:, 0], cache=cache, step=True, attention_mask=late[:, 0])
    with pytest.raises(ArgumentError, match=r"attention_mask\[1\] is 0 everywhere; give that"):
        model.generate(tokens, 2, attention_mask=torch.tensor([[1] * 4, [0] * 4]))
    with pytest.raises(ArgumentError, match="packed sequences have no padding; leave out"):
        model(tokens[:1], attention_mask=ONES[:1], cu_seqlens=torch.tensor([0, 4]))


@pytest.mark.parametrize("layer", [FlashPDSSM(4), CausalAttention(4, 2)])
def test_errors_of_layers(layer: Any) -> None:
    x = torch.zeros(2, 4, 4)
    with pytest.raises(ArgumentError, match=r"of a layer must be torch.bool \[B, T\] = \[2, 4\]"):
        layer(x, attention_mask=ONES)
    with pytest.raises(ArgumentError, match=r"got torch.bool \[4, 2\]; convert it"):
        layer(x, attention_mask=ONES.bool().T)
    with pytest.raises(ArgumentError, match="attention_mask is on meta and x on cpu; move it"):
        layer(x, attention_mask=ONES.bool().to("meta"))
