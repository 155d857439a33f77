"""Packed sequences, reverse time and the step on a GPU."""

from typing import Any

import pytest
import torch

from pdssm_compiler import (
    OffsetError,
    ScanSpec,
    check,
    compile,
    flash_pd_scan,
    pd_scan,
    pd_scan_step,
)
from tests.gpu.agreement import assert_agrees
from tests.public.accuracy import (
    FORWARD,
    GRADIENT,
    assert_within,
    expected,
    expected_gradients,
)
from tests.public.packed import offsets, packed_inputs
from tests.public.scans import KINDS, MAPS, Case, Draw, Tensors
from tests.public.test_flash_pd_scan import flash_inputs

pytestmark = pytest.mark.usefixtures("poisoned_memory")

CASE = Case(32, "dictionary")
LENGTHS = (3, 0, 1, 70, 0, 33, 64, 0)
# Sequences of many chunks, and of a few tokens.
LONG = (1500, 1, 0, 2, 700, 31)
TEMPLATES = ("cuda-rows", "cuda-chunks", "triton-rows", "triton-chunks", "triton-lookback")


def moved(tensors: Tensors, device: torch.device) -> Tensors:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def assert_packed(scan: Any, case: Case, lengths: Any, device: torch.device, **more: Any) -> None:
    """Values, final states and gradients, against the plain loop over each sequence."""
    tensors = packed_inputs(case, lengths, 3, maps=MAPS[case.map_class][0])
    options = {**case.options, **more, "cu_seqlens": offsets(lengths)}
    names = ("diagonal", "drive", "initial_state")
    here = moved(tensors, device)
    for name in names:
        here[name].requires_grad_()
    on_device = options | {"cu_seqlens": options["cu_seqlens"].to(device)}
    outputs = scan(**here, **on_device, output_final_state=True)
    want, scale = expected(tensors, options), expected(tensors, options, magnitude=True)
    for got, true, size in zip(outputs, want, scale, strict=True):
        assert_within(got.detach().cpu(), true, size, FORWARD, "output")
    arriving = tuple(torch.randn(x.shape, dtype=x.dtype) for x in outputs)
    grads = [grad.to(device) for grad in arriving]
    found = torch.autograd.grad(outputs, [here[name] for name in names], grads)
    true = expected_gradients(tensors, options, arriving)
    size = expected_gradients(tensors, options, arriving, True)
    for name, gradient in zip(names, found, strict=True):
        assert_within(gradient.cpu(), true[name], size[name], GRADIENT, name)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("case", [CASE, Case(128, "dictionary"), *KINDS], ids=str)
