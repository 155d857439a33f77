"""``|D| = 1 - 1e-6`` over a hundred thousand tokens: what float32 can hold, against complex128.

The oracle is the recurrence and its adjoint in NumPy, a token a turn.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from pdssm_compiler import pd_scan
from pdssm_compiler.schedules.templates.torch_chunks import TorchChunks
from tests.public.accuracy import FORWARD, GRADIENT, assert_within, epsilon
from tests.public.scans import Tensors
from tests.torch_only import torch_only

T, H, N, K = 100_000, 2, 3, 4
NAMES = ("diagonal", "drive", "initial_state")
Arrays = dict[str, Any]


@contextmanager
def chunks() -> Iterator[None]:
    with torch_only(TorchChunks()):
        yield


# What users get on a CPU, and another order of the sums.
WAYS = {"kernels": nullcontext, "chunks": chunks}


def tensors() -> Tensors:
    """Two heads: of one the phases add up nothing, of the other they turn at random."""
    random = torch.Generator().manual_seed(0)
    phase = torch.randn(1, T, H, N, generator=random, dtype=torch.float64)
    phase[:, :, 0] = 0
    maps = torch.rand(H, K, N, generator=random).argsort(-1)
    maps[1, 0] = 1  # and all columns of one map share a row
    magnitude = torch.full_like(phase, 1 - 1e-6)
    return {
        "diagonal": torch.polar(magnitude, phase).to(torch.complex64),
        # Of numbers that bfloat16 holds, so that both tests have one oracle.
        "drive": torch.view_as_complex(
            torch.randn(1, T, H, N, 2, generator=random).bfloat16().float()
        ),
        "initial_state": torch.randn(1, H, N, generator=random, dtype=torch.complex64),
        "dictionary": maps,
        "selection": torch.randint(K, (1, T, H), generator=random),
    }


def oracle(given: Tensors, arriving: Sequence[torch.Tensor]) -> tuple[Arrays, Arrays]:
    """States, final state and gradients in complex128, of the values and of their magnitudes,
    which are two more heads of one loop.
    """

    def doubled(tensor: torch.Tensor, axis: int) -> Any:
        values = tensor.numpy().astype(np.complex128)[0]
        return np.concatenate([values, np.abs(values)], axis)

    d, b, g = (doubled(each, 1) for each in (given["diagonal"], given["drive"], arriving[0]))
    x, last = doubled(given["initial_state"], 0), doubled(arriving[1], 0)
    places = given["dictionary"].numpy()[np.arange(H), given["selection"].numpy()[0]]
    places = np.concatenate([places, places], 1) + N * np.arange(2 * H)[:, None]  # [T, 2H, N]
    before, states = np.empty_like(b), np.empty_like(b)
    for t in range(T):
        before[t] = x
        x = b[t].copy()
        np.add.at(x.reshape(-1), places[t], d[t] * before[t])
        states[t] = x
    grads = {"diagonal": np.empty_like(d), "drive": np.empty_like(b)}
    future = last
    for t in reversed(range(T)):
        future = g[t] + future
        grads["drive"][t] = future
        moved = future.reshape(-1)[places[t]]
        grads["diagonal"][t] = before[t].conj() * moved
        future = d[t].conj() * moved
    found = {"states": states, "final": states[-1], **grads, "initial_state": future}
    tensors = {name: torch.from_numpy(np.array(each))[None] for name, each in found.items()}
    values = {name: each[..., :H, :] for name, each in tensors.items()}
    return values, {name: each[..., H:, :] for name, each in tensors.items()}


@pytest.fixture(scope="module")
def known() -> tuple[Tensors, list[torch.Tensor], Tensors, Tensors]:
    """Inputs, arriving gradients, what is right, and its scale."""
    given, random = tensors(), torch.Generator().manual_seed(1)
    pairs = torch.randn(1, T, H, N, 2, generator=random).bfloat16().float()
    last = torch.randn(1, H, N, generator=random, dtype=torch.complex64)
    arriving = [torch.view_as_complex(pairs), last]
    return given, arriving, *oracle(given, arriving)


@pytest.mark.parametrize("way", WAYS)
def test_values_and_gradients(known: Any, way: str) -> None:
    given, arriving, want, scale = known
    leaves = {n: x.clone().requires_grad_(n in NAMES) for n, x in given.items()}
    with WAYS[way]():
        states, final = pd_scan(**leaves, output_final_state=True)
        found = torch.autograd.grad([states, final], [leaves[n] for n in NAMES], arriving)
    assert_within(states.detach(), want["states"], scale["states"], FORWARD, "states")
    assert_within(final.detach(), want["final"], scale["final"], FORWARD, "final state")
    for name, gradient in zip(NAMES, found, strict=True):
        assert_within(gradient, want[name], scale[name], GRADIENT, f"gradient of {name}")


def test_under_autocast_with_a_bfloat16_drive(known: Any) -> None:
    """The state is carried in float32: rounded at every token it would be off by percents."""
    given, (arriving, last), want, scale = known
    leaves = {name: torch.view_as_real(given[name]).clone() for name in NAMES}
    leaves["drive"] = leaves["drive"].bfloat16()
    for leaf in leaves.values():
        leaf.requires_grad_()
    maps = {name: given[name] for name in ("dictionary", "selection")}
    with torch.autocast("cpu", torch.bfloat16):
        states, final = pd_scan(**leaves, **maps, output_final_state=True)
    assert (states.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    got = torch.view_as_complex(final.detach())
    assert_within(got, want["final"], scale["final"], FORWARD, "final state")
    low, fine = epsilon(torch.bfloat16), GRADIENT * epsilon(torch.float32)
    error = (torch.view_as_complex(states.detach().double()) - want["states"]).abs()
    # Each is rounded once.
    assert (error <= low * want["states"].abs() + fine * scale["states"].abs()).all()
    pairs = torch.view_as_real(arriving).bfloat16(), torch.view_as_real(last)
    of_diagonal, of_drive, of_start = torch.autograd.grad(
        [states, final], list(leaves.values()), pairs
    )
    assert [of_diagonal.dtype, of_drive.dtype] == [torch.float32, torch.bfloat16]
    gradient, name = torch.view_as_complex(of_start), "initial_state"
    assert_within(gradient, want[name], scale[name], GRADIENT, name)
    error = (torch.view_as_complex(of_drive.double()) - want["drive"]).abs()
    assert (error <= low * want["drive"].abs() + fine * scale["drive"].abs()).all()
    # A product with states that were stored in bfloat16.
    error = (torch.view_as_complex(of_diagonal.double()) - want["diagonal"]).abs()
    assert (error <= (low + fine) * scale["diagonal"].abs()).all()


def test_what_nothing_is_added_to() -> None:
    """A product of ``T`` diagonals has ``T`` roundings, each of half a spacing at most. They do
    not cancel where the factors are one number: measured is a fortieth of that.
    """
    given = tensors()
    diagonal = torch.full((1, 1, 1, 1), 1 - 1e-6, dtype=torch.complex64).expand(1, T, H, N)
    drive = torch.zeros(1, 1, 1, 1, dtype=torch.complex64).expand(1, T, H, N)
    given |= {"diagonal": diagonal, "drive": drive, "initial_state": torch.ones(1, H, N) + 0j}
    given["dictionary"] = torch.arange(N).expand(H, K, N)
    _, final = pd_scan(**given, output_final_state=True)
    want = diagonal[0, 0, 0, 0].real.double() ** T
    error = (final.real.double() / want - 1).abs().max()
    assert error <= T * epsilon(torch.float32) / 2
