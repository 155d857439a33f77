"""Scans under ``torch.autocast``: what decays and is carried is float32, drive and states are what
the drive is.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import pdssm_compiler
from pdssm_compiler import (
    ArgumentError,
    ScanSpec,
    flash_pd_scan,
    mixture_pd_scan,
    pd_scan,
    pd_scan_step,
    reference,
)
from pdssm_compiler.schedules.templates.torch_tokens import TorchTokens
from tests.public.scans import Tensors
from tests.torch_only import torch_only

LOW = [torch.bfloat16, torch.float16]
B, T, H, N, K = 2, 5, 2, 3, 4
CU_SEQLENS = torch.tensor([0, 2, 5])


@pytest.fixture(autouse=True)
def plain_torch() -> Any:
    """What a scan makes of its arguments is the same for every kernel."""
    with torch_only(TorchTokens()):
        yield


def numbers(dtype: torch.dtype, batch: int = B, sequences: int | None = None) -> Tensors:
    """Pairs, as a projection gives them; in float32 what those in low precision hold."""
    random = torch.Generator().manual_seed(0)
    tokens, rows = (batch, T, H, N, 2), (sequences or batch, H, N, 2)
    return {
        name: torch.randn(shape, generator=random).to(dtype) / 2
        for name, shape in (("diagonal", tokens), ("drive", tokens), ("initial_state", rows))
    }


def maps(batch: int = B) -> Tensors:
    random = torch.Generator().manual_seed(1)
    return {
        "dictionary": torch.randint(N, (H, K, N), generator=random),
        "selection": torch.randint(K, (batch, T, H), generator=random),
    }


def logits(batch: int = B) -> Tensors:
    random = torch.Generator().manual_seed(2)
    return {
        "dictionary_logits": torch.randn(H, K, N, N, generator=random),
        "selector_logits": torch.randn(batch, T, H, K, generator=random),
    }


def stepped(diagonal: torch.Tensor, drive: torch.Tensor, initial_state: torch.Tensor) -> Any:
    one = {"dictionary": maps()["dictionary"], "selection": maps()["selection"][:, 0]}
    state = pd_scan_step(initial_state, diagonal[:, 0], drive[:, 0], **one)
    return state, state


def packed(**given: torch.Tensor) -> Any:
    return pd_scan(**given, **maps(1), cu_seqlens=CU_SEQLENS, output_final_state=True)


def mixed(**given: torch.Tensor) -> Any:
    dictionary, selector = logits().values()
    return mixture_pd_scan(dictionary, selector.softmax(-1), **given, output_final_state=True)


CALLS: dict[str, Callable[..., tuple[torch.Tensor, torch.Tensor]]] = {
    "pd_scan": lambda **t: pd_scan(**t, **maps(), output_final_state=True),
    "reference": lambda **t: reference.pd_scan(**t, **maps(), output_final_state=True),
    "flash": lambda **t: flash_pd_scan(**t, **logits(), output_final_state=True),
    "mixture": mixed,
    "step": stepped,
    "packed": packed,
}


def given(call: str, dtype: torch.dtype) -> Tensors:
    return numbers(dtype, 1, 2) if call == "packed" else numbers(dtype)


@pytest.mark.parametrize("low", LOW)
@pytest.mark.parametrize("call", CALLS)
def test_low_diagonals_and_states_are_widened(call: str, low: torch.dtype) -> None:
    """As the caller would by ``.float()``; gradients come back in the dtype that came."""
    tensors = given(call, low)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    wide = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    with torch.autocast("cpu", low):
        got = CALLS[call](**leaves)
    want = CALLS[call](**{n: x if n == "drive" else x.float() for n, x in wide.items()})
    for mine, right in zip(got, want, strict=True):
        assert mine.dtype == right.dtype
        assert torch.equal(mine, right)
    assert got[0].dtype == (torch.float32 if call == "step" else low)
    assert got[1].dtype == torch.float32
    sums = [outputs[0].float().sum() + outputs[1].sum() for outputs in (got, want)]
    for mine, right in zip(
        torch.autograd.grad(sums[0], list(leaves.values())),
        torch.autograd.grad(sums[1], list(wide.values())),
        strict=True,
    ):
        assert mine.dtype == low
        assert torch.equal(mine, right)


@pytest.mark.parametrize("call", CALLS)
def test_without_autocast_they_are_refused(call: str) -> None:
    with pytest.raises(ArgumentError, match=r"diagonal has the unsupported dtype torch.bfloat16"):
        CALLS[call](**given(call, torch.bfloat16))
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=False),
        pytest.raises(ArgumentError, match="diagonal has the unsupported dtype"),
    ):
        CALLS[call](**given(call, torch.bfloat16))


@pytest.mark.parametrize("call", CALLS)
def test_float32_is_not_narrowed(call: str) -> None:
    """Nor is anything computed in low precision, with the backward under autocast as well."""

    def run() -> list[torch.Tensor]:
        leaves = [tensor.requires_grad_() for tensor in given(call, torch.float32).values()]
        names = ("diagonal", "drive", "initial_state")
        outputs = CALLS[call](**dict(zip(names, leaves, strict=True)))
        return [*outputs, *torch.autograd.grad([x.square().sum() for x in outputs], leaves)]

    want = run()
    with torch.autocast("cpu", torch.bfloat16):
        got = run()
    for mine, right in zip(got, want, strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, right)


def test_a_fused_scan() -> None:
    """What its expressions read is widened to what they were compiled for."""
    scan = pdssm_compiler.compile(
        ScanSpec(N, K), "cpu", diagonal=lambda a, phase: torch.polar(torch.exp(-a * a), phase)
    )
    random = torch.Generator().manual_seed(3)
    a, phase = torch.randn(2, B, T, H, N, generator=random).bfloat16()
    drive = numbers(torch.bfloat16)["drive"]
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = scan(a=a, phase=phase, drive=drive, **maps())
    want, _ = scan(a=a.float(), phase=phase.float(), drive=drive.float(), **maps())
    assert torch.equal(got, want)
    with pytest.raises(ArgumentError, match=r"a must be torch.float32, got torch.bfloat16"):
        scan(a=a, phase=phase, drive=drive.float(), **maps())


def test_compiled_by_torch() -> None:
    tensors, chosen = numbers(torch.bfloat16), maps()

    @torch.compile(fullgraph=True, backend="eager")
    def run(**given: torch.Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return pd_scan(**given, **chosen, output_final_state=True)

    want = CALLS["pd_scan"](**{n: x if n == "drive" else x.float() for n, x in tensors.items()})
    for mine, right in zip(run(**tensors), want, strict=True):
        assert torch.equal(mine, right)
