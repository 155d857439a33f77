"""Fused scans on a GPU: every template, values and gradients as on a CPU."""

import pytest
import torch

from pdssm_compiler import IndexRangeError, check
from pdssm_compiler.schedules.templates.base import Config
from pdssm_compiler.schedules.templates.triton_lookback import TritonLookbackConfig
from tests.expressions import CASES, Expressions, draw
from tests.public.test_fusion import assert_agrees, fused
from tests.public.test_fusion_choices import READ_OUT, assert_as_defined, logits_for


def on_gpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.cuda() for name, tensor in tensors.items()}


pytestmark = pytest.mark.usefixtures("poisoned_memory")

TEMPLATES = pytest.mark.parametrize(
    "config",
    [
        None,
        "cuda-rows",
        "cuda-chunks",
        "cuda-step",
        "triton-rows",
        "triton-chunks",
        # Chunks of 2 tokens: the heuristic's are compiled for a quarter of a minute.
        TritonLookbackConfig(rows=1, num_warps=1, tokens=2, window=4),
        "torch-chunks",
        "torch-tokens",
    ],
    ids=lambda config: "triton-lookback" if isinstance(config, Config) else config,
)


@pytest.mark.parametrize("case", CASES, ids=str)
@TEMPLATES
def test_values_and_gradients(case: Expressions, config: Config | str | None) -> None:
    scan = fused(case, "cuda", config=config)
    for length in (1, 4, 9):
        assert_agrees(case, scan, on_gpu(draw(case, 2, length, 3)))
    check()


@pytest.mark.parametrize("surrogate", ["active", "dense"])
@TEMPLATES
def test_logits(config: Config | str | None, surrogate: str) -> None:
    scan = fused(READ_OUT, "cuda", config=config)
    for length in (1, 9):
        tensors = on_gpu(logits_for(READ_OUT, 2, length, 3))
        assert_as_defined(READ_OUT, scan, tensors, surrogate=surrogate)
    check()


def test_long_segments() -> None:
    case = CASES[0]
    scan = fused(case, "cuda", segment_length=None)
    assert_agrees(case, scan, on_gpu(draw(case, 1, 3000, 2)))


def test_an_index_out_of_range_is_told_within_its_segment() -> None:
    case = CASES[0]
    scan = fused(case, "cuda", segment_length=4)
    tensors = on_gpu(draw(case, 1, 9, 1))
    tensors["selection"][0, 6, 0] = 99

    def call() -> None:
        scan(**tensors | {"phase": tensors["phase"].requires_grad_()})
        check()

    # Told by the first call that comes after it has run: the next segment's, or the check.
    with pytest.raises(IndexRangeError, match=r"selection\[b=0, t=2 of a segment, h=0\]"):
        call()
