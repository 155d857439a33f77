"""Rows of the fused core: logits in, read-out out, both in bfloat16; no diagonal and no states.

The diagonal is PD-SSM's, from logits of its magnitude and of its phase; the read-out is the real
part of the states' product with ``c``. The floor counts logits, drive and read-out once each, 10
bytes an element; a step of training reads them again with the read-out's gradient, and leaves a
gradient of each.
"""

from collections.abc import Callable

import torch

from benchmarks.measure import Bench, Row, attempt
from benchmarks.problems import random_problem
from benchmarks.targets import FUSED_MS
from pdssm_compiler import FusedScan, InputSpec, ScanSpec, compile
from pdssm_compiler.suite import Shape

FORWARD, STEP = "forward", "forward + backward"
# Bytes an element: two logits and a complex drive in, a read-out out; then the backward.
_FLOOR = {FORWARD: 8 + 2, STEP: (8 + 2) + (8 + 2) + 8}
_LOW = torch.bfloat16


def diagonal(magnitude: torch.Tensor, phase: torch.Tensor) -> torch.Tensor:
    """``σ(magnitude) exp(2πi σ(phase))``."""
    return torch.polar(torch.sigmoid(magnitude), 2 * torch.pi * torch.sigmoid(phase))


def readout(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """``Re(c x)``."""
    return (c * x).real


def fused_scan(shape: Shape, device: torch.device) -> FusedScan:
    """The scan with both in its kernel."""
    return compile(
        ScanSpec(shape.state_size, shape.dictionary_size, payload_dtype=_LOW),
        device,
        diagonal=diagonal,
        readout=readout,
        inputs={
            "magnitude": InputSpec(dtype=_LOW),
            "phase": InputSpec(dtype=_LOW),
            "c": InputSpec("HN", dtype=torch.complex64),
        },
    )


def fused_rows(bench: Bench, shape: Shape) -> list[Row]:
    """The core: without gradients, and with the gradients of logits, drive and ``c``."""
    head: Row = {"section": "fused", "shape": shape.name, "sizes": shape.sizes, "maps": "random"}

    def row(direction: str, call: Callable[[], Callable[[], object]]) -> Row:
        def timed() -> Row:
            function = call()
            times = bench.clock.work([function], bench.runs)
            eager = bench.clock.calls([function], bench.runs)
            moved = _FLOOR[direction] * shape.elements
            of_roof = moved / (times["ms"] / 1e3) / bench.roof
            return {**times, "eager_ms": eager["ms"], "of_roof": of_roof}

        wanted = FUSED_MS.get((shape.name, direction))
        return attempt(head | {"direction": direction, "target_ms": wanted}, timed)

    return [
        row(FORWARD, lambda: forward_call(shape, bench.device)),
        row(STEP, lambda: step_call(shape, bench.device)),
    ]


def forward_call(shape: Shape, device: torch.device) -> Callable[[], torch.Tensor]:
    """A call without gradients, which gives the read-out."""
    scan, tensors = fused_scan(shape, device), tensors_of(shape, device)

    def call() -> torch.Tensor:
        with torch.no_grad():
            return scan(**tensors)[0]

    return call


def step_call(
    shape: Shape, device: torch.device, grad: torch.Tensor | None = None
) -> Callable[[], list[torch.Tensor]]:
    """A call and its backward, which gives the gradients of both logits, of drive and of ``c``.

    Args:
        shape: the sizes.
        device: where.
        grad: the read-out's gradient; random if it is not given.
    """
    scan, tensors = fused_scan(shape, device), tensors_of(shape, device)
    numbers = [tensors[name].requires_grad_() for name in ("magnitude", "phase", "drive", "c")]
    given = torch.randn_like(tensors["magnitude"]) if grad is None else grad

    def call() -> list[torch.Tensor]:
        return list(torch.autograd.grad(scan(**tensors)[0], numbers, given))

    return call


def tensors_of(shape: Shape, device: torch.device) -> dict[str, torch.Tensor]:
    """Random inputs of a call, by name."""
    problem = random_problem(shape, device)
    sizes = problem.drive.shape

    def logits() -> torch.Tensor:
        return torch.randn(sizes, device=device).to(_LOW)

    return {
        "magnitude": logits(),
        "phase": logits(),
        "c": torch.randn(sizes[2:], device=device, dtype=torch.complex64),
        "drive": torch.view_as_real(problem.drive).to(_LOW),
        **problem.maps,
    }
