"""``flash_pd_scan`` on a GPU: every gradient against the definition, and how calls behave."""

import pytest
import torch

import pdssm_compiler
from pdssm_compiler.ir.passes import adjoint
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime.choices import hard_choice
from pdssm_compiler.runtime.compile_service import config_text
from pdssm_compiler.runtime.plan import Plan
from pdssm_compiler.schedules.templates.cuda_rows import CudaRowsConfig
from pdssm_compiler.schedules.templates.triton_chunks import TritonChunksConfig
from pdssm_compiler.schedules.templates.triton_lookback import TritonLookbackConfig
from pdssm_compiler.schedules.templates.triton_rows import TritonRowsConfig
from tests.kernels import tensors_of
from tests.public.accuracy import FORWARD, GRADIENT, assert_within
from tests.public.one_hot import LOGITS, defined
from tests.public.scans import Case, Draw, Tensors
from tests.public.test_flash_pd_scan import CASES, NAMES, flash_inputs, results
from tests.public.test_pd_scan_gradients import cotangents
from tests.strategies import Sizes, arrays_for

# By rows, by rows whose last tile is not full, one token, none, and in chunks.
DRAWS = (
    Draw(3, 13, 2, "random", "disk", 1),
    Draw(5, 101, 3, "collide", "nearly one", 4),
    Draw(1, 1, 1, "random", "one", 2),
    Draw(2, 0, 3, "random", "zero", 3),
    Draw(1, 1100, 2, "random", "disk", 7),
)
SIZES = pytest.mark.parametrize("sizes", [(3, 300, 2), (1, 2050, 2)], ids=["rows", "chunks"])


def on(device: torch.device, tensors: Tensors) -> Tensors:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


@pytest.mark.parametrize("case", [*CASES, Case(128, "dictionary", dictionary_size=8)], ids=str)
@pytest.mark.parametrize("draw", DRAWS, ids=lambda draw: f"T{draw.length}")
def test_as_defined(case: Case, draw: Draw, device: torch.device) -> None:
    tensors = flash_inputs(case, draw)
    arriving = cotangents(tensors)
    options = {"temperature": 0.5, "orientation": case.orientation}
    got = results(on(device, tensors), tuple(g.to(device) for g in arriving), **options)
    want, scale = (
        defined(tensors, case.orientation, 0.5, arriving, magnitude) for magnitude in (False, True)
    )
    assert_within(got["states"].cpu(), want.states, scale.states, FORWARD, "states")
    for name in NAMES:
        gradient, size = want.gradients[name], scale.gradients[name]
        assert_within(got[name].cpu(), gradient, size, GRADIENT, f"gradient of {name}")


@pytest.mark.parametrize("length", [1, 31, 64, 1000])
@pytest.mark.parametrize("state_size", [5, 32, 64])
def test_templates_agree_and_repeat(state_size: int, length: int, device: torch.device) -> None:
    """The same sums bit by bit each time, and the same by every template but for rounding."""
    program = adjoint(pd_scan(PdScan(state_size, 4)), surrogate="active").program
    arrays = arrays_for(program, Sizes(2, length, 3), 9)
    tensors = [tensor.to(device) for tensor in tensors_of(program, arrays, "dense")]
    configs = (
        CudaRowsConfig(4, 3),
        TritonRowsConfig(1, 1, 2),
        TritonRowsConfig(1, 2, 1),
        TritonChunksConfig(1, 1, 2, 10**6),
        TritonLookbackConfig(1, 1, 4, 4),
    )
    first = None
    for config in configs:
        plan = Plan(program, device, 16, config=config_text(config))
        runs = [plan.run(tensors) for _ in range(4)]
        for again in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(again, runs[0], strict=True)), config
        first = runs[0] if first is None else first
        for mine, theirs in zip(runs[0], first, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-4)


