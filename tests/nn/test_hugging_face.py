"""The language model in ``transformers``: registered, trained, saved, generating by its cache."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from pdssm_compiler.nn import CausalLM
from pdssm_compiler.runtime.errors import ArgumentError
from tests.nn.test_padding import LENGTH, VOCABULARY, batch, beams

pytest.importorskip("transformers", reason="the adapter is tested where transformers is installed")
hf: Any = importlib.import_module("pdssm_compiler.nn.hugging_face")


def built(hybrid: bool) -> Any:
    """A model whose logits differ, by way of the registry."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = hf.PdssmConfig(
        VOCABULARY, 4, 3, attention_every=2 if hybrid else None, num_attention_heads=2,
        mixer={"conv_width": 3}, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    assert type(model) is hf.PdssmForCausalLM
    with torch.no_grad():
        model.lm.embedding.weight.mul_(50)
    model.lm.blocks[0].mixer.temperature.fill_(0.3)
    return model


@pytest.fixture(params=["scans", "hybrid"])
def model(request: pytest.FixtureRequest) -> Any:
    return built(request.param == "hybrid")


def test_logits_and_loss(model: Any) -> None:
    tokens, mask = batch([3, 7, 5])
    labels = tokens.masked_fill(mask == 0, -100)
    out = model(tokens, attention_mask=mask, labels=labels)
    assert torch.equal(out.logits, model.lm(tokens, attention_mask=mask))
    want = functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(out.loss, want)
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    # On the right as well, as data collators do; no cache is made beside labels.
    turned = model(tokens.flip(1), attention_mask=mask.flip(1), labels=labels.flip(1))
    assert turned.loss.isfinite()
    last = model(tokens, attention_mask=mask, logits_to_keep=2, return_dict=False)
    assert torch.equal(last[0], out.logits[:, -2:])


@pytest.mark.parametrize("use_cache", [True, False])
def test_generate(model: Any, use_cache: bool) -> None:
    tokens, mask = batch([3, 7, 5])
    for given in ({"attention_mask": mask}, {"attention_mask": torch.ones_like(tokens)}):
        got = model.generate(
            tokens, max_new_tokens=4, do_sample=False, use_cache=use_cache, **given
        )
        assert torch.equal(got, model.lm.generate(tokens, 4, **given))


def test_beams(model: Any) -> None:
    tokens, mask = batch([3, 7])
    got = model.generate(
        tokens, attention_mask=mask, max_new_tokens=2, num_beams=VOCABULARY, do_sample=False
    )
    assert torch.equal(got[:, LENGTH:], beams(model.lm, tokens, mask, 2, VOCABULARY))


def test_going_on_from_a_cache(model: Any) -> None:
    """A part by a call, with a mask of all tokens, and the rest by ``generate``."""
    tokens, mask = batch([3, 7])
    first = model(tokens[:, :5], attention_mask=mask[:, :5], use_cache=True)
    cache = first[hf._CACHE]
    assert cache.get_seq_length() == 5
    second = model(tokens[:, 5:], attention_mask=mask, use_cache=True, **{hf._CACHE: cache})
    whole = model(tokens, attention_mask=mask)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole.logits)
    got = model.generate(
        tokens, attention_mask=mask, max_new_tokens=4, do_sample=False, **{hf._CACHE: cache}
    )
    assert torch.equal(got, model.lm.generate(tokens, 4, attention_mask=mask))
    assert cache.get_seq_length() == 5
    ended = model.generate(
        tokens, attention_mask=mask, max_new_tokens=1, return_dict_in_generate=True
    )
    assert isinstance(ended[hf._CACHE], hf.PdssmCache)
    with pytest.raises(ArgumentError, match="the cache has seen 7 tokens and the prompt has"):
        model.generate(tokens, max_new_tokens=1, **{hf._CACHE: ended[hf._CACHE]})


def test_saved_and_loaded(model: Any, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.model_type, config.mixer) == ("pdssm", {"conv_width": 3})
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    state = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    tokens, _ = batch([7])
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    low = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert low.lm.embedding.weight.dtype == torch.bfloat16
    assert low(tokens).logits.dtype == torch.bfloat16


