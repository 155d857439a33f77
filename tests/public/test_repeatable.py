"""The same bits again, gradients and their sums over tokens and sequences included, whatever the
threads do.
"""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import nn

from pdssm_compiler import explain, flash_pd_scan, pd_scan
from pdssm_compiler.nn import PDSSM, FlashPDSSM
from pdssm_compiler.schedules.templates.torch_chunks import TorchChunks
from pdssm_compiler.schedules.templates.torch_tokens import TorchTokens
from tests.torch_only import torch_only

B, T, H, N, K = 5, 64, 6, 7, 4
RUNS = 2
Run = Callable[[], list[torch.Tensor]]


@pytest.fixture(params=[1, 4])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def generator() -> torch.Generator:
    """Of the default device, so that the tests on a GPU run these too."""
    return torch.Generator(torch.get_default_device()).manual_seed(0)


def gradients(outputs: list[torch.Tensor], leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    found = torch.autograd.grad([x.abs().square().sum() for x in outputs], leaves)
    return [*(x.detach() for x in outputs), *found]


def flash(surrogate: str = "active") -> list[torch.Tensor]:
    """Collisions everywhere, and every sequence adds to the same dictionary. The kernels are those
    of ``test_flash_pd_scan``, or ``test_flash_dense``.
    """
    random = generator()
    sizes = ((H, K, N, N), (B, T, H, K), (B, T, H, N, 2), (B, T, H, N, 2), (B, H, N, 2))
    leaves = [torch.randn(size, generator=random).requires_grad_() for size in sizes]
    dictionary, selector, diagonal, drive, start = leaves
    outputs = flash_pd_scan(
        dictionary,
        selector,
        diagonal / 4,
        drive,
        surrogate=surrogate,
        initial_state=start,
        output_final_state=True,
    )
    return gradients([x for x in outputs if x is not None], leaves)


def packed() -> list[torch.Tensor]:
    """The kernels are those of ``test_packed``."""
    random = generator()
    tokens = torch.randn(3, 1, T, H, 3, generator=random, dtype=torch.complex64)
    leaves = [each.clone().requires_grad_() for each in tokens[:2] / 4]
    start = tokens[2, 0, :3].clone().requires_grad_()
    outputs = pd_scan(
        *leaves,
        initial_state=start,
        dictionary=torch.randint(3, (H, 3, 3), generator=random),
        selection=torch.randint(3, (1, T, H), generator=random, dtype=torch.int32),
        orientation="row",
        cu_seqlens=torch.tensor([0, 20, 20, T]),
        output_final_state=True,
    )
    return gradients([x for x in outputs if x is not None], [*leaves, start])


def layer(made: Callable[[], nn.Module]) -> Run:
    def run() -> list[torch.Tensor]:
        torch.manual_seed(0)
        module, x = made(), torch.randn(B, T, 16)
        return gradients([module(x)], list(module.parameters()))

    return run


RUNNING: dict[str, Run] = {
    "flash": flash,
    "dense": partial(flash, "dense"),
    "packed": packed,
    "FlashPDSSM": layer(lambda: FlashPDSSM(16)),
    "PDSSM": layer(lambda: PDSSM(16)),
}


def assert_repeats(run: Run) -> None:
    first = run()
    for _ in range(RUNS - 1):
        for mine, right in zip(run(), first, strict=True):
            assert torch.equal(mine, right)


@pytest.mark.parametrize("name", ["flash", "dense", "packed"])
def test_kernels(threads: int, name: str) -> None:
    """Of a CPU they give the same bits by any number of threads: a thread owns its rows."""
    assert_repeats(RUNNING[name])
    several = RUNNING[name]()
    torch.set_num_threads(1)
    for mine, right in zip(several, RUNNING[name](), strict=True):
        assert torch.equal(mine, right)


@pytest.mark.parametrize("name", RUNNING)
def test_plain_torch(threads: int, name: str) -> None:
    with torch_only(TorchTokens()):
        assert_repeats(RUNNING[name])


@pytest.mark.parametrize("name", ["flash", "packed"])
def test_plain_torch_in_chunks(threads: int, name: str) -> None:
    with torch_only(TorchChunks()):
        assert_repeats(RUNNING[name])


@pytest.mark.parametrize("name", RUNNING)
def test_without_deterministic_mode(name: str) -> None:
    """On a CPU there is no other: it changes what uninitialised memory holds, and no result."""
    with torch_only(TorchTokens()):
        want = RUNNING[name]()
        torch.use_deterministic_algorithms(False)
        try:
            got = RUNNING[name]()
        finally:
            torch.use_deterministic_algorithms(True)
    for mine, right in zip(got, want, strict=True):
        assert torch.equal(mine, right)


@pytest.mark.parametrize("name", ["flash", "dense", "packed"])
def test_deterministic_mode_takes_the_same_kernels(name: str) -> None:
    """There are no others, so what repeats takes no longer than what need not."""
    RUNNING[name]()
    before = explain()
    assert before
    torch.use_deterministic_algorithms(False)
    try:
        want = RUNNING[name]()
    finally:
        torch.use_deterministic_algorithms(True)
    assert explain() == before
    for mine, right in zip(RUNNING[name](), want, strict=True):
        assert torch.equal(mine, right)
