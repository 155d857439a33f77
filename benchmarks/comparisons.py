"""Rows of what our operators are compared with: a plain torch loop, operators of other packages.

Both are timed as a user calls them, on the host or by events around eager calls, and so are ours
beside them.
"""

from collections.abc import Callable, Sequence

import torch

import pdssm_compiler
from benchmarks.calls import BOTH
from benchmarks.measure import Bench, Row, attempt
from benchmarks.peers import PEERS, Peer, forward_and_backward
from benchmarks.problems import random_problem
from benchmarks.targets import OF_LOOP
from benchmarks.torch_loop import torch_loop
from pdssm_compiler.runtime.tuning.timing import Times
from pdssm_compiler.suite import Shape

# Runs of what takes long.
_FEW = 5


def loop_rows(bench: Bench, shape: Shape, tokens: int) -> list[Row]:
    """``pd_scan`` and its gradient against the loop, which runs the first tokens only; its time is
    scaled to all. Their states are compared.
    """
    head: Row = {"section": "loop", "shape": shape.name, "sizes": shape.sizes}
    try:
        return [head | row for row in _loop_rows(bench, shape, min(tokens, shape.length))]
    except Exception as error:
        # As where kernels are measured: the other shapes go on.
        return [head | {"direction": "forward", "error": f"{type(error).__name__}: {error}"}]


def _loop_rows(bench: Bench, shape: Shape, tokens: int) -> list[Row]:
    problem = random_problem(shape, bench.device)
    first = problem.destination[:, :tokens]
    inputs = [problem.diagonal, problem.drive]
    heads = [tensor[:, :tokens].clone() for tensor in inputs]
    rows = [
        _against_loop(
            bench,
            shape,
            tokens,
            lambda: pdssm_compiler.pd_scan(*inputs, **problem.maps),
            lambda: torch_loop(*heads, first),
        )
        | {"direction": "forward"}
    ]
    for tensor in (*inputs, *heads):
        tensor.requires_grad_()
    states, _ = pdssm_compiler.pd_scan(*inputs, **problem.maps)
    looped = torch_loop(*heads, first)
    grad = torch.randn_like(problem.drive)
    error = (states[:, :tokens] - looped).abs().max() / looped.abs().max()
    rows.append(
        _against_loop(
            bench,
            shape,
            tokens,
            lambda: torch.autograd.grad(states, inputs, grad, retain_graph=True),
            lambda: torch.autograd.grad(looped, heads, grad[:, :tokens], retain_graph=True),
        )
        | {"direction": "backward"}
    )
    for row in rows:
        row["largest_error"] = float(error.detach())
        row["target_ratio"] = OF_LOOP.get((shape.name, row["direction"]))
    return rows


def _against_loop(
    bench: Bench,
    shape: Shape,
    tokens: int,
    ours: Callable[[], object],
    loop: Callable[[], object],
) -> Row:
    mine = bench.clock.calls([ours], bench.runs)
    theirs = _scaled(bench.clock.calls([loop], min(bench.runs, _FEW)), shape.length / tokens)
    return {"scan": mine, "loop": theirs, "tokens": tokens, "ratio": theirs["ms"] / mine["ms"]}


def _scaled(times: Times, by: float) -> Times:
    return times | {name: times[name] * by for name in ("ms", "least_ms", "most_ms")}


def peer_rows(bench: Bench, shape: Shape, ours: Sequence[Row]) -> list[Row]:
    """Each peer at our number of tokens and model width, forward and with all its gradients.

    Args:
        bench: where and how.
        shape: our sizes.
        ours: our rows of the section, which the ratios are to.
    """
    return [row for peer in PEERS for row in _peer_rows(bench, peer, shape, ours)]


def _peer_rows(bench: Bench, peer: Peer, shape: Shape, ours: Sequence[Row]) -> list[Row]:
    head: Row = {"section": "peers", "peer": peer.name, "package": peer.package}
    try:
        bound = peer.bind(shape, bench.device)
    except Exception as error:
        # Not installed, or what it raises where it does not work.
        return [head | {"error": str(error)}]

    def forward() -> None:
        with torch.no_grad():
            bound.forward()

    rows = []
    for direction in ("forward", "forward + backward"):
        row = head | {"direction": direction, "sizes": bound.sizes, "payload": "bfloat16"}

        def timed(direction: str = direction) -> Row:
            both = direction != "forward"
            call = forward_and_backward(bound) if both else forward
            times = bench.clock.calls([call], bench.runs)
            beside = BOTH if both else "forward"
            return {**times, "of_ours": _ratios(times["ms"], beside, ours)}

        rows.append(attempt(row, timed))
    return rows


def _ratios(ms: float, direction: str, ours: Sequence[Row]) -> dict[str, float]:
    """A time in ours, by the payload of ours."""
    return {
        row["payload"]: ms / row["eager_ms"]
        for row in ours
        if row["direction"] == direction and "error" not in row
    }
