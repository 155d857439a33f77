"""A small causal language model: :class:`CausalLM`."""

import inspect
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from pdssm_compiler.arguments import check_tensor
from pdssm_compiler.ir.errors import shown
from pdssm_compiler.nn.arguments import check_count, parameters_of, positive
from pdssm_compiler.nn.attention import AttentionCache, CausalAttention
from pdssm_compiler.nn.block import Block
from pdssm_compiler.nn.cache import LayerCache
from pdssm_compiler.nn.flash import FlashPDSSM
from pdssm_compiler.nn.padding import read_mask
from pdssm_compiler.runtime.errors import ArgumentError

ModelCache = tuple[LayerCache | AttentionCache, ...]


class CausalLM(nn.Module):
    """Flash PD-SSM mixers, with attention in every n-th layer: embedding, blocks, norm, tied head.

    **Initialisation.** Embeddings are normal with 0.02, which with a tied head gives logits of the
    order of 1 and less; what each of the ``2 · layers`` branches adds to the residual stream is
    scaled down by ``1/√(2 · layers)``, so that its variance does not grow with depth.

    Args:
        vocabulary: how many tokens there are.
        d_model: the width.
        layers: how many blocks.
        attention_every: every how many blocks the mixer is attention (layer ``n``, ``2n``, …);
            None for none.
        attention_heads: its heads; of width 64 by default, or one.
        hidden: of the MLPs; ``2 · d_model`` by default.
        mixer: options of :class:`pdssm_compiler.nn.FlashPDSSM`.
        device: of the parameters.
        dtype: likewise.

    Raises:
        ArgumentError: a size that is none, or an option of the layers that is wrong.
    """

    # What the blocks are made of: another one has Block's arguments and results.
    block_type: type[Block] = Block

    def __init__(
        self,
        vocabulary: int,
        d_model: int,
        layers: int,
        *,
        attention_every: int | None = None,
        attention_heads: int | None = None,
        hidden: int | None = None,
        mixer: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory = parameters_of(device, dtype)
        self.vocabulary = positive("vocabulary", vocabulary)
        self.attention_every = (
            None if attention_every is None else positive("attention_every", attention_every)
        )
        heads = max(1, d_model // 64) if attention_heads is None else attention_heads
        hidden = 2 * d_model if hidden is None else positive("hidden", hidden)

        options = _mixer_options(mixer)

        def block(number: int) -> Block:
            mixer: FlashPDSSM | CausalAttention
            if self.attention_every and number % self.attention_every == 0:
                mixer = CausalAttention(d_model, heads, **factory)
            else:
                mixer = FlashPDSSM(d_model, **options, **factory)
            return self.block_type(mixer, hidden, **factory)

        count = positive("layers", layers)
        self.embedding = nn.Embedding(vocabulary, positive("d_model", d_model), **factory)
        self.blocks = nn.ModuleList(block(number) for number in range(1, count + 1))
        self.norm = nn.RMSNorm(d_model, **factory)
        self.reset_parameters()

    @property
    def _blocks(self) -> Sequence[Block]:
        return cast(Sequence[Block], self.blocks)

    def reset_parameters(self) -> None:
        """Start anew; see the class."""
        nn.init.normal_(self.embedding.weight, 0, 0.02)
        for block in self._blocks:
            block.reset_parameters(1 / math.sqrt(2 * len(self.blocks)))
        self.norm.reset_parameters()

    def init_cache(self, batch_size: int) -> ModelCache:
        """The cache of sequences that begin: one of each layer."""
        return tuple(block.mixer.init_cache(batch_size) for block in self._blocks)

    def forward(
        self,
        tokens: torch.Tensor,
        *,
        cache: ModelCache | None = None,
        cu_seqlens: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        output_cache: bool = False,
        output_hidden_states: bool = False,
        step: bool = False,
    ) -> Any:
        """Logits of the token after each.

        Args:
            tokens: integers ``[B, T]``.
            cache: what came before, one of each layer.
            cu_seqlens: offsets of packed sequences ``[S + 1]``, with ``B = 1``; with attention,
                not together with caches.
            attention_mask: of a batch that is padded on the left, booleans or integers
                ``[B, T]``, 0 at padding. It is as if the padding were not there; logits there mean
                nothing. Of this call's tokens alone: the cache knows of the padding in it. Padding
                on the right is taken where no cache is wanted: no token sees it.
            output_cache: whether the cache after these tokens is wanted as well.
            output_hidden_states: whether what the blocks are given and give is wanted as well.
            step: what :meth:`step` calls this with. It goes through the module's own call, so
                that what hangs on that, as the parameters' gathering by ``fully_shard``, is done.

        Returns:
            ``logits`` ``[B, T, vocabulary]``, or a tuple of them and what else is wanted: the
            cache, then the hidden states, a tuple of ``layers + 1`` tensors ``[B, T, d_model]``:
            the embeddings, what each block gives, and of the last one what the norm makes of it.

        Raises:
            ArgumentError: another shape or dtype, a cache of something else, or, on a CPU, a token
                that is not of the vocabulary.
        """
        _check_tokens(tokens, 1 if step else 2)
        self._check_cache(cache)
        options = {"cu_seqlens": cu_seqlens, "output_cache": output_cache, "step": step}
        if attention_mask is not None:
            if step:
                raise ArgumentError(
                    "a step is of one token of each sequence, so there is no padding; leave out "
                    "attention_mask"
                )
            options["attention_mask"] = read_mask(attention_mask, tokens, cache, output_cache)
        x = self._embedded(tokens)
        caches, states = [], []
        for number, block in enumerate(self._blocks):
            if output_hidden_states:
                states.append(x)
            x = block(x, cache=None if cache is None else cache[number], **options)
            if output_cache or step:
                x, after = x
                caches.append(after)
        x = self.norm(x)
        logits = functional.linear(x, self.embedding.weight)
        found: tuple[Any, ...] = (logits,)
        if output_cache or step:
            found += (tuple(caches),)
        if output_hidden_states:
            found += ((*states, x),)
        return found if len(found) > 1 else logits

    def step(self, tokens: torch.Tensor, cache: ModelCache) -> tuple[torch.Tensor, ModelCache]:
        """One token ``[B]`` of each sequence: ``(logits [B, vocabulary], cache)``."""
        after: tuple[torch.Tensor, ModelCache] = self(tokens, cache=cache, step=True)
        return after

    def _embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling():
            embedded: torch.Tensor = self.embedding(tokens)
            return embedded
        try:
            return self.embedding(tokens)  # type: ignore[no-any-return]
        except IndexError as error:
            wrong = (tokens < 0) | (tokens >= self.vocabulary)
            if not wrong.any():
                raise
            at = wrong.nonzero()[0].tolist()
            raise ArgumentError(
                f"tokens{at} = {int(tokens[tuple(at)])} is none of the vocabulary of "
                f"{self.vocabulary}; compare the tokenizer's with the model's"
            ) from error

    @torch.no_grad()
    def generate(
        self,
        tokens: torch.Tensor,
        count: int,
        *,
        attention_mask: torch.Tensor | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        end: int | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Go on from prompts, token by token from the cache.

        Args:
            tokens: integers ``[B, T]``, at least one token each.
            count: how many tokens to add.
            attention_mask: of prompts of several lengths, padded on the left, as in
                :meth:`forward`.
            temperature: 0 takes the likeliest token; otherwise logits are divided by it and a
                token is drawn.
            top_k: draw among that many likeliest alone.
            end: the token that ends a sequence: after it there is no other, and when all have
                ended no more are made. Looking costs a synchronisation a token. A model that
                ``fully_shard`` has sharded goes on to the last one: other ranks may need to.
            generator: of the draws.

        Returns:
            the prompts with their padding and what follows, int64 ``[B, T + count]``, or shorter
            if all ended.

        Raises:
            ArgumentError: no token to begin with, or an option out of range.
        """
        _check_tokens(tokens, 2)
        if tokens.shape[1] == 0:
            raise ArgumentError("generate needs a prompt: at least one token of each sequence")
        if attention_mask is not None:
            attention_mask = read_mask(attention_mask, tokens, None, True)
            empty = (~attention_mask[:, -1]).nonzero()
            if len(empty):
                raise ArgumentError(
                    f"generate needs a prompt, and attention_mask[{int(empty[0])}] is 0 "
                    f"everywhere; give that sequence a token, or leave it out"
                )
        check_count("count", count)
        _check_temperature(temperature)
        if end is not None:
            check_count("end", end)
            if end >= self.vocabulary:
                raise ArgumentError(
                    f"end={shown(end)} is none of the vocabulary of {self.vocabulary}, so no "
                    f"sequence would end; compare the tokenizer's with the model's"
                )
        if top_k is not None:
            top_k = min(positive("top_k", top_k), self.vocabulary)
        found = [tokens.long()]
        # A rank that stops would leave the others waiting for its parameters.
        may_stop = end is not None and not _gathers(self)
        logits, cache = self(tokens, attention_mask=attention_mask, output_cache=True)
        logits, ended = logits[:, -1], torch.zeros_like(tokens[:, 0], dtype=torch.bool)
        for number in range(count):
            if number:
                logits, cache = self.step(found[-1][:, 0], cache)
            following = _choose(logits.float(), temperature, top_k, generator)
            if end is not None:
                following = torch.where(ended, end, following)
                ended = ended | (following == end)
            found.append(following[:, None])
            if may_stop and bool(ended.all()):
                break
        return torch.cat(found, 1)

    def _check_cache(self, cache: ModelCache | None) -> None:
        if cache is None:
            return
        kinds = (LayerCache, AttentionCache)
        if not isinstance(cache, tuple | list) or not all(isinstance(c, kinds) for c in cache):
            raise ArgumentError(
                f"cache must be a tuple of a cache for each layer, got {shown(cache)}; take what "
                f"init_cache or the last call gave"
            )
        if len(cache) != len(self.blocks):
            raise ArgumentError(
                f"cache must have one entry a layer, {len(self.blocks)}, got {len(cache)}; take "
                f"what init_cache or the last call gave"
            )

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f"vocabulary={self.vocabulary}, attention_every={self.attention_every}"


def _gathers(model: nn.Module) -> bool:
    """Whether a call takes other processes: some part of it is sharded by ``fully_shard``."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(m, fsdp.FSDPModule) for m in model.modules())


def _mixer_options(mixer: dict[str, Any] | None) -> dict[str, Any]:
    """The mixer's own options.

    Raises:
        ArgumentError: no mapping, or an option that it does not have or that the model gives it.
    """
    if mixer is not None and not isinstance(mixer, Mapping):
        raise ArgumentError(f"mixer must be a dict of FlashPDSSM's options, got {shown(mixer)}")
    given = dict(mixer or {})
    known = set(inspect.signature(FlashPDSSM).parameters) - {"d_model", "device", "dtype"}
    for name in given:
        if name not in known:
            raise ArgumentError(
                f"mixer has no option {name!r}; there are {', '.join(sorted(known))}"
            )
    return given


def _check_tokens(tokens: torch.Tensor, rank: int) -> None:
    check_tensor("tokens", tokens)
    if tokens.dtype not in (torch.int32, torch.int64) or tokens.dim() != rank:
        axes = "[B, T]" if rank == 2 else "[B]"
        raise ArgumentError(
            f"tokens must be int32 or int64 {axes}, got {tokens.dtype} {list(tokens.shape)}; "
            f"convert by .long(), and one token of each sequence goes to step as [B]"
        )


def _check_temperature(temperature: float) -> None:
    """Refuse what logits cannot be divided by, in float32.

    Raises:
        ArgumentError: no number, or one that is neither 0 nor one of float32's range.
    """
    try:
        value = -1.0 if isinstance(temperature, str) else float(temperature)
    except (TypeError, ValueError, RuntimeError):
        value = -1.0
    range_ = torch.finfo(torch.float32)
    if not (value == 0 or range_.tiny <= value <= range_.max):
        raise ArgumentError(
            f"temperature must be at least 0, got {shown(temperature)}; 0 takes the likeliest "
            f"token, and float32 divides by {range_.tiny:.3g} to {range_.max:.3g}"
        )


def _choose(
    logits: torch.Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None
) -> torch.Tensor:
    """The next tokens ``[B]``."""
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None:
        least = logits.topk(top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    # The largest is taken off before the division, which so can only give -inf.
    shares = torch.softmax((logits - logits.amax(-1, keepdim=True)) / temperature, -1)
    return torch.multinomial(shares, 1, generator=generator).squeeze(1)