def test_what_a_checkpoint_lacks_starts_anew(model: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    missing = "lm.blocks.0.mixer.dictionary_logits"
    del state[missing]
    save_file(state, file, {"format": "pt"})
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, tensor in loaded.state_dict().items():
        if name in state and not name.startswith("lm.blocks.0.mixer."):
            assert torch.equal(tensor, state[name]), name
    logits = loaded.state_dict()[missing]
    size = logits.shape[-1]
    maps = logits.argmax(-2)
    assert torch.equal(maps.sort(-1).values, torch.arange(size).expand_as(maps))


def test_packed_sequences(model: Any) -> None:
    """As the collator of ``transformers`` gives them, and by offsets of one's own."""
    from transformers import DataCollatorWithFlattening

    tokens, _ = batch([7, 7])
    parts = [tokens[0, :5].tolist(), tokens[1, :3].tolist()]
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_tensors="pt")
    given = collator([{"input_ids": part} for part in parts])
    out = model(**given)
    alone = torch.cat([model(torch.tensor([part])).logits for part in parts], 1)
    torch.testing.assert_close(out.logits, alone)
    want = functional.cross_entropy(
        torch.cat([alone[0, :4], alone[0, 5:7]]), torch.tensor(parts[0][1:] + parts[1][1:])
    )
    torch.testing.assert_close(out.loss, want)
    offsets = model(given["input_ids"], cu_seqlens=torch.tensor([0, 5, 8]))
    assert torch.equal(offsets.logits, out.logits)
    bare = {name: given[name] for name in ("input_ids", "position_ids")}
    with pytest.raises(ArgumentError, match="position_ids begin anew at token 5 of row 0, so"):
        model(**bare)
    several, padded = batch([3, 7])
    anew = torch.tensor([[0, 0, 0, 0, 0, 1, 2], [0, 1, 0, 1, 2, 3, 4]])
    with pytest.raises(ArgumentError, match="position_ids begin anew at token 2 of row 1, so"):
        model(several, attention_mask=padded, position_ids=anew)
    left = model(several[:1], attention_mask=padded[:1], position_ids=anew[:1])
    assert torch.equal(left.logits, model(several[:1], attention_mask=padded[:1]).logits)
    straight = model(tokens[:1], position_ids=torch.arange(7)[None])
    assert torch.equal(straight.logits, model(tokens[:1]).logits)


def test_one_token_after_a_cache(model: Any) -> None:
    """With the gradients that several have, choices included; as padding it is refused."""
    tokens, _ = batch([7, 7])
    choice = model.lm.blocks[0].mixer.dictionary_logits
    first = model(tokens[:, :5], use_cache=True)[hf._CACHE]
    one = model(tokens[:, 5:6], **{hf._CACHE: first}).logits
    want, _ = model.lm(tokens[:, 5:6], cache=first.layers, output_cache=True)
    gradients = [
        torch.autograd.grad(out.square().sum(), choice, retain_graph=True)[0]
        for out in (one, want)
    ]
    assert torch.equal(*gradients)
    mask = torch.tensor([[1] * 6, [1] * 5 + [0]])
    with torch.no_grad():
        stepped = model(tokens[:, 5:6], attention_mask=mask[:1].expand(2, 6), **{hf._CACHE: first})
        with pytest.raises(
            ArgumentError, match=r"attention_mask\[1, -1\] is 0, and a call of one"
        ):
            model(tokens[:, 5:6], attention_mask=mask, **{hf._CACHE: first})
    torch.testing.assert_close(stepped.logits, one)


def test_another_vocabulary(model: Any) -> None:
    tokens, _ = batch([7])
    before = model(tokens).logits
    model.resize_token_embeddings(VOCABULARY + 3)
    assert model.get_input_embeddings().num_embeddings == model.lm.vocabulary
    torch.testing.assert_close(model(tokens).logits[..., :VOCABULARY], before)
    assert model.lm.generate(tokens, 1, temperature=1, top_k=99).shape == (1, LENGTH + 1)


