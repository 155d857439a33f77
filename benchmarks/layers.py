"""Rows of the Flash PD-SSM layer as models run it: under bfloat16 autocast, compiled and as it is.

Beside it its own matrix products, the same shapes with bfloat16 weights, which no layer of this
width can do without; and the layers of other packages, where they are installed, as they come. A
forward is one that a backward may follow.
Over T the tokens are as many as one agenda's, in fewer sequences, and from there on one longer
sequence. Decoding is one step of many sequences, with bfloat16 parameters: under graph replay on a
GPU, and several copies of the layer take turns, so that no weights are found in the cache.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from benchmarks.measure import Bench, Row, attempt, choices, peak_mib
from benchmarks.peers import LAYERS, PeerLayer
from benchmarks.problems import LayerSizes
from benchmarks.targets import LAYER, LAYER_PEAK_MIB, LAYER_STEP_US
from pdssm_compiler.nn import FlashPDSSM
from pdssm_compiler.nn.core import program_text
from pdssm_compiler.nn.packed_core import programs_of
from pdssm_compiler.runtime.backends import Sizes
from pdssm_compiler.runtime.compile_service import config_text
from pdssm_compiler.runtime.errors import NoTemplateError
from pdssm_compiler.runtime.tuning.precompile import Job, helper_jobs
from pdssm_compiler.schedules.target import Target
from pdssm_compiler.suite import Shape

FORWARD, STEP, DECODE = "forward", "forward + backward", "decode"
PRODUCTS = "its matrix products"
# Fused, as it is by itself, and in parts.
COMPILED, EAGER = "FlashPDSSM, compiled", "FlashPDSSM, as it is"
PARTS = "FlashPDSSM in parts, compiled"
_LOW = torch.bfloat16

Function = Callable[[], object]


class _Subject(NamedTuple):
    """What a row is of: calls by direction, and the tensors that have gradients."""

    forward: Function
    step: Function


def layer_jobs(sizes: LayerSizes, target: Target, alignment: int) -> Iterator[Job]:
    """The kernels of the fused core in a step of training, at every length."""
    layer = FlashPDSSM(sizes.d_model, device="meta")
    heads, n, maps = layer.heads, layer.state_size, layer.dictionary_size
    text = program_text(n, maps, _LOW, False, False, False)
    device = torch.device("cpu" if target.kind == "cpu" else "cuda")
    for length in sizes.measured:
        batch = sizes.batch(length)
        programs, tokens = programs_of(text, Sizes(batch, length, heads), device)
        shape = Shape("layer", batch, tokens, heads, n, maps)
        for program in programs:
            with suppress(NoTemplateError):
                yield from helper_jobs(program.text, target, heads)
                for choice in choices(program.text, target, shape, 1):
                    yield Job(program.text, config_text(choice.config), target, alignment)


def layer_rows(bench: Bench, sizes: LayerSizes, length: int) -> list[Row]:
    """The layer at one length, and what it is held to: products first, then ours, then others.

    Args:
        bench: where and how.
        sizes: the section's.
        length: ``T``.
    """
    batch = sizes.batch(length)
    head: Row = {
        "section": "layers",
        "sizes": {"B": batch, "T": length, "d_model": sizes.d_model},
    }
    x = torch.randn(batch, length, sizes.d_model, device=bench.device).to(_LOW).requires_grad_()

    def rows(
        name: str, make: Callable[[], _Subject], more: Row, wanted: Row | None = None
    ) -> list[Row]:
        try:
            subject = make()
        except Exception as error:
            # Not installed, out of memory, or what it raises where it does not work.
            return [head | more | {"layer": name, "error": _told(error)}]
        return [
            attempt(
                head | more | {"layer": name, "direction": direction} | of_direction,
                partial(_measured, bench, call),
            )
            for direction, call, of_direction in (
                (FORWARD, subject.forward, {}),
                (STEP, subject.step, wanted or {}),
            )
        ]

    found = rows(PRODUCTS, partial(_products, sizes, x), {})
    wanted = _targets(sizes, length)
    found += rows(COMPILED, partial(_ours, sizes, x, True, True), {}, wanted)
    found += rows(EAGER, partial(_ours, sizes, x, True, False), {}, wanted)
    if length == sizes.length:
        found += rows(PARTS, partial(_ours, sizes, x, False, True), {}, wanted)
    for peer in LAYERS:
        found += rows(peer.name, partial(_peer, peer, sizes, x), {"package": peer.package})
    return _with_ratios(found)


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"


def _targets(sizes: LayerSizes, length: int) -> Row:
    """What is wanted of our layer's step at the sizes that figures are known for."""
    wanted = LAYER.get((sizes.d_model, sizes.batch(length), length))
    return {} if wanted is None else {"target_ms": wanted, "target_mib": LAYER_PEAK_MIB}


def _measured(bench: Bench, call: Function) -> Row:
    """Times of a call's work on the device, and of the call, and the memory at its peak."""
    peak = peak_mib(bench.device, call)
    times = bench.clock.work([call], bench.runs)
    eager = bench.clock.calls([call], bench.runs)
    return {**times, "eager_ms": eager["ms"], "peak_mib": peak}


