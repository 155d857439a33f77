"""The language model in the classes of Hugging Face's ``transformers``.

``import pdssm_compiler.nn.hugging_face`` registers it, so that ``AutoConfig`` and
``AutoModelForCausalLM`` know the type ``"pdssm"``. Nothing else of this package imports
``transformers``, which is not a dependency: ``pip install 'pdssm-compiler[transformers]'``.
"""

import inspect
from typing import Any

import torch
from torch import nn

from pdssm_compiler.nn.attention import AttentionCache
from pdssm_compiler.nn.block import Block
from pdssm_compiler.nn.cache import LayerCache
from pdssm_compiler.nn.hugging_face_arguments import (
    UNUSED,
    check_attentions,
    check_names,
    check_packed,
    check_step,
    check_unpacked,
)
from pdssm_compiler.nn.language import CausalLM, ModelCache
from pdssm_compiler.runtime.errors import ArgumentError

try:
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        GenerationMixin,
        PretrainedConfig,
        PreTrainedModel,
    )
    from transformers.modeling_layers import GradientCheckpointingLayer
    from transformers.modeling_outputs import CausalLMOutputWithPast
    from transformers.utils import logging
except ImportError as missing:
    raise ImportError(
        f"pdssm_compiler.nn.hugging_face needs the Python package transformers ({missing}): "
        f"pip install 'pdssm-compiler[transformers]'"
    ) from missing

_logger = logging.get_logger(__name__)

# What this version of transformers calls a cache, in calls and in outputs.
_CACHE = (
    "cache"
    if "cache" in inspect.signature(CausalLMOutputWithPast).parameters
    else "past_key_values"
)


class PdssmBlock(Block, GradientCheckpointingLayer):  # type: ignore[misc]
    """A block that ``transformers`` can have computed again in the backward."""

    # A call changes no cache, so it may be made again with the same one.
    _can_checkpoint_with_cache = True


class _Model(CausalLM):
    block_type = PdssmBlock


