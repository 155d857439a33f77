"""What the model for ``transformers`` refuses of a call: the checks of its arguments."""

import inspect
from typing import Any

import torch

from pdssm_compiler.runtime.errors import ArgumentError

# What collators, tokenizers and older versions' generation give every model. It changes nothing:
# sequences are told apart by cu_seqlens or cu_seq_lens_q.
UNUSED = frozenset(
    {
        "cache_position",
        "cu_seq_lens_k",
        "max_length_k",
        "max_length_q",
        "seq_idx",
        "token_type_ids",
    }
)
# What the losses of transformers take; Trainer gives the first.
_OF_LOSS = frozenset({"num_items_in_batch", "ignore_index", "shift_labels"})
_OFFSETS = (
    "run into one another without their offsets: lay all in one row and pass cu_seqlens "
    "(DataCollatorWithFlattening gives them with return_flash_attn_kwargs=True)"
)


def check_names(given: dict[str, Any], model: Any) -> None:
    """Refuse further arguments that nothing would read, so mistyped ones; None is as not given.

    Raises:
        ArgumentError: names one that is neither the loss's nor of what every model is given.
    """
    names = [name for name, value in given.items() if value is not None]
    if all(name in UNUSED or name in _OF_LOSS for name in names):
        return
    # A loss of one's own has options of its own.
    options = inspect.signature(model.loss_function).parameters.values()
    of_loss = _OF_LOSS | {each.name for each in options if each.default is not each.empty}
    for name in names:
        if name not in UNUSED | of_loss:
            *own, _ = inspect.signature(model.forward).parameters
            raise ArgumentError(
                f"forward has no argument {name!r}; it takes {', '.join(own)}, for the loss "
                f"{', '.join(sorted(of_loss))}, and without effect {', '.join(sorted(UNUSED))}"
            )


def check_attentions(wanted: bool | None) -> None:
    """Refuse to be asked for what an output never has, rather than answer None.

    Raises:
        ArgumentError: attentions are wanted.
    """
    if wanted:
        raise ArgumentError(
            "output_attentions asks for what this model does not give; leave it out, and put "
            "forward hooks on model.lm.blocks"
        )


def check_unpacked(given: dict[str, Any]) -> None:
    """Refuse to go on from packed sequences: what is generated is one token of each row.

    Raises:
        ArgumentError: offsets or numbers of packed sequences.
    """
    for name in ("cu_seq_lens_q", "seq_idx"):
        if given.get(name) is not None:
            raise ArgumentError(
                f"generate goes on from rows that are a sequence each, and {name} is of packed "
                f"ones; leave it out, and give each sequence a row, padded on the left"
            )


def check_packed(
    position_ids: torch.Tensor | None,
    seq_idx: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
) -> None:
    """Refuse packed sequences that no offsets tell apart.

    Raises:
        ArgumentError: ``seq_idx``, or positions that begin anew within a row, behind another token
            than padding.
    """
    if seq_idx is not None:
        raise ArgumentError(f"seq_idx numbers packed sequences, which {_OFFSETS}")
    if position_ids is None or position_ids.dim() != 2 or torch.compiler.is_compiling():
        return
    anew = position_ids[:, 1:] == 0
    length = position_ids.shape[1]
    if attention_mask is not None and attention_mask.dim() == 2 and length > 1:
        # Of the call's tokens: the last ones of a mask that has those of the cache as well.
        of_call = attention_mask[:, -length:].bool()
        anew = anew & of_call[:, :-1] if of_call.shape[1] == length else anew
    if anew.any():
        row, token = anew.nonzero()[0].tolist()
        raise ArgumentError(
            f"position_ids begin anew at token {token + 1} of row {row}, so the row holds packed "
            f"sequences, which {_OFFSETS}"
        )


def check_step(attention_mask: torch.Tensor | None) -> None:
    """Refuse a mask by which the one token of a call is padding: the cache would take it in.

    Raises:
        ArgumentError: it is 0 there.
    """
    if attention_mask is None or attention_mask.dim() != 2 or torch.compiler.is_compiling():
        return
    if attention_mask.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    if not attention_mask[:, -1].all():
        row = int((attention_mask[:, -1] == 0).nonzero()[0])
        raise ArgumentError(
            f"attention_mask[{row}, -1] is 0, and a call of one token after a cache has no "
            f"padding; give that sequence a token, or leave it out by batch_select_indices"
        )
