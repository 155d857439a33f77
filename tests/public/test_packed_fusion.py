"""Packed sequences and reverse time by a fused scan: what each sequence gives alone."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from pdssm_compiler import ArgumentError
from tests.expressions import CASES, Expressions, Tensors, draw
from tests.public.packed import offsets
from tests.public.test_fusion import (
    assert_near,
    cotangents_like,
    epsilon_of,
    fused,
    gradients,
    leaves_of,
)

LENGTHS = (3, 0, 1, 7, 0)


def packed(case: Expressions, heads: int = 2) -> Tensors:
    """A call's tensors, with an initial state a sequence."""
    tensors = draw(case, 1, sum(LENGTHS), heads, 4)
    start = tensors["initial_state"]
    random = torch.Generator().manual_seed(5)
    shape = (len(LENGTHS), *start.shape[1:])
    return tensors | {"initial_state": torch.randn(shape, dtype=start.dtype, generator=random)}


def separate(case: Expressions, scan: Any, tensors: Tensors, **options: Any) -> list[torch.Tensor]:
    """Each sequence by a call of its own."""
    heads = {name for name, spec in case.inputs.items() if spec.axes in ("HN", "H")}
    fixed = {*heads, "dictionary", "initial_state"}
    found = []
    for number, (begin, end) in enumerate(pairwise(offsets(LENGTHS).tolist())):
        given = {n: x if n in fixed else x[:, begin:end] for n, x in tensors.items()}
        if "initial_state" in given:
            given["initial_state"] = tensors["initial_state"][number : number + 1]
        found.append(scan(**given, **options))
    outputs = [torch.cat([output for output, _ in found], 1)]
    finals = [final for _, final in found if final is not None]
    return [*outputs, torch.cat(finals)] if finals else outputs


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("number", [0, 1])
def test_packed_is_separate(number: int, reverse: bool) -> None:
    """With a read-out, in segments that cut sequences; and without one, with final states."""
    case = CASES[number]
    scan = fused(case, config="torch-tokens")
    options = {"reverse": reverse, "output_final_state": case.readout is None}
    tensors = packed(case)
    found = []
    for run in (
        lambda **given: scan(**given, **options, cu_seqlens=offsets(LENGTHS)),
        lambda **given: separate(case, scan, given, **options),
    ):
        leaves = leaves_of(tensors)
        outputs = tuple(output for output in run(**leaves) if output is not None)
        grads = gradients(outputs, leaves, cotangents_like(outputs))
        found.append([*outputs, *(grads[name] for name in sorted(grads))])
    for mine, theirs in zip(*found, strict=True):
        assert_near(mine.detach(), theirs.detach(), "packed", epsilon_of(case))


def test_without_initial_states() -> None:
    case = CASES[0]
    scan = fused(case, config="torch-tokens")
    tensors = packed(case)
    del tensors["initial_state"]
    output, final = scan(**tensors, cu_seqlens=offsets(LENGTHS))
    assert final is None
    (want,) = separate(case, scan, tensors)
    assert_near(output, want, "packed", epsilon_of(case))


def test_ahead_of_time() -> None:
    scan = fused(CASES[0], config="torch-tokens", packed=True, reverse=True, initial_state=False)
    assert "keep" in str(scan.program)
    assert scan.program.direction == "backward"
    tensors = packed(CASES[0])
    output, _ = scan(**tensors, cu_seqlens=offsets(LENGTHS), reverse=True)
    (want,) = separate(CASES[0], scan, tensors, reverse=True)
    assert_near(output, want, "packed", epsilon_of(CASES[0]))


def test_errors() -> None:
    case = CASES[0]
    scan = fused(case, config="torch-tokens")
    with pytest.raises(ArgumentError, match="a scan with a readout writes no states, so packed"):
        scan(**packed(case), cu_seqlens=offsets(LENGTHS), output_final_state=True)
    with pytest.raises(ArgumentError, match=r"initial_state of packed sequences must have the sh"):
        scan(**draw(case, 1, 11, 2, 4), cu_seqlens=offsets(LENGTHS))
