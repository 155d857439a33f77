"""``flash_pd_scan(surrogate="dense")`` on a GPU: gradients against the definition, and how its
backward behaves.
"""

import pytest
import torch

import pdssm_compiler
from pdssm_compiler.runtime import dense
from tests.gpu.test_flash_pd_scan import DRAWS, on
from tests.public.accuracy import GRADIENT, assert_within
from tests.public.one_hot import LOGITS, defined
from tests.public.scans import Case, Draw, Tensors
from tests.public.test_flash_pd_scan import CASES, NAMES, flash_inputs, results
from tests.public.test_pd_scan_gradients import cotangents
from tests.runtime.test_dense import C, expected, inputs

LANGUAGE = Case(32, "dictionary", dictionary_size=32)


def gradients(tensors: Tensors, **options: object) -> Tensors:
    return results(
        tensors,
        tuple(g.to(tensors["drive"].device) for g in cotangents(on(torch.device("cpu"), tensors))),
        surrogate="dense",
        **options,
    )


@pytest.mark.parametrize("case", [*CASES, Case(128, "dictionary", dictionary_size=8)], ids=str)
@pytest.mark.parametrize("draw", DRAWS[:4], ids=lambda draw: f"T{draw.length}")
def test_as_defined(case: Case, draw: Draw, device: torch.device) -> None:
    tensors = flash_inputs(case, draw)
    arriving = cotangents(tensors)
    options = {"temperature": 0.5, "orientation": case.orientation}
    got = gradients(on(device, tensors), **options)
    want, scale = (
        defined(tensors, case.orientation, 0.5, arriving, magnitude, "dense")
        for magnitude in (False, True)
    )
    for name in NAMES:
        gradient, size = want.gradients[name], scale.gradients[name]
        assert_within(got[name].cpu(), gradient, size, GRADIENT, f"gradient of {name}")


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("skew", [0.0, 0.95])
def test_operators_are_accurate_whatever_torch_may_round(
    skew: float, tf32: bool, device: torch.device
) -> None:
    given = inputs(32, 16, torch.complex64, (2, 3001, 3), 1, skew)
    left, right, dictionary, selection = (tensor.to(device) for tensor in given)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if tf32 else "highest")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            products = dense.map_products(left, right, selection, 16)
            scores = dense.map_scores(left, right, dictionary)
    finally:
        torch.set_float32_matmul_precision(before)
    scales = expected((given[0].abs(), given[1].abs(), *given[2:]))
    epsilon = torch.finfo(torch.float32).eps
    for got, want, scale in zip((products, scores), expected(given), scales, strict=True):
        assert ((got.cpu().double() - want).abs() <= C * epsilon * scale).all()


def test_a_second_run_is_bitwise_equal(device: torch.device) -> None:
    tensors = on(device, flash_inputs(LANGUAGE, Draw(3, 1000, 4, "random", "disk", 2)))
    first = gradients(tensors)
    for _ in range(3):
        for name, tensor in gradients(tensors).items():
            assert torch.equal(tensor, first[name]), name


@pytest.mark.parametrize("length", [40, 4096])
def test_no_synchronisation(length: int, device: torch.device) -> None:
    tensors = on(device, flash_inputs(LANGUAGE, Draw(1, length, 2, "random", "disk", 0)))
    temperature = torch.tensor(0.5, device=device)
    for tensor in tensors.values():
        tensor.requires_grad_()

    def step() -> None:
        states, _ = pdssm_compiler.flash_pd_scan(
            **tensors, temperature=temperature, surrogate="dense"
        )
        states.abs().sum().backward()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_is_linear(device: torch.device) -> None:
    """What a backward allocates: the two factors, 16 bytes a number, and a few times as much."""
    case = Case(64, "dictionary", dictionary_size=64)
    tensors = on(device, flash_inputs(case, Draw(2, 16384, 8, "random", "disk", 0)))
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    states, _ = pdssm_compiler.flash_pd_scan(**leaves, surrogate="dense")
    loss = states.real.sum()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    loss.backward()
    taken = torch.cuda.max_memory_allocated(device) - before
    numbers = 2 * 16384 * 8 * 64
    # N² or K · N numbers a token would be 256 bytes a number.
    assert taken <= 96 * numbers


@pytest.mark.parametrize("surrogate", ["active", "dense"])
def test_an_annealed_temperature_in_a_captured_graph(surrogate: str, device: torch.device) -> None:
    """The temperature is read by the device, so the graph follows it."""
    tensors = on(device, flash_inputs(LANGUAGE, Draw(2, 100, 2, "random", "disk", 1)))
    temperature = torch.tensor(0.5, device=device)
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}

    def step() -> tuple[torch.Tensor, ...]:
        states, _ = pdssm_compiler.flash_pd_scan(
            **leaves, temperature=temperature, surrogate=surrogate
        )
        wanted = [leaves[name] for name in LOGITS]
        return torch.autograd.grad(states.real.square().sum(), wanted)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for tau in (0.5, 2.0):
        temperature.fill_(tau)
        graph.replay()
        for mine, theirs in zip(captured, step(), strict=True):
            assert torch.equal(mine, theirs)


def test_torch_compile(device: torch.device) -> None:
    tensors = on(device, flash_inputs(LANGUAGE, Draw(2, 40, 3, "random", "disk", 1)))

    def model(**given: torch.Tensor) -> torch.Tensor:
        states, _ = pdssm_compiler.flash_pd_scan(**given, temperature=0.5, surrogate="dense")
        return states.real.square().sum()

    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    wrt = [leaves[name] for name in (*LOGITS, "diagonal", "drive")]
    want = torch.autograd.grad(model(**leaves), wrt)
    got = torch.autograd.grad(torch.compile(model, fullgraph=True)(**leaves), wrt)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