def test_a_cache_s_rows(model: Any) -> None:
    tokens, _ = batch([7, 7])
    cache = model(tokens, use_cache=True)[hf._CACHE]
    want = model.lm.step(tokens[[1, 1, 0], 0], cache.select(torch.tensor([1, 1, 0])).layers)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([2, 3, 0]))
    got = model.lm.step(tokens[[1, 1, 0], 0], cache.layers)
    assert torch.equal(got[0], want[0])


def test_hidden_states(model: Any) -> None:
    """The embeddings, what each block gives, and the last one after the norm."""
    tokens, mask = batch([3, 7, 5])
    seen: list[torch.Tensor] = []
    for part in (model.lm.embedding, *model.lm.blocks, model.lm.norm):
        part.register_forward_hook(lambda *called: seen.append(called[-1]))
    given = {"attention_mask": mask, "use_cache": False}
    out = model(tokens, output_hidden_states=True, logits_to_keep=1, **given)
    del seen[-2]
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    for got, want in zip(out.hidden_states, seen, strict=True):
        assert torch.equal(got, want)
    assert model(tokens, **given).hidden_states is None
    model.config.output_hidden_states = True
    for chosen in (model(tokens, **given), model(tokens, return_dict=False, **given)):
        assert torch.equal(chosen[-1][-1], out.hidden_states[-1])
    assert model(tokens, output_hidden_states=False, **given).hidden_states is None
    assert isinstance(model(tokens, attention_mask=mask)[hf._CACHE], hf.PdssmCache)


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("use_cache", [True, False])
def test_hidden_states_of_generation(model: Any, use_cache: bool, beams: int) -> None:
    """Of each token that was made: the prompt's first, then its own, or all where no cache is."""
    tokens, mask = batch([3, 7, 5])
    options = {
        "attention_mask": mask, "max_new_tokens": 3, "num_beams": beams, "do_sample": False,
        "use_cache": use_cache,
    }  # fmt: skip
    out = model.generate(
        tokens, output_hidden_states=True, return_dict_in_generate=True, **options
    )
    assert torch.equal(out.sequences, model.generate(tokens, **options))
    assert len(out.hidden_states) == 3
    for number, states in enumerate(out.hidden_states):
        assert len(states) == model.config.num_hidden_layers + 1
        length = 1 if use_cache and number else LENGTH + (0 if use_cache else number)
        assert all(state.shape == (3 * beams, length, 4) for state in states)
    if beams > 1:
        return
    whole = model(
        out.sequences[:, :-1], attention_mask=functional.pad(mask, (0, 2), value=1),
        output_hidden_states=True,
    ).hidden_states  # fmt: skip
    for layer, want in enumerate(whole):
        made = [states[layer][:, -1] for states in out.hidden_states]
        torch.testing.assert_close(torch.stack(made, 1), want[:, -3:])


def test_names(model: Any) -> None:
    """What every model is given is taken, what nothing reads is refused."""
    tokens, _ = batch([7, 7])
    want = model(tokens, labels=tokens)
    for name in ("cu_seqlen", "position_id", "cache_params", "output_hidden_state"):
        refused = f"forward has no argument '{name}'; it takes input_ids, attention_mask, cache,.*"
        with pytest.raises(ArgumentError, match=refused + "for the loss .*num_items_in_batch"):
            model(tokens, token_type_ids=tokens, **{name: tokens})
        assert torch.equal(model(tokens, **{name: None}).logits, want.logits)
    others = dict.fromkeys(hf.UNUSED - {"seq_idx"}, tokens)
    got = model(tokens, labels=tokens, num_items_in_batch=torch.tensor(6), **others)
    assert torch.equal(got.logits, want.logits)
    torch.testing.assert_close(got.loss, 2 * want.loss)
    shifted = model(tokens, labels=tokens, shift_labels=tokens.roll(-1, 1), ignore_index=0).loss
    assert shifted.isfinite()
    assert not torch.equal(shifted, want.loss)
    with pytest.raises(ArgumentError, match="seq_idx numbers packed sequences, which run into"):
        model(tokens, seq_idx=torch.zeros_like(tokens))
    offsets = torch.tensor([0, 3, 7])
    packed = model(tokens[:1], cu_seqlens=offsets)
    numbered = model(tokens[:1], cu_seqlens=offsets, seq_idx=torch.tensor([[0] * 3 + [1] * 4]))
    assert torch.equal(numbered.logits, packed.logits)
    model.config.return_dict = False
    assert torch.equal(model(tokens, use_cache=False)[0], want.logits)


