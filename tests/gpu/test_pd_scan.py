"""``pd_scan`` on a GPU: values and gradients against the plain loop in complex128."""

from collections.abc import Iterator

import pytest
import torch

import pdssm_compiler
from pdssm_compiler.verification import default_specs, verify_spec
from tests.public import accuracy
from tests.public.scans import CASES, KINDS, Case, Draw, inputs

DRAWS = (
    Draw(3, 13, 2, "random", "disk", 1),
    Draw(1, 1, 1, "permutation", "one", 2),
    Draw(2, 0, 3, "identity", "zero", 3),
    Draw(5, 200, 3, "random", "nearly one", 4),
    Draw(2, 64, 1, "permutation", "rotation", 5),
)
WORST = Draw(4, 100, 2, "collide", "disk", 6)


@pytest.fixture(autouse=True, scope="module")
def _poisoned() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def _draws(case: Case) -> list[Draw]:
    found = []
    for draw in (*DRAWS, WORST):
        legal = {
            "general": draw.maps,
            "permutation": "identity" if draw.maps == "identity" else "permutation",
            "identity": "identity",
        }[case.map_class]
        found.append(draw._replace(maps=legal))
    return found


@pytest.mark.parametrize("case", [*CASES, *KINDS], ids=str)
def test_values_and_gradients(case: Case, device: torch.device) -> None:
    for draw in _draws(case):
        tensors = inputs(case, draw)
        here = {name: tensor.to(device) for name, tensor in tensors.items()}
        for name in accuracy.DIFFERENTIABLE:
            here[name].requires_grad_()
        states, final = pdssm_compiler.pd_scan(**here, **case.options, output_final_state=True)
        want = accuracy.expected(tensors, case.options)
        scale = accuracy.expected(tensors, case.options, magnitude=True)
        for name, got, true, size in zip(
            ("states", "final_state"), (states, final), want, scale, strict=True
        ):
            accuracy.assert_within(got.detach().cpu(), true, size, accuracy.FORWARD, name)
        random = torch.Generator().manual_seed(draw.seed)
        grads = tuple(
            torch.randn(t.shape, dtype=t.dtype, generator=random) for t in (states, final)
        )
        leaves = [here[name] for name in accuracy.DIFFERENTIABLE]
        found = torch.autograd.grad([states, final], leaves, [g.to(device) for g in grads])
        true = accuracy.expected_gradients(tensors, case.options, grads)
        size = accuracy.expected_gradients(tensors, case.options, grads, magnitude=True)
        for name, got in zip(accuracy.DIFFERENTIABLE, found, strict=True):
            accuracy.assert_within(got.cpu(), true[name], size[name], accuracy.GRADIENT, name)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("spec", default_specs(), ids=str)
def test_specifications(spec: pdssm_compiler.ScanSpec, seed: int, device: torch.device) -> None:
    found = verify_spec(spec, device, seed, sizes=(3, 301, 5))
    assert found.worst <= 1, found


def test_strided_and_expanded_inputs(device: torch.device) -> None:
    case = Case(16, "dictionary")
    here = {n: t.to(device) for n, t in inputs(case, DRAWS[3]).items()}
    want, _ = pdssm_compiler.pd_scan(**here)
    turned = dict(here)
    turned["drive"] = here["drive"].permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)
    wide = torch.zeros(*here["diagonal"].shape[:3], 17, dtype=torch.complex64, device=device)
    wide[..., 1:] = here["diagonal"]
    # An odd offset of complex numbers: 8-byte and no 16-byte alignment.
    turned["diagonal"] = wide[..., 1:]
    got, _ = pdssm_compiler.pd_scan(**turned)
    assert torch.equal(got, want)
    one = torch.full((), 0.5j, dtype=torch.complex64, device=device)
    expanded = dict(here, diagonal=one.expand(here["diagonal"].shape))
    written = dict(here, diagonal=expanded["diagonal"].contiguous())
    assert torch.equal(pdssm_compiler.pd_scan(**expanded)[0], pdssm_compiler.pd_scan(**written)[0])


def test_offsets_beyond_two_to_the_31(device: torch.device) -> None:
    """Rows whose elements lie past 2^31: the same as the row alone."""
    batch, length, n = 64, 1_100_000, 32
    assert batch * length * n > 2**31
    random = torch.Generator(device).manual_seed(0)
    diagonal = torch.polar(
        torch.full((n,), 0.9, device=device), torch.rand(n, generator=random, device=device)
    ).expand(batch, length, 1, n)
    drive = torch.randn(
        batch, 1, 1, n, generator=random, device=device, dtype=torch.complex64
    ).expand(batch, length, 1, n)
    dictionary = torch.rand(1, 3, n, generator=random, device=device).argsort(-1).int()
    selection = torch.randint(
        3, (batch, length, 1), generator=random, device=device, dtype=torch.uint8
    )
    states, _ = pdssm_compiler.pd_scan(diagonal, drive, dictionary=dictionary, selection=selection)
    last = [tensor[-1:] for tensor in (diagonal, drive, selection)]
    alone, _ = pdssm_compiler.pd_scan(last[0], last[1], dictionary=dictionary, selection=last[2])
    assert torch.equal(states[-1:], alone)
