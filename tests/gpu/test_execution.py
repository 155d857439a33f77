"""How calls behave on a GPU: streams, synchronisation, compilation, ``torch.compile``."""

import threading

import pytest
import torch

import pdssm_compiler
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.runtime.plan import Plan, plans
from tests.kernels import tensors_of
from tests.public.scans import Case, Draw, inputs
from tests.strategies import Sizes, arrays_for


def _call(device: torch.device, draw: Draw) -> dict[str, torch.Tensor]:
    return {n: t.to(device) for n, t in inputs(Case(32, "dictionary"), draw).items()}


# Run by rows, and in chunks, whose scratch is the call's own.
SIZES = pytest.mark.parametrize("sizes", [(3, 300, 2), (1, 2050, 2)], ids=["rows", "chunks"])


@SIZES
def test_many_streams(sizes: tuple[int, int, int], device: torch.device) -> None:
    calls = [_call(device, Draw(*sizes, "random", "disk", seed)) for seed in range(16)]
    want = [pdssm_compiler.pd_scan(**call)[0] for call in calls]
    streams = [torch.cuda.Stream(device) for _ in calls]
    torch.cuda.synchronize()
    for _ in range(5):
        got = []
        for stream, call in zip(streams, calls, strict=True):
            with torch.cuda.stream(stream):
                got.append(pdssm_compiler.pd_scan(**call)[0])
        torch.cuda.synchronize()
        for mine, theirs in zip(got, want, strict=True):
            assert torch.equal(mine, theirs)


def test_threads_that_have_not_used_the_device(device: torch.device) -> None:
    """Kernels are loaded in one and launched in another, as where a backward pass begins with
    ours: such a thread has no context.
    """
    program = pd_scan(PdScan(24, 3))
    given = arrays_for(program, Sizes(2, 40, 2), 0)
    tensors = [tensor.to(device) for tensor in tensors_of(program, given, "dense")]
    launch = Plan(program, device, 16).launcher(tensors)
    failed: list[Exception] = []

    def run() -> None:
        try:
            launch()
        except Exception as error:
            failed.append(error)

    for _ in range(2):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    torch.cuda.synchronize()
    assert failed == []


@SIZES
def test_no_synchronisation(sizes: tuple[int, int, int], device: torch.device) -> None:
    call = _call(device, Draw(*sizes, "random", "disk", 0))
    for name in ("diagonal", "drive"):
        call[name].requires_grad_()

    def step() -> None:
        states, _ = pdssm_compiler.pd_scan(**call)
        states.abs().sum().backward()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_length_compiles_nothing(device: torch.device) -> None:
    pdssm_compiler.pd_scan(**_call(device, Draw(2, 5, 2, "random", "disk", 0)))
    # A step and long rows have kernels of their own.
    for length in (1, 1024):
        pdssm_compiler.pd_scan(**_call(device, Draw(2, length, 2, "random", "disk", 0)))
    before = len(plans()), len(pdssm_compiler.explain())
    for length in (*range(1, 51), 1000, 1025, 2047, 2048, 5000):
        pdssm_compiler.pd_scan(**_call(device, Draw(2, length, 2, "random", "disk", length)))
    assert (len(plans()), len(pdssm_compiler.explain())) == before


@SIZES
def test_graph_replay_on_new_numbers(sizes: tuple[int, int, int], device: torch.device) -> None:
    call = _call(device, Draw(*sizes, "collide", "disk", 3))
    pdssm_compiler.pd_scan(**call)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        states, _ = pdssm_compiler.pd_scan(**call)
    for seed in (4, 5):
        for name, tensor in _call(device, Draw(*sizes, "random", "disk", seed)).items():
            call[name].copy_(tensor)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(states, pdssm_compiler.pd_scan(**call)[0])


def test_torch_compile(device: torch.device) -> None:
    call = _call(device, Draw(2, 40, 2, "random", "disk", 1))

    def model(diagonal: torch.Tensor, drive: torch.Tensor) -> torch.Tensor:
        states, _ = pdssm_compiler.pd_scan(
            diagonal * 0.5,
            drive,
            dictionary=call["dictionary"],
            selection=call["selection"],
        )
        return states.real.square().sum()

    leaves = [call[name].requires_grad_() for name in ("diagonal", "drive")]
    want = torch.autograd.grad(model(*leaves), leaves)
    compiled = torch.compile(model, fullgraph=True)
    got = torch.autograd.grad(compiled(*leaves), leaves)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs)


@SIZES
def test_a_second_run_is_bitwise_equal(sizes: tuple[int, int, int], device: torch.device) -> None:
    call = _call(device, Draw(*sizes, "collide", "disk", 2))
    leaves = [call[name].requires_grad_() for name in ("diagonal", "drive", "initial_state")]
    runs = []
    for _ in range(3):
        states, _ = pdssm_compiler.pd_scan(**call)
        grads = torch.autograd.grad(states, leaves, torch.ones_like(states))
        runs.append([states.detach(), *grads])
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(again, runs[0], strict=True))