def test_packed_is_separate(case: Case, reverse: bool, device: torch.device) -> None:
    for lengths in (LENGTHS, LONG, (0,), (1,), ()):
        assert_packed(pd_scan, case, lengths, device, reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("case", [CASE, Case(33, "token", "row")], ids=str)
def test_every_template(case: Case, template: str, reverse: bool, device: torch.device) -> None:
    size = case.dictionary_size if case.source == "dictionary" else None
    spec = ScanSpec(case.state_size, size, map_source=case.source, orientation=case.orientation)  # type: ignore[arg-type]
    scan = compile(spec, device, config=template)
    for lengths in (LENGTHS, LONG):
        assert_packed(scan, case, lengths, device, reverse=reverse)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_nan_stays_in_its_sequence(template: str, device: torch.device) -> None:
    scan = compile(ScanSpec(32, 3), device, config=template)
    here = moved(packed_inputs(CASE, LONG, 4), device)
    cu_seqlens = offsets(LONG).to(device)
    want, _ = scan(**here, cu_seqlens=cu_seqlens)
    begin, end = offsets(LONG)[4:6].tolist()
    here["drive"] = here["drive"].clone()
    here["drive"][:, begin:end] = float("nan")
    got, _ = scan(**here, cu_seqlens=cu_seqlens)
    for tokens in (slice(0, begin), slice(end, None)):
        assert torch.equal(got[:, tokens], want[:, tokens])


@pytest.mark.parametrize("reverse", [False, True])
def test_reverse(reverse: bool, device: torch.device) -> None:
    def scan(**given: Any) -> Any:
        return pd_scan(**given, reverse=reverse)

    def turned(**given: Any) -> Any:
        tokens = ("diagonal", "drive", "selection")
        given = {n: x.flip(1) if n in tokens else x for n, x in given.items()}
        states, final = scan(**given)
        return states.flip(1), final

    for draw in (Draw(3, 13, 2, "random", "disk", 1), Draw(1, 3001, 2, "random", "disk", 7)):
        assert_agrees(turned if reverse else scan, CASE, draw, device)


def test_steps_are_the_scan(device: torch.device) -> None:
    tensors = moved(packed_inputs(CASE, (12,), 2), device)
    states, final = pd_scan(**tensors, output_final_state=True)
    state = tensors["initial_state"]
    for t in range(12):
        given = (tensors[name][:, t] for name in ("diagonal", "drive"))
        maps = {"dictionary": tensors["dictionary"], "selection": tensors["selection"][:, t]}
        state = pd_scan_step(state, *given, **maps)
        torch.testing.assert_close(state, states[:, t])
    torch.testing.assert_close(state, final)


@pytest.mark.parametrize(
    "bad", [[0, 4, 2, 6], [0, 4, 7], [0, 4, 5], [1, 6], [0, 2**40, 6], [-9, 6]]
)
def test_bad_offsets_are_reported(bad: list[int], device: torch.device) -> None:
    """Nothing leaves its tensors, and the next look at the errors tells."""
    ones = torch.ones(1, 6, 2, 8, dtype=torch.complex64, device=device)
    for reverse in (False, True):
        pd_scan(ones, ones, cu_seqlens=torch.tensor(bad, device=device), reverse=reverse)
        with pytest.raises(OffsetError, match="cu_seqlens does not cut the tokens"):
            check()
    start = torch.ones(len(bad) - 1, 2, 8, dtype=torch.complex64, device=device)
    options = {"initial_state": start, "output_final_state": True}
    pd_scan(ones, ones, cu_seqlens=torch.tensor(bad, device=device), **options)
    with pytest.raises(OffsetError, match="cu_seqlens does not cut the tokens"):
        check()
    pd_scan(ones, ones, cu_seqlens=torch.tensor([0, 6], device=device))


def packed_call(device: torch.device, lengths: Any, seed: int = 0) -> Tensors:
    call = moved(packed_inputs(CASE, lengths, seed), device)
    return call | {"cu_seqlens": offsets(lengths).to(device)}


@pytest.mark.parametrize("lengths", [LENGTHS, LONG], ids=["few", "long"])
def test_no_synchronisation(lengths: Any, device: torch.device) -> None:
    call = packed_call(device, lengths)
    leaves = [call[name].requires_grad_() for name in ("diagonal", "drive", "initial_state")]

    def step() -> None:
        states, final = pd_scan(**call, output_final_state=True)
        torch.autograd.grad(states.abs().sum() + final.abs().sum(), leaves)

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_graph_replay_on_other_offsets(device: torch.device) -> None:
    """As many tokens and sequences, cut at other places."""
    call = packed_call(device, (5, 0, 30, 65))
    pd_scan(**call, output_final_state=True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = pd_scan(**call, output_final_state=True)
    for lengths in ((100, 0, 0, 0), (1, 33, 33, 33)):
        for name, tensor in packed_call(device, lengths, 1).items():
            call[name].copy_(tensor)
        graph.replay()
        torch.cuda.synchronize()
        want = pd_scan(**call, output_final_state=True)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(outputs, want, strict=True))


def test_flash(device: torch.device) -> None:
    """Packed logits have the gradients that each sequence's have alone, summed."""
    lengths = (30, 0, 1, 50)
    tensors = moved(flash_inputs(CASE, Draw(1, sum(lengths), 2, "random", "disk", 2)), device)
    del tensors["initial_state"]
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    states, _ = flash_pd_scan(**leaves, cu_seqlens=offsets(lengths).to(device))
    grad = torch.randn_like(states)
    got = torch.autograd.grad(states, list(leaves.values()), grad)
    parts = []
    for begin, end in ((0, 30), (30, 31), (31, 81)):
        fixed = {"dictionary_logits": leaves["dictionary_logits"]}
        cut = {n: x[:, begin:end] for n, x in leaves.items() if n not in fixed}
        parts.append(flash_pd_scan(**fixed, **cut)[0])
    want = torch.autograd.grad(torch.cat(parts, 1), list(leaves.values()), grad)
    torch.testing.assert_close(states, torch.cat(parts, 1))
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
