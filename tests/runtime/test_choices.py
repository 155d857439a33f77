"""The backward of a hard choice: by a kernel only where torch need not see what it does."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pdssm_compiler.runtime import choices
from pdssm_compiler.runtime.choices import hard_choice

DENSE = pytest.mark.parametrize("dense", [False, True])


def chosen(dense: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and the entries chosen from them."""
    logits = torch.randn(2, 3, 2, 4).requires_grad_()
    return logits, entries_of(logits, dense)


def entries_of(logits: torch.Tensor, dense: bool) -> torch.Tensor:
    return hard_choice(logits, -1, torch.tensor(0.7), "logits", dense)[0]


@DENSE
def test_a_batch_of_cotangents(dense: bool) -> None:
    """Softmaxes are plain torch, so each cotangent gives what it gives by itself."""
    logits, entries = chosen(dense)
    arriving = torch.randn(5, *entries.shape)

    def gradient(grad: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(entries, logits, grad, retain_graph=True)[0]

    want = torch.stack([gradient(grad) for grad in arriving])
    (found,) = torch.autograd.grad(
        entries, logits, arriving, is_grads_batched=True, retain_graph=True
    )
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(torch.func.vmap(gradient)(arriving), want)


@contextmanager
def kernel_for_all() -> Iterator[list[torch.Tensor]]:
    """Have backwards find a kernel that takes any logits and writes sevens; what it wrote to."""
    written: list[torch.Tensor] = []

    def kernel(*given: torch.Tensor) -> None:
        given[-1].fill_(7.0)
        written.append(given[-1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choices, "_has_kernel", lambda logits: True)
        patch.setattr(choices, "surrogate_gradient", kernel)
        yield written


def test_a_plain_backward_is_by_the_kernel() -> None:
    logits, entries = chosen(False)
    with kernel_for_all() as written:
        (found,) = torch.autograd.grad(entries, logits, torch.ones_like(entries))
    assert len(written) == 1
    assert (found == 7.0).all()


@DENSE
@pytest.mark.parametrize("how", ["batched", "vmap", "differentiated again"])
def test_no_kernel_where_torch_must_see_what_is_done(how: str, dense: bool) -> None:
    logits, entries = chosen(dense)
    arriving = torch.randn(5, *entries.shape)

    def gradient(grad: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(entries, logits, grad, retain_graph=True)[0]

    want = gradient(arriving[1])
    with kernel_for_all() as written:
        if how == "batched":
            found = torch.autograd.grad(entries, logits, arriving, is_grads_batched=True)[0][1]
        elif how == "vmap":
            found = torch.func.vmap(gradient)(arriving)[1]
        else:
            (found,) = torch.autograd.grad(entries, logits, arriving[1], create_graph=True)
            assert found.requires_grad
    torch.testing.assert_close(found.detach(), want)
    assert not written


@DENSE
def test_no_kernel_in_what_is_traced(dense: bool) -> None:
    """With real tensors, which only the mode knows to be traced."""
    logits, entries = chosen(dense)
    arriving = torch.randn_like(entries)
    (want,) = torch.autograd.grad(entries, logits, arriving)

    def gradient(logits: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        leaf = logits.detach().requires_grad_()
        entries = entries_of(leaf, dense)
        with kernel_for_all() as written:
            (found,) = torch.autograd.grad(entries, leaf, grad)
        assert not written
        return found

    traced = make_fx(gradient)(torch.randn_like(logits), torch.zeros_like(arriving))
    torch.testing.assert_close(traced(logits, arriving), want)