class PdssmConfig(PretrainedConfig):  # type: ignore[misc]
    """The arguments of :class:`pdssm_compiler.nn.CausalLM`, by the names of ``transformers``.

    Args:
        vocab_size: ``vocabulary``.
        hidden_size: ``d_model``.
        num_hidden_layers: ``layers``.
        attention_every: likewise.
        num_attention_heads: ``attention_heads``.
        intermediate_size: ``hidden``.
        mixer: options of :class:`pdssm_compiler.nn.FlashPDSSM`.
        use_cache: whether calls give caches, where they do not say and are not of training.
        others: those of ``transformers.PretrainedConfig``, such as ``eos_token_id``.
    """

    model_type = "pdssm"
    # A list, as Trainer adds one to it.
    keys_to_ignore_at_inference = [_CACHE]  # noqa: RUF012

    def __init__(
        self,
        vocab_size: int = 32000,
        hidden_size: int = 1024,
        num_hidden_layers: int = 24,
        attention_every: int | None = None,
        num_attention_heads: int | None = None,
        intermediate_size: int | None = None,
        mixer: dict[str, Any] | None = None,
        use_cache: bool = True,
        **others: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.attention_every = attention_every
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.mixer = dict(mixer or {})
        self.use_cache = use_cache
        # The head is the embedding, without a parameter of its own, so nothing is to be tied.
        super().__init__(**{"tie_word_embeddings": False, **others})

    def made(self, **factory: Any) -> CausalLM:
        """The model; ``factory`` is its ``device`` and ``dtype``."""
        return _Model(
            self.vocab_size,
            self.hidden_size,
            self.num_hidden_layers,
            attention_every=self.attention_every,
            attention_heads=self.num_attention_heads,
            hidden=self.intermediate_size,
            mixer=self.mixer,
            **factory,
        )


class PdssmCache:
    """The caches of all layers, as generation in ``transformers`` handles them.

    Not changed by a call, which gives another one: so one may be used twice.

    Attributes:
        layers: one of each layer.
        length: how many tokens it has seen, padding included.
    """

    # What generation asks of a cache: there is nothing static in it, nor can it be cut back.
    is_compileable = False
    is_croppable = False
    is_linear = (False,)

    def __init__(self, layers: ModelCache, length: int) -> None:
        self.layers = layers
        self.length = length

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens it has seen, padding included."""
        return self.length

    def select(self, rows: torch.Tensor) -> "PdssmCache":
        """The caches of some sequences in some order, ``rows`` int32 or int64 ``[B']``."""
        rows = rows.to(_first_tensor(self.layers).device)
        return PdssmCache(tuple(each.select(rows) for each in self.layers), self.length)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Sequences in the order of beams."""
        self.layers = self.select(beam_idx).layers

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Some of the sequences."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sequence several times."""
        first = _first_tensor(self.layers)
        rows = torch.arange(first.shape[0], device=first.device)
        self.reorder_cache(rows.repeat_interleave(repeats))

    def activate_past_recording(self) -> None:
        """What assisted generation wants, to take tokens back.

        Raises:
            ArgumentError: always.
        """
        self.crop(0)

    def crop(self, *_: Any) -> None:
        """Likewise.

        Raises:
            ArgumentError: always.
        """
        raise ArgumentError(
            "a state holds no earlier one, so tokens cannot be taken back from it: generate "
            "without assistant_model and prompt_lookup_num_tokens"
        )


def _first_tensor(layers: ModelCache) -> torch.Tensor:
    first: LayerCache | AttentionCache = layers[0]
    return first[0]


class PdssmForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """:class:`pdssm_compiler.nn.CausalLM`, which is its ``lm``, with a loss and ``transformers``'
    ``generate``, ``save_pretrained`` and ``from_pretrained``.

    What it does not take are embeddings in the place of tokens, and generation that takes tokens
    back (assisted generation) or wants a static cache.
    """

    config_class = PdssmConfig
    base_model_prefix = "lm"
    main_input_name = "input_ids"
    _is_stateful = True
    _no_split_modules = ("PdssmBlock",)
    supports_gradient_checkpointing = True

    def __init__(self, config: PdssmConfig) -> None:
        super().__init__(config)
        self.lm = config.made()
        self._made = False
        self.post_init()
        self._made = True

    def _init_weights(self, module: nn.Module) -> None:
        """Start what a checkpoint does not have; a new model has started itself."""
        own = dict(module.named_parameters(recurse=False)) | dict(
            module.named_buffers(recurse=False)
        )
        if not getattr(self, "_made", False) or not own:
            return
        fresh = dict(self.config.made(device="cpu").named_modules())
        name = next(name for name, each in self.lm.named_modules() if each is module)
        for key, tensor in own.items():
            if not getattr(tensor, "_is_hf_initialized", False):
                with torch.no_grad():
                    tensor.copy_(getattr(fresh[name], key))

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """It makes its own."""
        return False

    def get_input_embeddings(self) -> nn.Module:
        """The embedding, which is the head as well."""
        return self.lm.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Another embedding, of as many tokens as it has rows."""
        assert isinstance(value, nn.Embedding)
        self.lm.embedding = value
        self.lm.vocabulary = value.num_embeddings

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: PdssmCache | None = None,
        past_key_values: PdssmCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
        cu_seq_lens_q: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        position_ids: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        """Logits of the token after each, and a loss.

        Args:
            input_ids: integers ``[B, T]``, those after the cache's.
            attention_mask: 1 at tokens and 0 at padding, ``[B, T]`` or, with a cache, with what it
                has seen ``[B, length + T]``. Padding stands on the left; on the right as well
                where no cache is wanted.
            cache: what came before; ``past_key_values`` in older versions of ``transformers``.
            past_key_values: likewise.
            inputs_embeds: refused.
            cu_seqlens: offsets of packed sequences ``[S + 1]``, with ``B = 1``.
            cu_seq_lens_q: likewise, as ``DataCollatorWithFlattening`` names them.
            labels: integers ``[B, T]``, shifted here: usually ``input_ids``, with -100 where a
                token does not count, so at padding.
            use_cache: whether the cache after these tokens is wanted; ``config.use_cache`` in
                evaluation, False in training, beside labels and of packed sequences. While blocks
                are computed again in the backward there is none, with a warning.
            logits_to_keep: of how many last tokens logits are wanted, or of which; 0 for all.
            position_ids: there are no positions in the model, so they change nothing, but those of
                packed sequences, which begin anew within a row, are refused without the offsets.
            output_hidden_states: whether they are wanted; ``config.output_hidden_states``.
            output_attentions: refused.
            return_dict: False for a tuple of what there is; ``config.return_dict``.
            others: of the loss, such as ``num_items_in_batch``, and without effect what collators,
                tokenizers and generation give every model, such as ``token_type_ids``.

        Returns:
            ``CausalLMOutputWithPast``: ``loss``, ``logits`` ``[B, T, vocab_size]``, the cache as
            ``cache`` (``past_key_values`` in older versions), and ``hidden_states``,
            ``num_hidden_layers + 1`` of ``[B, T, hidden_size]``: the embeddings, what each block
            gives, and of the last one what the final norm makes of it.

        Raises:
            ArgumentError: as :class:`pdssm_compiler.nn.CausalLM`, or what it does not take, as a
                name that nothing reads.
        """
        if inputs_embeds is not None or input_ids is None:
            raise ArgumentError(
                "the model takes tokens: pass input_ids, and leave out inputs_embeds"
            )
        check_names(others, self)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        check_attentions(
            self.config.output_attentions if output_attentions is None else output_attentions
        )
        cu_seqlens = cu_seq_lens_q if cu_seqlens is None else cu_seqlens
        if cu_seqlens is None:
            check_packed(position_ids, others.get("seq_idx"), attention_mask)
        cache = past_key_values if cache is None else cache
        if cache is not None and not isinstance(cache, PdssmCache):
            raise ArgumentError(
                f"the cache must be a PdssmCache, got {type(cache).__name__}; pass what an "
                f"earlier call gave, and no cache_implementation"
            )
        if use_cache is None:
            use_cache = (
                self.config.use_cache
                and not self.training
                and labels is None
                and cu_seqlens is None
            )
        elif use_cache and self._recomputes():
            _logger.warning_once(
                "use_cache=True does not go with gradient checkpointing, so no cache is given; "
                "call model.gradient_checkpointing_disable() where one is wanted"
            )
            use_cache = False
        length = input_ids.shape[1]
        before = 0 if cache is None else cache.length
        # In a step the choices have no gradient.
        one = length == 1 and cache is not None and cu_seqlens is None
        step = one and not torch.is_grad_enabled()
        if step:
            check_step(attention_mask)
            attention_mask = None
        elif attention_mask is not None and attention_mask.dim() == 2 and cache is not None:
            attention_mask = attention_mask[:, attention_mask.shape[1] - length :]
        found = self.lm(
            input_ids[:, 0] if step else input_ids,
            cache=None if cache is None else cache.layers,
            attention_mask=attention_mask,
            cu_seqlens=cu_seqlens,
            output_cache=use_cache,
            output_hidden_states=output_hidden_states,
            step=step,
        )
        logits, *wanted = found if isinstance(found, tuple) else (found,)
        states = wanted.pop() if output_hidden_states else None
        if step:
            logits = logits[:, None]
            states = None if states is None else tuple(each[:, None] for each in states)
        loss = None
        if labels is not None:
            options = {name: value for name, value in others.items() if name not in UNUSED}
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **options
            )
        if isinstance(logits_to_keep, torch.Tensor) or logits_to_keep:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else (
                logits_to_keep
            )  # fmt: skip
            logits = logits[:, kept]
        after = PdssmCache(wanted[0], before + length) if use_cache else None
        output = CausalLMOutputWithPast(
            loss=loss, logits=logits, hidden_states=states, **{_CACHE: after}
        )
        if return_dict is None:
            return_dict = self.config.return_dict
        return output if return_dict else output.to_tuple()

    def _recomputes(self) -> bool:
        """Whether blocks of a call are computed again in the backward."""
        checkpointed = any(block.gradient_checkpointing for block in self.lm.blocks)
        return checkpointed and self.training and torch.is_grad_enabled()

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        *,
        next_sequence_length: int | None = None,
        cache_position: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: PdssmCache | None = None,
        past_key_values: PdssmCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        token_type_ids: torch.Tensor | None = None,
        **others: Any,
    ) -> dict[str, Any]:
        """What :meth:`forward` is called with: the tokens that the cache has not seen.

        How many those are ``generate`` says by ``next_sequence_length``, in older versions of
        ``transformers`` by the length of ``cache_position``. ``token_type_ids``, which some
        tokenizers give, are named so that ``generate`` takes them; they change nothing.

        Raises:
            ArgumentError: there is none, or what generation does not take.
        """
        check_attentions(output_attentions)
        check_unpacked(others)
        cache = past_key_values if cache is None else cache
        if next_sequence_length is None and cache_position is not None:
            next_sequence_length = cache_position.shape[0]
        if cache is not None and next_sequence_length is not None:
            if next_sequence_length < 1:
                raise ArgumentError(
                    f"the cache has seen {cache.length} tokens and the prompt has no more, so "
                    f"there is none to go on from; pass the sequences from the beginning, with at "
                    f"least one new token"
                )
            input_ids = input_ids[:, -next_sequence_length:]
        return {
            "input_ids": input_ids.contiguous(),
            "attention_mask": attention_mask,
            "inputs_embeds": inputs_embeds,
            _CACHE: cache,
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep or 0,
            "output_hidden_states": output_hidden_states,
        }

    def _reorder_cache(self, cache: PdssmCache, beam_idx: torch.Tensor) -> PdssmCache:
        return cache.select(beam_idx)


AutoConfig.register(PdssmConfig.model_type, PdssmConfig, exist_ok=True)
AutoModelForCausalLM.register(PdssmConfig, PdssmForCausalLM, exist_ok=True)

__all__ = ["PdssmCache", "PdssmConfig", "PdssmForCausalLM"]