def _autocast(device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast(device.type, dtype=_LOW)


def _of_module(
    module: Callable[[torch.Tensor], Any],
    x: torch.Tensor,
    parameters: Sequence[torch.Tensor],
    output: Callable[[Any], torch.Tensor] = lambda found: found,
) -> _Subject:
    """A layer's calls under autocast; gradients are those of tokens and parameters."""
    leaves = [x, *parameters]
    grad = torch.randn_like(x)

    def forward() -> torch.Tensor:
        with _autocast(x.device):
            return output(module(x))

    def step() -> None:
        out = forward()
        torch.autograd.grad(out, leaves, grad.to(out.dtype))

    return _Subject(forward, step)


def _layer(sizes: LayerSizes, device: torch.device, fused: bool | None = None) -> FlashPDSSM:
    torch.manual_seed(0)
    return FlashPDSSM(sizes.d_model, fused=fused).to(device)


def _ours(sizes: LayerSizes, x: torch.Tensor, fused: bool, compiled: bool) -> _Subject:
    layer = _layer(sizes, x.device, fused)
    called: Callable[[torch.Tensor], Any] = layer
    if compiled:
        called = torch.compile(layer, backend=sizes.backend, fullgraph=True)
    return _of_module(called, x, list(layer.parameters()))


def _peer(peer: PeerLayer, sizes: LayerSizes, x: torch.Tensor) -> _Subject:
    layer = peer.make(sizes.d_model).to(x.device)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    return _of_module(layer, x, parameters, peer.output)


def _weights(layer: FlashPDSSM) -> list[torch.Tensor]:
    projections = (layer.in_proj, layer.token_proj, layer.out_proj)
    return [projection.weight.detach().to(_LOW) for projection in projections]


def _products(sizes: LayerSizes, x: torch.Tensor) -> _Subject:
    """The layer's three projections, each of tokens of its own, and their gradients."""
    weights = [w.requires_grad_() for w in _weights(_layer(sizes, x.device))]
    tokens = [
        torch.randn(*x.shape[:-1], w.shape[1], device=x.device, dtype=_LOW).requires_grad_()
        for w in weights
    ]
    grads = [torch.randn(*x.shape[:-1], len(w), device=x.device, dtype=_LOW) for w in weights]

    def products() -> list[torch.Tensor]:
        return [functional.linear(t, w) for t, w in zip(tokens, weights, strict=True)]

    return _Subject(products, lambda: torch.autograd.grad(products(), [*tokens, *weights], grads))


def decode_rows(bench: Bench, sizes: LayerSizes) -> list[Row]:
    """A step, compiled and as it is, and its matrix products alone."""
    head: Row = {
        "section": "layers",
        "sizes": {"B": sizes.decoded, "T": 1, "d_model": sizes.d_model},
        "direction": DECODE,
    }
    first = _layer(sizes, bench.device).to(_LOW)
    copies = bench.clock.copies(sum(w.nbytes for w in _weights(first)))
    layers = [first, *(_layer(sizes, bench.device).to(_LOW) for _ in range(copies - 1))]
    token = torch.randn(sizes.decoded, sizes.d_model, device=bench.device, dtype=_LOW)

    def row(name: str, function: Callable[[FlashPDSSM], Function], more: Row) -> Row:
        def timed() -> Row:
            functions = [function(layer) for layer in layers]
            times = bench.clock.work(functions, bench.runs)
            eager = bench.clock.calls(functions, bench.runs)
            return {**times, "eager_ms": eager["ms"], "copies": copies}

        return attempt(head | {"layer": name} | more, timed)

    def products(layer: FlashPDSSM) -> Function:
        weights = _weights(layer)
        tokens = [token[:, :1].expand(-1, w.shape[1]).contiguous() for w in weights]
        return lambda: [functional.linear(t, w) for t, w in zip(tokens, weights, strict=True)]

    def decoding(compiled: bool) -> Callable[[FlashPDSSM], Function]:
        step = FlashPDSSM.step
        if compiled:
            step = torch.compile(step, backend=sizes.backend, fullgraph=True)

        def of(layer: FlashPDSSM) -> Function:
            cache = layer.init_cache(sizes.decoded)

            def call() -> object:
                with torch.no_grad():
                    return step(layer, token, cache)

            return call

        return of

    known = (sizes.d_model, sizes.decoded) == (1024, 64)
    wanted: Row = {"target_us": LAYER_STEP_US} if known else {}
    found = [row(PRODUCTS, products, {})]
    found.append(row(COMPILED, decoding(True), wanted))
    found.append(row(EAGER, decoding(False), wanted))
    return _with_ratios(found)


def _with_ratios(rows: list[Row]) -> list[Row]:
    """Each time over that of the products, and of others over our best."""
    for row in rows:
        if "ms" not in row:
            continue
        same = [r for r in rows if r.get("direction") == row["direction"] and "ms" in r]
        floor = next((r["ms"] for r in same if r["layer"] == PRODUCTS), None)
        if floor is not None:
            row["of_products"] = row["ms"] / floor
            row["over_us"] = (row["ms"] - floor) * 1e3
        ours = [r["ms"] for r in same if r["layer"].startswith("FlashPDSSM")]
        if "package" in row and ours:
            row["of_ours"] = row["ms"] / min(ours)
    return rows