def test_a_loss_of_one_s_own(model: Any) -> None:
    def loss(
        logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, share: float = 1.0
    ) -> torch.Tensor:
        assert vocab_size == VOCABULARY
        return share * functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    tokens, _ = batch([7, 7])
    model.loss_function = loss
    whole = model(tokens, labels=tokens, token_type_ids=tokens).loss
    assert torch.equal(model(tokens, labels=tokens, share=0.5).loss, 0.5 * whole)
    for name in ("shares", "logits", "vocab_size"):
        with pytest.raises(ArgumentError, match=f"forward has no argument '{name}'.*, share,"):
            model(tokens, labels=tokens, **{name: 0.5})


def test_names_in_generation(model: Any) -> None:
    tokens, mask = batch([3, 7])
    options = {"attention_mask": mask, "max_new_tokens": 3, "do_sample": False}
    got = model.generate(tokens, token_type_ids=torch.zeros_like(tokens), **options)
    assert torch.equal(got, model.generate(tokens, **options))
    with pytest.raises(ValueError, match=r"not used by the model: \['cu_seqlen'\]"):
        model.generate(tokens, cu_seqlen=tokens, **options)
    with pytest.raises(ArgumentError, match="cu_seq_lens_q is of packed ones; leave it out"):
        model.generate(tokens, cu_seq_lens_q=torch.tensor([0, 7]), **options)


def test_errors(model: Any) -> None:
    tokens, mask = batch([3, 7])
    with pytest.raises(ArgumentError, match="the model takes tokens: pass input_ids"):
        model(inputs_embeds=torch.zeros(2, 3, 4))
    refused = pytest.raises(ArgumentError, match="output_attentions asks for what this model does")
    with refused:
        model(tokens, output_attentions=True)
    with refused:
        model.generate(tokens, max_new_tokens=1, output_attentions=True)
    model.config.output_attentions = True
    with refused:
        model(tokens)
    assert model(tokens, output_attentions=False).logits.shape[:2] == tokens.shape
    model.config.output_attentions = False
    with pytest.raises(ArgumentError, match="the cache must be a PdssmCache, got tuple"):
        model(tokens, **{hf._CACHE: ()})
    with pytest.raises(ArgumentError, match=r"attention_mask\[0, 3\] is 0 behind a token"):
        model.generate(tokens, attention_mask=mask.flip(1), max_new_tokens=1)
    with pytest.raises(ArgumentError, match="attention_mask must be booleans or integers"):
        model(tokens, attention_mask=mask[:, 1:])
    with pytest.raises(ValueError, match="assisted generation is not supported"):
        model.generate(tokens[:1], assistant_model=model, max_new_tokens=1)
    cache = model(tokens, use_cache=True)[hf._CACHE]
    for take_back in (cache.activate_past_recording, lambda: cache.crop(1)):
        with pytest.raises(ArgumentError, match="tokens cannot be taken back from it"):
            take_back()
    with pytest.raises(
        ArgumentError, match="d_model=38 has no divisor between its root and twice"
    ):
        hf.PdssmForCausalLM(hf.PdssmConfig(5, 38, 1))


def test_what_an_evaluation_ignores_is_a_list() -> None:
    """Trainer adds a list to it."""
    assert hf.PdssmConfig.keys_to_ignore_at_inference == [hf._CACHE]


def test_the_defaults_make_a_model() -> None:
    with torch.device("meta"):
        model = hf.PdssmForCausalLM(hf.PdssmConfig())
    assert isinstance(model.lm, CausalLM)
    assert model.num_parameters() > 3e8