@SIZES
def test_no_synchronisation(sizes: tuple[int, int, int], device: torch.device) -> None:
    tensors = on(device, flash_inputs(Case(32, "dictionary"), Draw(*sizes, "random", "disk", 0)))
    temperature = torch.tensor(0.5, device=device)
    for tensor in tensors.values():
        tensor.requires_grad_()

    def step() -> None:
        for value in (temperature, 0.5):
            states, _ = pdssm_compiler.flash_pd_scan(**tensors, temperature=value)
            states.abs().sum().backward()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("surrogate", ["active", "dense"])
@SIZES
def test_many_streams(sizes: tuple[int, int, int], surrogate: str, device: torch.device) -> None:
    """Forward and backward, which run on the stream of the call, in scratch of their own."""
    draws = [Draw(*sizes, "random", "disk", seed) for seed in range(8)]
    calls = [flash_inputs(Case(32, "dictionary"), draw) for draw in draws]
    given = [
        (on(device, call), tuple(grad.to(device) for grad in cotangents(call))) for call in calls
    ]
    want = [results(*each, surrogate=surrogate) for each in given]
    streams = [torch.cuda.Stream(device) for _ in given]
    torch.cuda.synchronize()
    for _ in range(3):
        found = []
        for stream, each in zip(streams, given, strict=True):
            with torch.cuda.stream(stream):
                found.append(results(*each, surrogate=surrogate))
        torch.cuda.synchronize()
        for mine, right in zip(found, want, strict=True):
            assert all(torch.equal(mine[name], right[name]) for name in right)


@SIZES
def test_a_second_run_is_bitwise_equal(sizes: tuple[int, int, int], device: torch.device) -> None:
    tensors = on(device, flash_inputs(Case(32, "dictionary"), Draw(*sizes, "random", "disk", 2)))
    arriving = tuple(g.to(device) for g in cotangents({n: t.cpu() for n, t in tensors.items()}))
    first = results(tensors, arriving)
    for _ in range(3):
        for name, tensor in results(tensors, arriving).items():
            assert torch.equal(tensor, first[name]), name


@pytest.mark.parametrize(
    ("name", "at", "message"),
    [
        ("selector_logits", (1, 4, 2, 0), r"the logits of selection\[b=1, t=4, h=2\] have a NaN"),
        ("dictionary_logits", (2, 1, 0, 3), r"the logits of dictionary \(head 2\) have a NaN"),
    ],
)
def test_a_nan_is_reported(
    name: str, at: tuple[int, ...], message: str, device: torch.device
) -> None:
    tensors = on(device, flash_inputs(Case(8, "dictionary"), Draw(2, 9, 3, "random", "disk", 0)))
    tensors[name][at] = float("nan")
    pdssm_compiler.flash_pd_scan(**tensors)
    with pytest.raises(pdssm_compiler.NanLogitError, match=message):
        pdssm_compiler.check()


def test_a_nan_does_no_harm_in_the_backward(device: torch.device) -> None:
    """The place that says so is no index to read by."""
    logits = torch.randn(2, 3, 4, device=device)
    logits[1, 2, 3] = float("nan")
    leaf = logits.requires_grad_()
    entries, index = hard_choice(leaf, -1, torch.ones((), device=device), "logits")
    entries.sum().backward()
    assert index[1, 2].item() == -1
    assert leaf.grad[1, 2].isnan().all()
    assert leaf.grad[0].isfinite().all()


def test_torch_compile(device: torch.device) -> None:
    tensors = on(device, flash_inputs(Case(32, "dictionary"), Draw(2, 40, 2, "random", "disk", 1)))

    def model(**given: torch.Tensor) -> torch.Tensor:
        states, _ = pdssm_compiler.flash_pd_scan(**given, temperature=0.5)
        return states.real.square().sum()

    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    wrt = [leaves[name] for name in (*LOGITS, "diagonal", "drive")]
    want = torch.autograd.grad(model(**leaves), wrt)
    got = torch.autograd.grad(torch.compile(model, fullgraph=True)(**leaves), wrt)
    # The softmax's own kernels add in another order: a few tens of ε after sums over 40 tokens.
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
