"""Rows of the PD-SSM layer: forward and backward, beside the same layer with identity maps.

What its maps cost is what it takes more than that one; memory is the most that a step has beside
parameters, inputs and gradients that are there before.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace

import torch

import pdssm_compiler
from benchmarks.layer_sizes import Layer
from benchmarks.measure import Bench, Row, attempt, choices, peak_mib
from benchmarks.targets import MIXTURE_MS, MIXTURE_RATIO
from pdssm_compiler.ir.programs import PdScan, pd_scan
from pdssm_compiler.nn import PDSSM
from pdssm_compiler.runtime.compile_service import config_text
from pdssm_compiler.runtime.errors import NoTemplateError
from pdssm_compiler.runtime.mixture import DESTINATION, mixed_map, programs_of
from pdssm_compiler.runtime.ops import adjoint_of
from pdssm_compiler.runtime.tuning.precompile import Job
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.suite import Shape

# Repetitions of a step, which takes milliseconds.
_RUNS = 10


class IdentityLayer(PDSSM):
    """A PD-SSM layer whose maps are the identity: everything but the mixture."""

    def mixed(
        self, weights: torch.Tensor, diagonal: torch.Tensor, drive: torch.Tensor, **options: object
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A diagonal scan; ``weights`` have no gradient."""
        return pdssm_compiler.pd_scan(diagonal, drive, **options)  # type: ignore[arg-type]


def step_call(
    shape: Layer, device: torch.device, kind: type[PDSSM] = PDSSM
) -> Callable[[], list[torch.Tensor]]:
    """A step of training, which gives the gradients of the input and of all parameters in use."""
    torch.manual_seed(0)
    layer = kind(
        shape.d_model,
        state_size=shape.state_size,
        dictionary_size=shape.dictionary_size,
        device=device,
    )
    x = torch.randn(shape.batch, shape.length, shape.d_model, device=device, requires_grad=True)
    grad = torch.randn(x.shape, device=device)
    wanted = [x, *layer.parameters()]

    def call() -> list[torch.Tensor]:
        found = torch.autograd.grad(layer(x), wanted, grad, allow_unused=True)
        return [each for each in found if each is not None]

    return call


def mixture_programs(shape: Layer) -> Iterator[tuple[str, Shape]]:
    """What a step runs, with mixed maps and with the identity, and at which sizes."""
    n, maps = shape.state_size, shape.dictionary_size
    # No token needs another to choose its map: they are those of one sequence.
    chosen = Shape(shape.name, 1, shape.batch * shape.length, 1, n, maps)
    for text in programs_of(n, maps, torch.float32, "column", False):
        yield text, chosen
    scanned = replace(chosen, batch=shape.batch, length=shape.length)
    for source, learned in (("token", (DESTINATION,)), ("none", ())):
        forward = pd_scan(PdScan(n, map_source=source, initial_state=True)).text  # type: ignore[arg-type]
        yield forward, scanned
        wrt = ("diagonal", "drive", *learned)
        surrogate = "dense" if learned else "active"
        yield adjoint_of(forward, wrt, ("states",), surrogate).program.text, scanned  # type: ignore[arg-type]


def mixture_jobs(layers: Iterable[Layer], target: Target, alignment: int) -> Iterator[Job]:
    """The kernels of every step."""
    for layer in layers:
        for text, shape in mixture_programs(layer):
            # What no template can run is told where it is measured.
            with suppress(NoTemplateError):
                for choice in choices(text, target, shape, 1):
                    yield Job(text, config_text(choice.config), target, alignment)


def mixture_rows(bench: Bench, shape: Layer) -> list[Row]:
    """The layer, and the layer with identity maps."""
    head: Row = {"section": "mixture", "shape": shape.name, "sizes": shape.sizes}

    def timed(kind: type[PDSSM]) -> Row:
        call = step_call(shape, bench.device, kind)
        times = bench.clock.work([call], min(bench.runs, _RUNS))
        eager = bench.clock.calls([call], min(bench.runs, _RUNS))
        return {**times, "eager_ms": eager["ms"], "peak_mib": peak_mib(bench.device, call)}

    identity = attempt(head | {"maps": "identity"}, lambda: timed(IdentityLayer))
    row = attempt(
        head | {"maps": "mixed", "target_ms": MIXTURE_MS.get(shape.name)}, lambda: timed(PDSSM)
    )
    if "ms" in row and "ms" in identity:
        row["of_identity"] = row["ms"] / identity["ms"]
        row["target_ratio"] = MIXTURE_RATIO.get(shape.name)
    return [identity, row, attempt(head | {"maps": "choice alone"}, lambda: _choice(bench, shape))]


def _choice(bench: Bench, shape: Layer) -> Row:
    """The maps alone, and multiply-adds a second."""
    tokens, n = shape.batch * shape.length, shape.state_size
    weights = torch.rand(1, tokens, 1, shape.dictionary_size, device=bench.device)
    dictionary = torch.randn(1, shape.dictionary_size, n, n, device=bench.device)
    call = lambda: mixed_map(weights, dictionary, [], "column")  # noqa: E731
    times = bench.clock.work([call], min(bench.runs, _RUNS))
    eager = bench.clock.calls([call], min(bench.runs, _RUNS))
    done = tokens * n * n * shape.dictionary_size / (times["ms"] / 1e3)
    return {**times, "eager_ms": eager["ms"], "tera_fma_per_s": done / 1e12}
