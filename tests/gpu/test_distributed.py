"""Layers on two GPUs: with NCCL what one process gives, and on a device that is not the current
one what a CPU gives.

A dead-lock ends the launch by its time.
"""

import copy
from pathlib import Path

import pytest
import torch

from pdssm_compiler.nn import CausalLM
from tests.nn.agreement import ACTS, assert_found, assert_loads_alone, played
from tests.nn.ranks import MODELS, inputs, loss_of, made
from tests.public.scans import Case, Draw
from tests.public.test_flash_pd_scan import flash_inputs, results
from tests.public.test_pd_scan_gradients import cotangents

# Kernels of a dozen programs are compiled, once: the ranks share a cache.
SECONDS = 400.0
pytestmark = pytest.mark.timeout(SECONDS + 30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return played(tmp_path_factory.mktemp("ranks"), "cuda", SECONDS)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("act", ACTS)
def test_two_processes_find_what_one_does(folder: Path, act: str, name: str) -> None:
    assert_found(folder, act, name)


@pytest.mark.parametrize("name", MODELS)
def test_a_sharded_checkpoint_is_loaded_by_one_process(folder: Path, name: str) -> None:
    assert_loads_alone(folder, name)


@pytest.mark.parametrize("name", MODELS)
def test_on_another_device_than_the_current_one(name: str) -> None:
    """Forward, backward, packed sequences, caches and steps on the second GPU."""
    assert torch.cuda.current_device() == 0
    there = torch.device("cuda", 1)
    want, x = made(name), inputs(name)
    model, y = copy.deepcopy(want).to(there), x.to(there)
    for each, tokens in ((want, x), (model, y)):
        loss_of(each(tokens)).backward()
    for mine, right in zip(model.parameters(), want.parameters(), strict=True):
        assert mine.grad.device == there
        torch.testing.assert_close(mine.grad.cpu(), right.grad, rtol=1e-7, atol=1e-9)
    offsets = torch.tensor([0, 2, x.shape[1]])
    with torch.no_grad():
        outs = model(y[:1], cu_seqlens=offsets.to(there)), want(x[:1], cu_seqlens=offsets)
        torch.testing.assert_close(outs[0].cpu(), outs[1], rtol=1e-9, atol=1e-9)
        (_, cache), (_, alone) = (m(t, output_cache=True) for m, t in ((model, y), (want, x)))
        for begun in (True, False):
            if not begun:
                cache, alone = model.init_cache(len(x)), want.init_cache(len(x))
            (out, _), (right, _) = model.step(y[:, 0], cache), want.step(x[:, 0], alone)
            assert out.device == there
            torch.testing.assert_close(out.cpu(), right, rtol=1e-9, atol=1e-9)
        if isinstance(model, CausalLM):
            assert torch.equal(model.generate(y, 5).cpu(), want.generate(x, 5))


@pytest.mark.parametrize("surrogate", ["active", "dense"])
def test_choices_on_another_device_than_the_current_one(surrogate: str) -> None:
    """The same bits as on the current one, with kernels around the scan as well."""
    assert torch.cuda.current_device() == 0
    tensors = flash_inputs(Case(32, "dictionary"), Draw(2, 300, 2, "random", "disk", 1))
    arriving = cotangents(tensors)
    found = [
        results(
            {name: tensor.to(device) for name, tensor in tensors.items()},
            tuple(grad.to(device) for grad in arriving),
            surrogate=surrogate,
        )
        for device in ("cuda:0", "cuda:1")
    ]
    for name, want in found[0].items():
        assert found[1][name].device == torch.device("cuda", 1)
        assert torch.equal(found[1][name].cpu(), want.cpu()), name
    assert torch.cuda.current_device() == 0
