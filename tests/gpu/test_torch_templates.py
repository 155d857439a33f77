"""Generated PyTorch on a GPU: values and gradients, and checks that wait for nothing."""

from collections.abc import Iterator

import pytest
import torch

import pdssm_compiler
from pdssm_compiler.runtime import plan
from tests.gpu.test_check import _call, _wrong
from tests.missing import without
from tests.public.scans import Case, Draw, inputs


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    without(monkeypatch, tvm_cuda="tvm-cuda is missing", triton="triton is missing")
    monkeypatch.setattr(plan, "_plans", {})
    yield
    ran = pdssm_compiler.explain()
    assert {kernel.template for kernel in ran} <= {"torch-chunks", "torch-tokens"}
    for kernel in ran:
        missing = kernel.reason.removeprefix("heuristic: ").split("; ")
        assert sorted(missing) == ["triton is missing", "tvm-cuda is missing"]


@pytest.mark.parametrize("map_class", ["general", "permutation"])
@pytest.mark.parametrize("source", ["dictionary", "token"])
def test_values_and_gradients(source: str, map_class: str, device: torch.device) -> None:
    case = Case(16, source, map_class=map_class, dtype=torch.complex128)
    call = inputs(case, Draw(2, 100, 3, "permutation", "disk", 1))
    found = []
    for scan, where in (
        (pdssm_compiler.pd_scan, device),
        (pdssm_compiler.reference.pd_scan, torch.device("cpu")),
    ):
        given = {name: tensor.to(where) for name, tensor in call.items()}
        leaves = [given[n].requires_grad_() for n in ("diagonal", "drive", "initial_state")]
        states, final = scan(**given, **case.options, output_final_state=True)
        grads = torch.autograd.grad(states.abs().sum() + final.abs().sum(), leaves)
        found.append([tensor.detach().cpu() for tensor in (states, final, *grads)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_no_synchronisation(device: torch.device) -> None:
    call = _call(device)
    leaves = [call[name].requires_grad_() for name in ("diagonal", "drive")]

    def step() -> None:
        states, _ = pdssm_compiler.pd_scan(**call)
        torch.autograd.grad(states.real.sum(), leaves)

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_an_index_out_of_range_is_told_later_and_kept(device: torch.device) -> None:
    good = _call(device)
    bad = dict(good, selection=_wrong(good["selection"], 3, 1, 4, 2))
    pdssm_compiler.pd_scan(**bad)
    torch.cuda.synchronize()
    with pytest.raises(pdssm_compiler.IndexRangeError, match=r"selection\[b=1, t=4, h=2\]"):
        pdssm_compiler.check()
    (made,) = plan.plans()
    tensors = [good[input_.name] for input_ in made.program.inputs if input_.name in good]
    wrong = [bad[input_.name] for input_ in made.program.inputs if input_.name in bad]
    # Without a look at the words between them, a good call leaves a bad one's word alone.
    made.run(wrong)
    made.run(tensors)
    with pytest.raises(pdssm_compiler.IndexRangeError, match=r"selection\[b=1, t=4, h=2\]"):
        pdssm_compiler.check()
